"""A run's selected student to ship: packed, and as ONNX, compared with itself in the runtime."""

import importlib.metadata
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import onnx
import onnx_ir
from torch import Tensor, nn

from synq.config.export import Export
from synq.config.images import TestSet
from synq.data.datasets import normalise
from synq.data.names import class_names
from synq.data.rows import evenly_spread
from synq.errors import ConfigError, ModelError
from synq.io.artifacts import atomic, file_sha256, write_checkpoint, write_json
from synq.io.shards import ImageSource, ShardSet
from synq.models.teacher import Teacher, read_teacher
from synq.quantization.onnx import batch_of, to_onnx
from synq.quantization.packed import pack
from synq.quantization.runtime import (
    Compared,
    Run,
    compared,
    first_difference,
    in_onnxruntime,
    in_openvino,
)
from synq.quantization.student import read_student, recipe_of
from synq.quantization.tensorrt import violations
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
        "names": class_names(test, network.classes),
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
        tests=tests_of(network, test),
    )
    write_checkpoint(packed, "packed", tensors, {**about, **own, **layout})
    write_json(
        record,
        "export",
        {
            **about,
            **found,
            "names": shown["names"],
            "packed_sha256": file_sha256(packed),
            "packed_bytes": packed.stat().st_size,
            "versions": {**versions(), **packages(settings)},
        },
    )


def packages(settings: Export) -> dict[str, str]:
    """The versions of what wrote the file, and of what it was tried in."""
    names = (*PACKAGES, *(["openvino"] if settings.target == "openvino" else []))
    return {name: importlib.metadata.version(name) for name in names}


class Tests(Protocol):
    """The test images that a file is tried on."""

    def batches(self, count: int, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """At most ``count`` of them, evenly spread, by batches of at most ``size``.

        Images are normalised and on the CPU; labels are None where nobody has given any.
        """


class Named(NamedTuple):
    """Those of a teacher that its config names."""

    teacher: Teacher
    settings: TestSet

    def batches(self, count: int, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        teacher = self.teacher
        images = test_images(teacher, self.settings)
        for own in evenly_spread(len(images), count).split(size):
            labels = images.labels[own] if images.labelled else None
            yield normalise(images.read(own), teacher.mean, teacher.std), labels


def tests_of(teacher: Teacher, settings: TestSet) -> Tests | None:
    """The test images that a config names; None where it names none."""
    return None if settings.dataset == "none" else Named(teacher, settings)


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
    ModelError where a runtime agrees on too few of ``images``, or the target does not take it.
    """
    exported = to_onnx(
        student, images.image_shape, record, integers=integers, target=settings.target
    )
    if settings.target == "tensorrt":
        _check_for_tensorrt(path.name, exported)
    trial = Trial(path.name, student, images, settings, tests, batch_of(exported) or BATCH)
    with atomic(path) as temporary:
        onnx_ir.save(exported, temporary)
        onnx.checker.check_model(temporary)
        run = in_onnxruntime(temporary, threads, int8=settings.target == "tensorrt")
        found, tested = trial.of("ONNX Runtime", run, partial(_where, temporary, student))
        other, other_tested = None, None
        if settings.target == "openvino":
            other, other_tested = trial.of("OpenVINO", in_openvino(temporary, threads))
        parted = found.parted if tested is None or tested.parted is None else tested.parted
        where = None if parted is None else first_difference(temporary, student, parted)
    return {
        "onnx_sha256": file_sha256(path),
        "onnx_bytes": path.stat().st_size,
        "batch": batch_of(exported) or "any",
        "opset": exported.opset_imports[""],
        "target": settings.target,
        "images": found.images,
        "agreement": found.agreement,
        "largest_difference": found.difference,
        "test_images": tested.images if tested else 0,
        "test_agreement": tested.agreement if tested else None,
        "runtime_top1": tested.top1 if tested else None,
        "torch_top1": tested.top1_in_torch if tested else None,
        "first_difference": where._asdict() if where else None,
        "openvino_agreement": other.agreement if other else None,
        "openvino_test_agreement": other_tested.agreement if other_tested else None,
        "openvino_top1": other_tested.top1 if other_tested else None,
    }


class Trial(NamedTuple):
    """What the file called ``name`` is tried on, by batches of ``size``."""

    name: str
    student: nn.Module
    images: ImageSource
    settings: Export
    tests: Tests | None
    size: int

    def of(
        self, runtime: str, run: Run, where: Callable[[Tensor | None], str] = lambda _: ""
    ) -> tuple[Compared, Compared | None]:
        """What is found in a runtime on the images of the training, and on test images, if any.

        ModelError where it agrees on too few of the former, with what ``where`` says of them.
        """
        rows = evenly_spread(len(self.images), self.settings.images)
        parts = rows.split(self.size)
        found = compared(run, self.student, ((self.images.images(own), None) for own in parts))
        print(f"{runtime} and torch agree on {found.agreement:.2f} % of {found.images} images")
        least = self.settings.least_agreement
        if found.agreement < least:
            raise ModelError(
                f"{self.name} in {runtime} agrees with the student on {found.agreement:.2f} % "
                f"of {found.images} images{where(found.parted)}; lower export.least_agreement "
                f"({least}) if that is enough, or set export.format: none"
            )
        if self.tests is None or not self.settings.test_images:
            return found, None
        batches = self.tests.batches(self.settings.test_images, self.size)
        tested = compared(run, self.student, batches)
        right = ""
        if tested.top1 is not None:
            right = f"; right on {tested.top1:.2f} %, torch on {tested.top1_in_torch:.2f} %"
        print(f"of {tested.images} test images on {tested.agreement:.2f} %{right}")
        return found, tested


def _check_for_tensorrt(name: str, exported: onnx_ir.Model) -> None:
    """ModelError with the first node that TensorRT does not take."""
    first, *others = [*violations(exported), None]
    if first is not None:
        more = f" (the first of {len(others)})" if others[1:] else ""
        raise ModelError(
            f"TensorRT does not take {name}: {first}{more}; write calibration.scope: inputs, leave "
            "the layer in full precision (calibration.keep_bits), or choose another export.target"
        )


def _where(path: Path, model: nn.Module, images: Tensor | None) -> str:
    """From which quantizer on they differ, as a part of a sentence; or nothing."""
    found = None if images is None else first_difference(path, model, images)
    return f", and other codes begin at {found.name} ({found.share:.2g} %)" if found else ""
