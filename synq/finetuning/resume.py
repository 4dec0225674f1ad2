"""A fine-tuning that is not ended yet: its students and progress in a work folder."""

import contextlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from synq.errors import ArtifactError
from synq.finetuning.training import Part, Progress
from synq.io.artifacts import read_checkpoint, write_checkpoint
from synq.quantization.student import student_tensors


def begun(output: Path, record: Mapping[str, Any], code: str = "") -> dict[str, Any] | None:
    """The recipe of a run that has begun, where all else of its record is the same; None if none.

    Widths that were chosen once are not chosen again: on a GPU the choice could be another.
    """
    with contextlib.suppress(ArtifactError, KeyError):
        work = Work(output, record, code)
        _, saved = read_checkpoint(work.calibrated, "student")
        own = {key: saved[key] for key in work.begun_by}
        recipe: dict[str, Any] = own.pop("recipe")
        others = {key: value for key, value in work.begun_by.items() if key != "recipe"}
        if json.dumps(own, sort_keys=True) == json.dumps(others, sort_keys=True):
            return recipe
    return None


class Work:
    """The folder ``<output>.work``: a student an epoch, and the state that names the newest.

    A process that was told to end leaves the middle of an epoch, too; a reconstruction, each part.
    """

    def __init__(self, output: Path, record: Mapping[str, Any], code: str = "") -> None:
        """``record`` and ``code``, the digest of what trains, are all that must be equal for a
        saved state to be continued.
        """
        self.folder = output.with_name(f"{output.stem}.work")
        self.record = record
        self.begun_by = {**record, "code": code}

    def student(self, epoch: int) -> dict[str, Tensor]:
        return read_checkpoint(self._student(epoch), "student")[0]

    def students(self, epochs: Iterable[int]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        return ((epoch, self.student(epoch)) for epoch in epochs)

    def save(self, student: nn.Module, state: Progress) -> None:
        """Write the student first, and the state that names it last.

        A kill between the two loses an epoch, and no file is taken for another.
        """
        told = {
            "epoch": state.epoch,
            "history": state.history,
            "run": json.dumps(self.begun_by, sort_keys=True),
        }
        tensors = student_tensors(student)
        if state.part is None:
            record = {**self.begun_by, "epoch": state.epoch}
            write_checkpoint(self._student(state.epoch), "student", tensors, record)
            write_checkpoint(self._state, "state", state.optimizer, told)
            self._part.unlink(missing_ok=True)
            self._fitted.unlink(missing_ok=True)
            return
        groups = {
            "student": tensors,
            "optimizer": state.optimizer,
            "part": {"sums": state.part.sums, "generator": state.part.generator},
        }
        whole = {
            f"{group}/{name}": tensor
            for group, members in groups.items()
            for name, tensor in members.items()
        }
        write_checkpoint(self._part, "part", whole, {**told, "steps": state.part.steps})

    def save_fitted(self, student: nn.Module, number: int) -> None:
        """Write the student of which so many parts are reconstructed, before its first epoch."""
        record = {**self.begun_by, "fitted": number}
        write_checkpoint(self._fitted, "student", student_tensors(student), record)

    def resume_fitted(self, student: nn.Module) -> int:
        """Load that student, where it is of the same run; how many of its parts are done."""
        with contextlib.suppress(ArtifactError, KeyError):
            tensors, saved = read_checkpoint(self._fitted, "student")
            self._check(
                {"run": json.dumps({key: saved[key] for key in self.begun_by}, sort_keys=True)}
            )
            student.load_state_dict(tensors)
            return int(saved["fitted"])
        return 0

    def resume(self, student: nn.Module) -> tuple[Progress | None, str]:
        """Load the newest student of the same run; its progress, and a line that tells of it."""
        if not self._state.exists():
            return None, ""  # nothing has begun, or its parts are being reconstructed
        try:
            optimizer, saved = read_checkpoint(self._state, "state")
            for epoch in range(saved["epoch"] + 1):
                tensors = self.student(epoch)
            self._check(saved)
        except (ArtifactError, KeyError) as error:
            return None, f"starting from the beginning: {error}"
        state = Progress(saved["epoch"], tuple(saved["history"]), optimizer)
        text = f"going on after epoch {state.epoch}"
        with contextlib.suppress(ArtifactError, KeyError):
            tensors, state = self._within(state)
            text += f" and {state.part.steps if state.part else 0} steps"
        student.load_state_dict(tensors)
        return state, text

    def _within(self, state: Progress) -> tuple[dict[str, Tensor], Progress]:
        """The student and the progress in the epoch after ``state``'s; ArtifactError if none."""
        whole, saved = read_checkpoint(self._part, "part")
        self._check(saved)
        if saved["epoch"] != state.epoch:
            raise ArtifactError("the saved part is of another epoch")
        part = Part(saved["steps"], **_group(whole, "part"))
        return _group(whole, "student"), Progress(
            state.epoch, state.history, _group(whole, "optimizer"), part
        )

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _check(self, saved: Mapping[str, Any]) -> None:
        if saved["run"] != json.dumps(self.begun_by, sort_keys=True):
            raise ArtifactError("the saved state is of other settings or of other code")

    @property
    def calibrated(self) -> Path:
        """The first student of the run, which is written first of all."""
        return self._student(0)

    def _student(self, epoch: int) -> Path:
        return self.folder / f"epoch-{epoch:04d}.safetensors"

    @property
    def _fitted(self) -> Path:
        return self.folder / "reconstruction.safetensors"

    @property
    def _state(self) -> Path:
        return self.folder / "state.safetensors"

    @property
    def _part(self) -> Path:
        return self.folder / "part.safetensors"


def _group(tensors: Mapping[str, Tensor], group: str) -> dict[str, Tensor]:
    start = f"{group}/"
    return {
        name.removeprefix(start): tensor
        for name, tensor in tensors.items()
        if name.startswith(start)
    }
