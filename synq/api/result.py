"""What a run in memory gives: the student, its report, and its files."""

import copy
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from synq.api.given import Given
from synq.api.settings import Run
from synq.errors import UserError
from synq.io.artifacts import atomic, checksum, write_checkpoint
from synq.io.shards import ImageSet
from synq.models.teacher import Teacher
from synq.quantization.convert import weight_quantizers
from synq.quantization.packed import pack
from synq.quantization.quantizers import Recipe
from synq.quantization.student import student_tensors
from synq.reporting.changes import Changes, changed, standard_error
from synq.stages.evaluate import disagreement, diverged, work_on_an_image
from synq.stages.inspect import shown, verdict

# Where a smaller share of the multiply-adds reads codes, the report says what could be done.
FEW = 0.5


@dataclass(frozen=True)
class Measured:
    """Top-1 in percent on ``images``: of real test images, or agreement on those without labels.

    ``on`` says which: test images, real images without labels, or held-out synthetic images.
    ``changes`` counts the images on which the student names another class than the network,
    ``trained`` those on which it names another one than the calibrated student.
    """

    real: bool
    on: str
    images: int
    teacher: float
    calibrated: float
    student: float
    changes: Changes
    trained: Changes
    warning: str


def _gained_nothing(measured: Measured) -> str:
    """How surely, and what to do."""
    _, lost, gained = measured.trained
    error = standard_error(lost, gained, measured.images)
    if measured.calibrated - measured.student > 2 * error:
        return (
            "; finetune={'epochs': 0} gives the calibrated student, and method='untrained' may "
            "give a better one"
        )
    return (
        f" that {measured.images:,} {measured.on} could show: the difference is known to "
        f"± {error:.2f} points (standard error)"
    )


@dataclass(frozen=True)
class Inspection:
    """What an inspection found; ``print`` shows it as ``synq inspect`` does."""

    network: Teacher
    found: Mapping[str, Any]

    @property
    def fits(self) -> bool:
        return bool(self.found["fits"])

    @property
    def problems(self) -> list[str]:
        """Why it does not fit, each in a line."""
        return list(self.found["problems"])

    def __str__(self) -> str:
        found = dict(self.found)
        last = verdict(found) if self.fits else f"does not fit: {'; '.join(self.problems)}"
        return f"{shown(self.network, found)}\n\n{last}"


@dataclass(frozen=True)
class Sensitivity:
    """How much each layer alone costs; ``print`` shows it as ``synq sensitivity`` does.

    ``record`` holds what the command's JSON file does.
    """

    record: Mapping[str, Any]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """A mapping for each layer, the most sensitive first: ``layer``, ``divergence``, ..."""
        return list(self.record["layers"])

    def __str__(self) -> str:
        # Imported here: pandas takes half a second, and nothing else needs it.
        from synq.reporting.sensitivity import readable_sensitivity

        return readable_sensitivity(self.record)

    def draw(self, path: str | Path) -> None:
        """Write a bar for each layer, as SVG."""
        from synq.reporting.sensitivity import draw_sensitivity

        with atomic(Path(path)) as temporary:
            draw_sensitivity(self.record, temporary)


@dataclass(frozen=True)
class Result:
    """A quantized network.

    ``student`` takes what the original does and gives its logits alone, frozen, on the device
    it was trained on. ``images`` can be given to the next ``quantize``. ``record`` holds all
    settings by value and what each epoch left (``history``). ``tests`` are the test images that
    were given as batches.
    """

    student: nn.Module
    network: Teacher
    images: ImageSet
    record: Mapping[str, Any]
    inspection: Mapping[str, Any]
    measured: Measured
    seconds: Mapping[str, float]
    run: Run
    tests: Given | None = None

    def report(self) -> str:
        """What was quantized, how well the student does, and its size, in a few lines."""
        record, found, measured = self.record, self.inspection, self.measured
        layers = [part for part in found["parts"] if part["role"] == "layer" and part["calls"]]
        own = weight_quantizers(self.student)
        quantized = sum(part["name"] in own for part in layers)
        # Of this student: a wider scope has more codes than the inspection of a network finds.
        recipe = Recipe(**record["recipe"])
        spent = work_on_an_image(self.network, self.student, recipe)
        share = spent["multiply_adds_share"]
        work = f", {100 * share:.0f} % of the layers' multiply-adds"
        what = "top-1" if measured.real else "agreement with the network"
        numbers = f"calibrated {measured.calibrated:.2f} %, student {measured.student:.2f} %"
        if measured.real:
            numbers = f"full precision {measured.teacher:.2f} %, {numbers}"
            numbers += f"; names {changed(measured.changes, measured.images)}"
        full, packed = found["bytes"]["32"], self._packed_bytes
        size = (
            f"{packed / 1000:,.1f} kB packed"
            if packed
            else f"~{record['weight_bytes'] / 1000:,.1f} kB packed, as counted"
        )
        lines = [
            f"{record['model']} at {record['bits']} by {record['method']}, seed {record['seed']}",
            f"quantized: the weights of {quantized} of {len(layers)} layers, the inputs of "
            f"{spent['layers_reading_codes']} of {spent['layers']}{work}",
            f"images: {record['images']:,} ({record['image_set']}), epoch {record['epoch']} of "
            f"{record['last']}",
            f"{what} on {measured.images:,} {measured.on}: {numbers}",
            f"size: {size}, {full / 1000:,.1f} kB in full precision",
        ]
        lines += [f"logits: {change}" for change in found["output"]]
        if recipe.scope == "calls" and share < FEW:
            lines.append(
                "remark: most of the work reads floats, behind what print(synq.inspect(...)) says; "
                'calibration={"scope": "inputs"} gives every layer codes to read'
            )
        if measured.student < measured.calibrated:
            lines.append(f"remark: the training gained nothing{_gained_nothing(measured)}")
        if measured.warning:
            lines.append(f"warning: {measured.warning.replace('the teacher', 'the network')}")
        remarks = [*diverged(record)]
        if record["selected"] == record["last"]:  # of another last one nothing was measured
            remarks += disagreement(record, {record["last"]: measured.student})
        lines += [f"warning: {remark}" for remark in remarks]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Result\n{self.report()}>"

    def save(self, path: str | Path) -> None:
        """Write the student as safetensors, which ``load`` reads."""
        write_checkpoint(Path(path), "student", student_tensors(self.student), self.record)

    def save_packed(self, path: str | Path) -> None:
        """Write the student at exactly its bits, in the layout of ``docs/packed.md``."""
        tensors, layout = pack(copy.deepcopy(self.student).cpu())
        own = {key: self.record[key] for key in ("image_set", "recipe")}
        write_checkpoint(Path(path), "packed", tensors, {**self._about(), **own, **layout})

    def to_onnx(self, path: str | Path) -> dict[str, Any]:
        """Write the student as ONNX, compared with itself in ONNX Runtime; what was found of it.

        On ``export.test_images`` of the test images, too, where there are any. ModelError, and no
        file, where the two agree on too few of the images that it was trained on.
        """
        # Imported here: the exporter takes seconds to load.
        from synq.data.names import class_names
        from synq.stages.export import packages, tests_of, write_onnx

        network, run = self.network, self.run
        about = {
            **self._about(),
            "classes": network.classes,
            "names": class_names(run.test, network.classes),
            "channels": network.image_shape[0],
            "image_size": network.image_shape[1],
            "mean": network.mean,
            "std": network.std,
            "resized_crop": run.test.resized_crop,
            "interpolation": run.test.interpolation,
        }
        student = copy.deepcopy(self.student).cpu()
        integers = self.record["recipe"]["scope"] == "everything"
        found = write_onnx(
            Path(path),
            student,
            about,
            self.images,
            run.export,
            0,
            integers=integers,
            tests=self.tests or tests_of(network, run.test),
        )
        versions = {**self.record["versions"], **packages(run.export)}
        return {**about, **found, "versions": versions}

    @functools.cached_property
    def _packed_bytes(self) -> int:
        """The size of the file that ``save_packed`` writes; 0 where it cannot be written."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "student"
            try:
                self.save_packed(path)
            except UserError:
                return 0
            return path.stat().st_size

    def _about(self) -> dict[str, Any]:
        keys = ("model", "bits", "method", "seed", "epoch", "teacher_sha256")
        state = {name: value.contiguous() for name, value in student_tensors(self.student).items()}
        return {**{key: self.record[key] for key in keys}, "student_sha256": checksum({}, state)}
