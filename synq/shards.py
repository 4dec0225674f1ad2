"""Synthetic images in HDF5: one file a group of classes, read as one set.

The format is documented in ``results/README.md``.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy
import torch
from torch import Tensor

from synq.artifacts import FORMAT, atomic
from synq.errors import ArtifactError

REMEDY = "delete it and run the synthesis again"


def write_shard(
    path: Path, images: Tensor, labels: Tensor, confidence: Tensor, record: Mapping[str, Any]
) -> None:
    """Write ``[N, C, H, W]`` float32 images, ``[N]`` labels and ``[N]`` teacher confidences.

    The same content gives the same bytes. ``record`` values are numbers, texts, lists of numbers,
    or mappings, which are stored as JSON.
    """
    arrays = {
        "images": images.detach().cpu().numpy().astype("<f4"),
        "labels": labels.cpu().numpy().astype("<i8"),
        "confidence": confidence.detach().cpu().numpy().astype("<f4"),
    }
    with atomic(path) as temporary, h5py.File(temporary, "w", track_order=True) as file:
        for name, array in arrays.items():
            chunks = (1, *array.shape[1:]) if name == "images" else array.shape
            options = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
            file.create_dataset(name, data=array, chunks=chunks, track_times=False, **options)
        file.attrs["format"] = FORMAT
        file.attrs["kind"] = "shard"
        for key, value in record.items():
            stored = json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value
            file.attrs[key] = stored
        file.attrs["checksum"] = _checksum(file)


def _checksum(file: h5py.File) -> str:
    """SHA-256 of the arrays, image by image, so that no more than one is in memory."""
    digest = hashlib.sha256()
    for name in ("images", "labels", "confidence"):
        data = file[name]
        digest.update(f"{name} {data.dtype.str} {data.shape}".encode())
        for row in data if name == "images" else (data[:],):
            digest.update(numpy.ascontiguousarray(row).tobytes())
    return digest.hexdigest()


class ShardSet:
    """Several shards as one set of images, each read from its file when it is asked for."""

    def __init__(self, paths: Sequence[Path], teacher_sha256: str) -> None:
        """Open and check the files; ArtifactError names the one that does not fit."""
        self._files: list[h5py.File] = []
        self._places: list[tuple[int, int]] = []
        labels: list[Tensor] = []
        if not paths:
            raise ArtifactError("no shard was given; fine-tuning needs synthetic images")
        try:
            for path in paths:
                file = _open(path, teacher_sha256)
                self._files.append(file)
                own = torch.from_numpy(file["labels"][:])
                self._places += [(len(self._files) - 1, row) for row in range(len(own))]
                labels.append(own)
        except BaseException:
            self.close()
            raise
        self.labels = torch.cat(labels)

    def __len__(self) -> int:
        return len(self._places)

    def images(self, indices: Tensor) -> Tensor:
        """The images of these positions, ``[len(indices), C, H, W]``, on the CPU."""
        rows = []
        for index in indices.tolist():
            number, row = self._places[index]
            rows.append(torch.from_numpy(self._files[number]["images"][row]))
        return torch.stack(rows)

    def close(self) -> None:
        for file in self._files:
            file.close()

    def __enter__(self) -> "ShardSet":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _open(path: Path, teacher_sha256: str) -> h5py.File:
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; run the synthesis")
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise ArtifactError(f"{path} is truncated or not HDF5 ({error}); {REMEDY}") from None
    try:
        _check(file, path, teacher_sha256)
    except ArtifactError:
        file.close()
        raise
    except (OSError, KeyError, ValueError, TypeError) as error:
        file.close()
        raise ArtifactError(f"{path} is damaged ({error}); {REMEDY}") from None
    return file


def _check(file: h5py.File, path: Path, teacher_sha256: str) -> None:
    if file.attrs.get("kind") != "shard":
        raise ArtifactError(f"{path} is HDF5 but no shard of synthetic images; {REMEDY}")
    if file.attrs["format"] != FORMAT:
        raise ArtifactError(
            f"{path} has format {file.attrs['format']}, this program reads {FORMAT}; {REMEDY}"
        )
    if file.attrs["teacher_sha256"] != teacher_sha256:
        raise ArtifactError(
            f"{path} was made from another model (SHA-256 {file.attrs['teacher_sha256'][:12]}..., "
            f"not {teacher_sha256[:12]}...); {REMEDY}"
        )
    lengths = {len(file[name]) for name in ("images", "labels", "confidence")}
    if len(lengths) != 1 or 0 in lengths:
        raise ArtifactError(f"{path} holds no images, or not one label an image; {REMEDY}")
    if file.attrs["checksum"] != _checksum(file):
        raise ArtifactError(f"{path} does not match its checksum; {REMEDY}")
