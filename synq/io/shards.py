"""Synthetic images in HDF5: one file a group of classes, read as one set.

The format is documented in ``results/README.md``.
"""

import bisect
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import h5py
import numpy
import torch
from torch import Tensor

from synq.errors import ArtifactError
from synq.io.hdf5 import array, checksum, opened, refusing, written

# Name -> type and number of dimensions, in the order that the checksum takes them.
ARRAYS = {"images": ("<f2", 4), "labels": ("<i8", 1), "confidence": ("<f4", 1)}


# Of a set in memory a notebook shows so many images of so many classes, at this many pixels a side.
SHOWN, SIDE = (4, 10), 48


REMEDY = "delete it and run the synthesis again"


def write_shard(
    path: Path, images: Tensor, labels: Tensor, confidence: Tensor, record: Mapping[str, Any]
) -> None:
    """Write ``[N, C, H, W]`` images, ``[N]`` labels and ``[N]`` teacher confidences.

    Images are rounded to float16, by under a tenth of a step of an 8-bit image. The same content
    gives the same bytes. ``record`` values are numbers, texts, lists of numbers, or mappings, which
    are stored as JSON.
    """
    arrays = {"images": images, "labels": labels, "confidence": confidence}
    with written(path, "shard") as file:
        for name, (dtype, _) in ARRAYS.items():
            values = arrays[name].detach().cpu().numpy().astype(dtype)
            file.create_dataset(name, data=values, track_times=False)
        for key, value in record.items():
            stored = json.dumps(value, sort_keys=True) if isinstance(value, Mapping) else value
            file.attrs[key] = stored
        file.attrs["checksum"] = checksum((name, file[name]) for name in ARRAYS)


class ImageSource(Protocol):
    """Images that are read when they are asked for: a ``ShardSet``, or an ``ImageSet`` in memory.

    ``labels`` are ``[N]``; ``images`` gives those of some positions, ``[n, C, H, W]``, normalised,
    float32 on the CPU.
    """

    labels: Tensor
    image_shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def images(self, indices: Tensor, /) -> Tensor: ...


class ImageSet:
    """Images in memory, and what a teacher thinks of them.

    ``pixels`` are ``[N, C, H, W]``, normalised as the network takes them, and kept as a shard keeps
    them: in float16, so that students come out the same. ``labels`` are ``[N]``, and so is
    ``confidence``, the teacher's probability of the label, where it is known. ``mean`` and ``std``
    of each channel are what images in [0, 1] were normalised by: a network that takes others, or
    other sizes, has the images converted.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        confidence: Tensor | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        """ArtifactError where there is no image, not one label an image, or a number is none."""
        if pixels.dim() != 4 or not pixels.numel():
            raise ArtifactError(f"the images are {list(pixels.shape)}, not [N, C, H, W]")
        if labels.shape != pixels.shape[:1] or labels.is_floating_point():
            raise ArtifactError(
                f"{len(pixels)} images need as many whole numbers as labels, not {labels.dtype} "
                f"{list(labels.shape)}"
            )
        self.pixels = pixels.detach().cpu().half().contiguous()
        if not self.pixels.isfinite().all():
            raise ArtifactError("the images have a value that is not finite in float16")
        self.labels = labels.detach().cpu().long()
        self.confidence = None if confidence is None else confidence.detach().cpu()
        _, channels, height, width = pixels.shape
        self.image_shape = (channels, height, width)
        self.mean, self.std = (None if v is None else [float(x) for x in v] for v in (mean, std))
        if any(v is not None and len(v) != channels for v in (self.mean, self.std)):
            raise ArtifactError(f"mean and std need a value for each of {channels} channels")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.image_shape))
        return f"<{len(self)} images of {shape}, {len(self.labels.unique())} classes>"

    def images(self, indices: Tensor) -> Tensor:
        """The images of these positions, ``[len(indices), C, H, W]``, float32 on the CPU."""
        return self.pixels[indices].float()

    def _repr_png_(self) -> bytes:
        """What a notebook shows: some images, a column per class, in their own contrast."""
        # Imported here: nobody else who reads images needs it.
        from PIL import Image

        columns = []
        for label in self.labels.unique()[: SHOWN[1]]:
            own = self.images((self.labels == label).nonzero().squeeze(1)[: SHOWN[0]])
            lo, hi = own.amin((1, 2, 3), keepdim=True), own.amax((1, 2, 3), keepdim=True)
            shown = (255 * (own - lo) / (hi - lo).clamp_min(1e-6)).to(torch.uint8)
            columns.append(torch.cat([*shown], 1))
        lowest = min(column.shape[1] for column in columns)
        whole = torch.cat([column[:, :lowest] for column in columns], 2).permute(1, 2, 0).numpy()
        image = Image.fromarray(whole[..., 0] if whole.shape[2] != 3 else whole)
        scale = max(1, SIDE // self.image_shape[1])
        file = io.BytesIO()
        image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(
            file, "png"
        )
        return file.getvalue()


class Place(NamedTuple):
    """Where the images of a shard lie: in one piece of its file."""

    path: Path
    offset: int  # bytes
    first: int  # position of its first image in the set


class ShardSet:
    """Several shards as one set of images, each read from its file when it is asked for.

    No file stays open: a set may have more of them than a process may hold.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        teacher_sha256: str,
        classes: int | None = None,
        image_shape: tuple[int, int, int] | None = None,
    ) -> None:
        """Check the files; ArtifactError names the one that does not fit.

        Where they are given, labels are below ``classes`` and images are of ``image_shape``.
        """
        if not paths:
            raise ArtifactError("no shard was given; fine-tuning needs synthetic images")
        self.checksums: list[str] = []
        self._places: list[Place] = []
        labels: list[Tensor] = []
        shapes: dict[tuple[int, int, int], Path] = {}
        for path in paths:
            with open_shard(path, teacher_sha256, classes, image_shape) as file:
                self.checksums.append(file.attrs["checksum"])
                offset = file["images"].id.get_offset()
                self._places.append(Place(path, offset, sum(map(len, labels))))
                labels.append(torch.from_numpy(file["labels"][:]))
                _, channels, height, width = file["images"].shape
                shapes.setdefault((channels, height, width), path)
        if len(shapes) > 1:
            one, other, *_ = shapes.items()
            raise ArtifactError(f"{one[1]} has images of {one[0]}, {other[1]} of {other[0]}")
        (self.image_shape,) = shapes
        self.labels = torch.cat(labels)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, indices: Tensor) -> Tensor:
        """The images of these positions, ``[len(indices), C, H, W]``, float32 on the CPU."""
        images = torch.empty(len(indices), *self.image_shape)
        for row, index in enumerate(indices.tolist()):
            images[row] = torch.from_numpy(self._image(index))
        return images

    def _image(self, index: int) -> numpy.ndarray:
        # Straight from its bytes, as a contiguous data set has them: the HDF5 library would read
        # one image at a time in all threads, and keep every file open.
        place = self._places[bisect.bisect(self._places, index, key=lambda p: p.first) - 1]
        count = math.prod(self.image_shape)
        offset = place.offset + (index - place.first) * count * 2
        return numpy.fromfile(place.path, ARRAYS["images"][0], count, offset=offset).reshape(
            self.image_shape
        )


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
    if not images.size:
        raise ValueError("its images have no pixels")
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
