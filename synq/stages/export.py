"""A run's selected student to ship: packed, and as ONNX, compared with itself in the runtime."""

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import onnx
import onnx_ir
import torch
from torch import Tensor, nn

from synq.config.export import Export
from synq.config.images import TestSet
from synq.data.datasets import normalise
from synq.data.names import class_names
from synq.errors import ConfigError, ModelError
from synq.io.artifacts import atomic, file_sha256, write_checkpoint, write_json
from synq.io.shards import ImageSource, ShardSet
from synq.models.teacher import Teacher, read_teacher
from synq.quantization.onnx import batch_of, to_onnx
from synq.quantization.packed import pack
from synq.quantization.runtime import compared, first_difference
from synq.quantization.student import read_student, recipe_of
from synq.runtime.process import prepare, versions
from synq.stages.real_images import test_images

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

    Runtime and torch classify the images of ``shards``; where they agree on less than
    ``least_agreement``, nothing is written and ModelError says so. Of a test set they classify
    ``test_images``, evenly spread, and nothing depends on what comes out. Where they differ, the
    first quantizer is named whose codes do.
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
    about = {
        **{key: made[key] for key in ("model", "bits", "method", "seed", "epoch")},
        "teacher_sha256": network.sha256,
        "student_sha256": file_sha256(student),
        "widths": made.get("widths"),
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
    found = write_onnx(
        output,
        model,
        {**about, **shown},
        shard_set,
        settings,
        threads,
        integers=integers,
        tests=Tests(network, test),
    )
    write_checkpoint(packed, "packed", tensors, {**about, **own, **layout})
    write_json(
        record,
        "export",
        {
            **about,
            **found,
            "packed_sha256": file_sha256(packed),
            "packed_bytes": packed.stat().st_size,
            "versions": {**versions(), **{n: importlib.metadata.version(n) for n in PACKAGES}},
        },
    )


class Tests(NamedTuple):
    """The test images that a file is tried on: those of a teacher, as its config names them."""

    teacher: Teacher
    settings: TestSet


def write_onnx(
    path: Path,
    student: nn.Module,
    record: Mapping[str, Any],
    images: ImageSource,
    settings: Export,
    threads: int,
    *,
    integers: bool = False,
    tests: Tests | None = None,
) -> dict[str, Any]:
    """Write the ONNX file, with ``record`` as its metadata, and give what was found of it.

    ``integers`` makes the graph of integers that a student of ``scope: everything`` has. Raises
    ModelError where the runtime agrees on too few of ``images``.
    """
    exported = to_onnx(student, images.image_shape, record, integers=integers)
    count = min(len(images), settings.images)
    rows = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).long()
    size = batch_of(exported) or BATCH
    with atomic(path) as temporary:
        onnx_ir.save(exported, temporary)
        onnx.checker.check_model(temporary)
        batches = ((images.images(own), images.labels[own]) for own in rows.split(size))
        found = compared(temporary, student, batches, threads)
        print(f"ONNX Runtime and torch agree on {found.agreement:.2f} % of {count} images")
        if found.agreement < settings.least_agreement:
            raise ModelError(
                f"{path.name} in ONNX Runtime agrees with the student on {found.agreement:.2f} % "
                f"of {count} images{_where(temporary, student, found.parted)}; lower "
                f"export.least_agreement ({settings.least_agreement}) if that is enough, or set "
                "export.format: none"
            )
        tested = None
        if tests is not None and tests.settings.dataset != "none" and settings.test_images:
            labelled = _test(tests.teacher, tests.settings, settings, size)
            tested = compared(temporary, student, labelled, threads)
            print(
                f"of {tested.images} test images on {tested.agreement:.2f} %; right on "
                f"{tested.top1:.2f} %, torch on {tested.top1_in_torch:.2f} %"
            )
        parted = found.parted if tested is None or tested.parted is None else tested.parted
        where = None if parted is None else first_difference(temporary, student, parted)
    return {
        "onnx_sha256": file_sha256(path),
        "onnx_bytes": path.stat().st_size,
        "batch": batch_of(exported) or "any",
        "opset": exported.opset_imports[""],
        "images": count,
        "agreement": found.agreement,
        "largest_difference": found.difference,
        "test_images": tested.images if tested else 0,
        "test_agreement": tested.agreement if tested else None,
        "runtime_top1": tested.top1 if tested else None,
        "torch_top1": tested.top1_in_torch if tested else None,
        "first_difference": where._asdict() if where else None,
    }


def _test(
    network: Teacher, test: TestSet, settings: Export, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of normalised test images and their labels, evenly spread over the set."""
    images = test_images(network, test)
    count = min(len(images), settings.test_images)
    rows = torch.linspace(0, len(images) - 1, count, dtype=torch.float64).long()
    for own in rows.split(size):
        yield normalise(images.read(own), network.mean, network.std), images.labels[own]


def _where(path: Path, model: nn.Module, images: Tensor | None) -> str:
    """From which quantizer on they differ, as a part of a sentence; or nothing."""
    found = None if images is None else first_difference(path, model, images)
    return f", and other codes begin at {found.name} ({found.share:.2g} %)" if found else ""
