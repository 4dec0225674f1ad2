"""Images, and labels if any, as arrays in one file: .npz or HDF5, as people exchange data sets."""

import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy
import torch
from torch import Tensor

from synq.errors import DataError, reason

# As many images tell whether whole numbers of 16 bits are those of 8.
SEEN = 200


@dataclass(frozen=True)
class Arrays:
    """Labels ``[N]``, and the images ``[n, C, H, W]`` in [0, 1] of some positions.

    Without labels in the file they are all 0.
    """

    labels: Tensor
    read: Callable[[Tensor], Tensor]
    labelled: bool


def names(split: str) -> list[tuple[str, str]]:
    """What the two arrays may be called, the split's own names first."""
    short = {"test": "x_test", "train": "x_train"}[split]
    return [
        (f"{split}_images", f"{split}_labels"),
        (short, short.replace("x", "y", 1)),
        ("images", "labels"),
    ]


def read_arrays(path: Path, split: str, channels: int) -> Arrays:
    """The arrays ``images`` and ``labels``, or those of the split, as ``names`` lists them.

    Images are ``[N, H, W]``, ``[N, H, W, C]`` or ``[N, C, H, W]``, uint8, uint16 to its largest
    value, or floats of 0 to 1; labels are whole numbers, ``[N]`` or ``[N, 1]``. A file of images
    and nothing else is one without labels. HDF5 images are read a batch at a time. Raises DataError
    where the file is something else.
    """
    content = _open(path)
    image_name, label_name = _named(path, content, split)
    images = content[image_name]
    place = f"{path}:{image_name}"
    layout = _layout(images.shape, channels, place)
    labelled = label_name in content
    labels = numpy.asarray(content[label_name][()] if labelled else numpy.zeros(len(images), int))
    if labels.size != len(images) or not len(images):
        raise DataError(f"{path} has {len(images)} images and {labels.size} labels")
    if not numpy.issubdtype(labels.dtype, numpy.integer) or labels.min() < 0:
        raise DataError(f"{path}:{label_name} holds no class numbers (whole numbers from 0 on)")
    if images.dtype.kind != "f" and images.dtype not in (numpy.uint8, numpy.uint16):
        raise DataError(f"{place} is of type {images.dtype}; write uint8, or floats of 0 to 1")
    if images.dtype == numpy.uint16 and numpy.max(images[:: -(-len(images) // SEEN)]) <= 255:
        raise DataError(f"{place} is uint16, and no value is above 255; write uint8")

    def read(indices: Tensor) -> Tensor:
        # HDF5 takes ascending positions alone.
        order = indices.sort().indices
        rows = numpy.asarray(images[indices[order].numpy()])
        pixels = torch.from_numpy(rows.astype(numpy.float32)).permute(layout)
        if images.dtype.kind == "u":
            pixels = pixels / numpy.iinfo(images.dtype).max
        elif not (pixels.min() >= 0 and pixels.max() <= 1):
            raise DataError(f"{place} has values outside [0, 1]; images are normalised here")
        return pixels.reshape(len(rows), channels, *pixels.shape[-2:])[order.argsort()]

    return Arrays(torch.from_numpy(labels.reshape(-1).astype(numpy.int64)), read, labelled)


def _named(path: Path, content: Mapping[str, Any], split: str) -> tuple[str, str]:
    """What the images and the labels are called in the file, or would be."""
    known = names(split)
    for images, labels in known:
        # Labels of another name are no images without labels: what else is there may be they.
        if images in content and (labels in content or len(content) == 1):
            return images, labels
    wanted = "; ".join(f"{images} and {labels}" for images, labels in known)
    raise DataError(
        f"{path} has {', '.join(content) or 'nothing'}; it needs {wanted}; or, without labels, the "
        "images alone"
    )


def _open(path: Path) -> Mapping[str, Any]:
    # By what they hold: nobody is bound to a suffix.
    hdf5 = path.is_file() and h5py.is_hdf5(path)
    if path.is_file() and not hdf5 and not zipfile.is_zipfile(path):
        raise DataError(f"{path} cannot be read as .npz or HDF5 (it is neither)")
    try:
        if hdf5:
            file = h5py.File(path, "r")
            return {name: data for name, data in file.items() if isinstance(data, h5py.Dataset)}
        with numpy.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; path names an .npz or HDF5 file") from None
    except Exception as error:  # a damaged file makes them raise what its reader raises
        raise DataError(f"{path} cannot be read as .npz or HDF5 ({reason(error)})") from None


def _layout(shape: Sequence[int], channels: int, place: str) -> tuple[int, ...]:
    """The permutation of the axes that gives ``[N, (C,) H, W]``."""
    if len(shape) == 3 and channels == 1:
        return (0, 1, 2)
    if len(shape) == 4 and shape[3] == channels:
        return (0, 3, 1, 2)
    if len(shape) == 4 and shape[1] == channels:
        return (0, 1, 2, 3)
    raise DataError(
        f"{place} has the shape {list(shape)}; images of {channels} channels are [N, H, W, "
        f"{channels}] or [N, {channels}, H, W]" + (", or [N, H, W]" if channels == 1 else "")
    )
