"""Image files as tensors of the size and the channels that a network takes."""

import warnings
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor

from synq.config.images import Data
from synq.config.names import SUFFIXES
from synq.errors import DataError, reason

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


# Grey images of 16 bits, as Pillow calls them; of I, the values alone say whether it is one.
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I")


def picture(path: str, channels: int, size: int, settings: Data) -> Tensor:
    """An image file as ``[channels, size, size]`` in [0, 1]; DataError where it is none.

    Colours, palettes and greys of any depth become what the network takes; transparency is
    dropped, as usual where classifiers are evaluated.
    """
    try:
        with warnings.catch_warnings(), Image.open(path) as file:
            warnings.simplefilter("ignore")  # Pillow's, about transparency and sizes
            image = _shallow(file).convert("L" if channels == 1 else "RGB")
    except Exception as error:  # a decoder raises whatever a damaged file makes it raise
        raise DataError(f"{path} cannot be read as an image ({reason(error)})") from None
    if image.size != (size, size):
        width, height = resized(*image.size, size, settings.resized_crop)
        image = image.resize((width, height), RESAMPLING[settings.interpolation])
        left, top = middle(width, size), middle(height, size)
        image = image.crop((left, top, left + size, top + size))
    array = numpy.asarray(image, dtype=numpy.float32) / 255
    return torch.from_numpy(numpy.atleast_3d(array)).permute(2, 0, 1)


def _shallow(image: Image.Image) -> Image.Image:
    """The image with 8 bits a channel: Pillow itself would cut values of more off, not scale them.

    ValueError where the range of the values is not known.
    """
    if image.mode == "F":
        raise ValueError("its pixels are floats; write 8 or 16 bits")
    if image.mode not in DEEP:
        return image
    values = numpy.asarray(image).astype(numpy.int64)
    if values.min() < 0 or values.max() > 65535:
        raise ValueError("its pixels have over 16 bits; write 8 or 16 bits")
    return Image.fromarray(((values + 128) // 257).astype(numpy.uint8))


def resized(width: int, height: int, size: int, crop: float) -> tuple[int, int]:
    """Width and height at which a centre crop of ``size`` keeps that share of the shorter side.

    As torchvision's Resize, with which published accuracies were measured: what the longer side has
    beyond a whole pixel is cut off.
    """
    short = max(round(size / crop), size)
    if width <= height:
        return short, short * height // width
    return short * width // height, short


def middle(side: int, size: int) -> int:
    """Where a centre crop begins: torchvision's CenterCrop rounds a half to an even number."""
    return round((side - size) / 2)


def is_picture(path: str, root: Path) -> bool:
    """By its suffix, if neither the file nor a folder below ``root`` is hidden."""
    below = Path(path).relative_to(root)
    return below.suffix.lower() in SUFFIXES and not any(part[0] == "." for part in below.parts)
