"""Synthetic images in HDF5: one file a group of classes, read as one set.

The format is documented in ``results/README.md``.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from synq.errors import ArtifactError
from synq.hdf5 import array, checksum, opened, refusing, written

# Name -> type and number of dimensions, in the order that the checksum takes them.
ARRAYS = {"images": ("<f4", 4), "labels": ("<i8", 1), "confidence": ("<f4", 1)}
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
    with written(path, "shard") as file:
        for name, values in arrays.items():
            chunks = (1, *values.shape[1:]) if name == "images" else values.shape
            options = {"compression": "gzip", "compression_opts": 4, "shuffle": True}
            file.create_dataset(name, data=values, chunks=chunks, track_times=False, **options)
        for key, value in record.items():
            stored = json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value
            file.attrs[key] = stored
        file.attrs["checksum"] = checksum((name, file[name]) for name in arrays)


class ShardSet:
    """Several shards as one set of images, each read from its file when it is asked for."""

    def __init__(
        self,
        paths: Sequence[Path],
        teacher_sha256: str,
        classes: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        """Open and check the files; ArtifactError names the one that does not fit.

        Where they are given, labels are below ``classes`` and images are of ``image_shape``.
        """
        self.checksums: list[str] = []
        self._files: list[h5py.File] = []
        self._places: list[tuple[int, int]] = []
        labels: list[Tensor] = []
        if not paths:
            raise ArtifactError("no shard was given; fine-tuning needs synthetic images")
        try:
            for path in paths:
                file = open_shard(path, teacher_sha256, classes, image_shape)
                self._files.append(file)
                self.checksums.append(file.attrs["checksum"])
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


def open_shard(
    path: Path,
    teacher_sha256: str | None = None,
    classes: int | None = None,
    image_shape: tuple[int, int, int] | None = None,
) -> h5py.File:
    """A shard that is whole and fits what is given; ArtifactError says what does not."""
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; run the synthesis")
    file = opened(path, "shard", REMEDY)
    with refusing(path, REMEDY, file):
        _check_origin(path, str(file.attrs["teacher_sha256"]), teacher_sha256)
        _check(file, classes, image_shape)
    return file


def _check_origin(path: Path, found: str, wanted: str | None) -> None:
    if wanted is not None and found != wanted:
        raise ArtifactError(
            f"{path} was made from another model (SHA-256 {found[:12]}..., not {wanted[:12]}...); "
            f"{REMEDY}"
        )


def _check(file: h5py.File, classes: int | None, image_shape: tuple[int, int, int] | None) -> None:
    """ValueError where a shard is not what ``results/README.md`` says; shapes before values."""
    arrays = {name: array(file, name, *what) for name, what in ARRAYS.items()}
    images, labels = arrays["images"], arrays["labels"]
    if len({len(data) for data in arrays.values()}) != 1 or not len(images):
        raise ValueError("it holds no images, or not one label an image")
    if images.chunks != (1, *images.shape[1:]) or not images.size:
        raise ValueError("its chunks are not one image each")
    if image_shape and images.shape[1:] != image_shape:
        raise ValueError(f"its images are {images.shape[1:]}, the network takes {image_shape}")
    known = labels[:]
    if known.min() < 0 or (classes is not None and known.max() >= classes):
        raise ValueError(f"its labels are not among the {classes} classes")
    if file.attrs["checksum"] != checksum(arrays.items(), finite=True):
        raise ValueError("it does not match its checksum")


def split(labels: Tensor, holdout: float) -> tuple[Tensor, Tensor]:
    """Positions to train on and to select on: the last share of each class is held out."""
    held = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        own = (labels == label).nonzero().squeeze(1)
        count = int(len(own) * holdout)
        held[own[len(own) - count :]] = True
    return (~held).nonzero().squeeze(1), held.nonzero().squeeze(1)
