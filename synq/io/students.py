"""The students of a run in one safetensors file, each read alone, and the record of the run."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from synq.errors import ArtifactError
from synq.io.artifacts import check_sum, checksum, opened, remedy, save

KIND = "students"


def write_students(
    path: Path, record: Mapping[str, Any], students: Iterable[tuple[int, Mapping[str, Tensor]]]
) -> None:
    """Write the state of each student, with its epoch before its names: ``epoch-0003/NAME``.

    States that come from a checkpoint lie in its file, and take no memory here.
    """
    tensors: dict[str, Tensor] = {}
    checksums: dict[str, str] = {}
    for epoch, state in students:
        checksums[str(epoch)] = checksum({}, state)
        tensors |= {_prefix(epoch) + name: tensor for name, tensor in state.items()}
    save(path, KIND, tensors, {**record, "student_checksums": checksums}, summed={})


class Students:
    """A file of students, which is opened for each of them.

    ``checksum`` is that of the record, and by it of all students: each has its own in there.
    """

    def __init__(self, path: Path) -> None:
        """Check the record; ArtifactError says what is wrong with it."""
        self.path = path
        with opened(path, KIND) as (file, record):
            self.checksum = str(record.get("checksum"))
            check_sum(path, record, {})
            names = list(file.keys())
        sums = record.pop("student_checksums", None)
        if not isinstance(sums, dict) or not sums or not all(map(str.isdecimal, sums)):
            raise ArtifactError(f"{path} holds no students; {remedy(KIND)}")
        self.record: dict[str, Any] = record
        self._checksums = {int(epoch): value for epoch, value in sums.items()}
        self.epochs = sorted(self._checksums)
        if not all(name.startswith(tuple(map(_prefix, self.epochs))) for name in names):
            raise ArtifactError(f"{path} holds what is of no student; {remedy(KIND)}")

    def student(self, epoch: int) -> dict[str, Tensor]:
        """The state of the student after an epoch; ArtifactError where it is not as written."""
        start = _prefix(epoch)
        with opened(self.path, KIND) as (file, _):
            state = {
                name.removeprefix(start): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118
                if name.startswith(start)
            }
        if checksum({}, state) != self._checksums[epoch]:
            raise ArtifactError(
                f"{self.path} does not match its checksum in epoch {epoch}; {remedy(KIND)}"
            )
        return state


def _prefix(epoch: int) -> str:
    return f"epoch-{epoch:04d}/"
