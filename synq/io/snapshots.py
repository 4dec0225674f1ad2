"""The students of a run in one HDF5 file: a group an epoch, and the record of the run."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from synq.errors import ArtifactError
from synq.io.hdf5 import array, checksum, member, opened, refusing, written

REMEDY = "delete it and run the fine-tuning again"


def write_snapshots(
    path: Path, record: Mapping[str, Any], students: Iterable[tuple[int, Mapping[str, Tensor]]]
) -> None:
    """Write the state of each student under its epoch."""
    with written(path, "snapshots") as file:
        file.attrs["record"] = json.dumps(record, sort_keys=True)
        for epoch, tensors in students:
            group = file.create_group(f"epoch-{epoch:04d}", track_order=True)
            for name, tensor in tensors.items():
                group.create_dataset(name, data=tensor.numpy(), track_times=False)
        file.attrs["checksum"] = checksum(_arrays(file))


class Snapshots:
    """An open file of students; use it as a context."""

    def __init__(self, path: Path) -> None:
        """Open and check the file; ArtifactError says what is wrong with it."""
        if not path.is_file():
            raise ArtifactError(f"{path} does not exist; run the fine-tuning")
        self._file = opened(path, "snapshots", REMEDY)
        with refusing(path, REMEDY, self._file):
            self._read()

    def _read(self) -> None:
        self.checksum = str(self._file.attrs["checksum"])
        self.record: dict[str, Any] = json.loads(self._file.attrs["record"])
        self.epochs = [int(name.removeprefix("epoch-")) for name in sorted(self._file)]
        if not isinstance(self.record, dict) or not self.epochs:
            raise ValueError("it holds no students")
        if self.checksum != checksum(_arrays(self._file)):
            raise ValueError("it does not match its checksum")

    def student(self, epoch: int) -> dict[str, Tensor]:
        """The state of the student after an epoch."""
        group = self._file[f"epoch-{epoch:04d}"]
        return {name: torch.as_tensor(group[name][()]) for name in group}

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> "Snapshots":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _arrays(file: h5py.File) -> Iterator[tuple[str, h5py.Dataset]]:
    for epoch in sorted(file):
        group = member(file, epoch)
        # An array can be iterated too, which reads it.
        if not isinstance(group, h5py.Group):
            raise TypeError(f"{epoch} is no group")
        for name in group:
            data = member(group, name)
            yield f"{epoch}/{name}", array(group, name, data.dtype.str, data.ndim)
