"""A run's selected student to ship: packed, and as ONNX, compared with itself in the runtime."""

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path

import numpy
import onnx
import onnx_ir
import onnxruntime
import torch
from torch import nn

from synq.config.export import Export
from synq.config.images import TestSet
from synq.data.names import class_names
from synq.errors import ConfigError, ModelError
from synq.io.artifacts import atomic, file_sha256, write_checkpoint, write_json
from synq.io.shards import ShardSet
from synq.models.teacher import read_teacher
from synq.quantization.onnx import batch_of, to_onnx
from synq.quantization.packed import pack
from synq.quantization.student import read_student, recipe_of
from synq.runtime.process import prepare, versions

BATCH = 64
PACKAGES = ("onnx", "onnxruntime", "onnxscript")


def export_student(
    *,
    teacher: Path,
    student: Path,
    shards: Sequence[Path],
    shard_folder: Path,
    settings: Export,
    test: TestSet,
    output: Path,
    packed: Path,
    record: Path,
    threads: int,
) -> None:
    """Write the ONNX file, the packed one, and what was found of them.

    Of the test set nothing is read but the names of its classes and how its images are cropped.

    Runtime and torch classify the images of ``shards``; where they agree on less than
    ``least_agreement``, nothing is written and ModelError says so.
    """
    if settings.format != "onnx":
        raise ConfigError(f"export.format is {settings.format}, and nothing is to be exported")
    device = prepare("cpu", threads)
    network = read_teacher(teacher, device)
    model, made = read_student(student, network)
    shard_set = ShardSet(
        [shard_folder / path for path in shards],
        network.sha256,
        network.classes,
        network.image_shape,
    )
    count = min(len(shard_set), settings.images)
    rows = torch.linspace(0, len(shard_set) - 1, count, dtype=torch.float64).long()
    about = {
        **{key: made[key] for key in ("model", "bits", "method", "seed", "epoch")},
        "teacher_sha256": network.sha256,
        "student_sha256": file_sha256(student),
    }
    tensors, layout = pack(model)
    own = {key: made[key] for key in ("image_set", "recipe")}
    channels, size, _ = network.image_shape
    shown = {
        "classes": network.classes,
        "names": class_names(settings.names, test, network.classes),
        "channels": channels,
        "image_size": size,
        "mean": network.mean,
        "std": network.std,
        "resized_crop": test.resized_crop,
        "interpolation": test.interpolation,
    }
    integers = recipe_of(made, student).scope == "everything"
    exported = to_onnx(model, network.image_shape, {**about, **shown}, integers=integers)
    with atomic(output) as temporary:
        onnx_ir.save(exported, temporary)
        onnx.checker.check_model(temporary)
        batches = rows.split(batch_of(exported) or BATCH)
        agreement, difference = _compared(temporary, model, shard_set, batches, threads)
        print(f"ONNX Runtime and torch agree on {agreement:.2f} % of {count} images")
        if agreement < settings.least_agreement:
            raise ModelError(
                f"{output.name} in ONNX Runtime agrees with the student on {agreement:.2f} % of "
                f"{count} images; lower export.least_agreement ({settings.least_agreement}) if "
                "that is enough, or set export.format: none"
            )
    write_checkpoint(packed, "packed", tensors, {**about, **own, **layout})
    write_json(
        record,
        "export",
        {
            **about,
            "onnx_sha256": file_sha256(output),
            "onnx_bytes": output.stat().st_size,
            "packed_sha256": file_sha256(packed),
            "packed_bytes": packed.stat().st_size,
            "batch": batch_of(exported) or "any",
            "opset": exported.opset_imports[""],
            "images": count,
            "agreement": agreement,
            "largest_difference": difference,
            "versions": {**versions(), **{n: importlib.metadata.version(n) for n in PACKAGES}},
        },
    )


def _compared(
    path: Path,
    model: nn.Module,
    shards: ShardSet,
    batches: Sequence[torch.Tensor],
    threads: int,
) -> tuple[float, float]:
    """Percent of the images with the same class, and the largest difference of a logit."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    same, difference = 0, 0.0
    for batch in batches:
        images = shards.images(batch)
        with torch.inference_mode():
            wanted = model(images).numpy()
        (found,) = session.run(None, {"images": images.numpy()})
        same += int((found.argmax(1) == wanted.argmax(1)).sum())
        difference = max(difference, float(numpy.abs(found - wanted).max()))
    return 100 * same / sum(map(len, batches)), difference
