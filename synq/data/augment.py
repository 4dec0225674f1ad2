"""Random crops and flips of whole batches, with a generator of their own."""

import torch
from torch import Tensor
from torch.nn import functional

ASPECT = (3 / 4, 4 / 3)


def crop_and_flip(
    images: Tensor, generator: torch.Generator, *, crop_min: float, flip: float
) -> Tensor:
    """A random resized crop and flip of each image of ``[N, C, H, W]``, same shape."""
    crops = random_crops(len(images), generator, crop_min=crop_min, flip=flip)
    return images if crops is None else cropped(images, crops)


def random_crops(
    count: int, generator: torch.Generator, *, crop_min: float, flip: float
) -> Tensor | None:
    """The part of each of ``count`` images that a crop keeps, ``[N, 2, 3]``; None: all of them.

    A crop keeps an area uniform in [crop_min, 1] with an aspect ratio log-uniform in the
    part of [3/4, 4/3] that fits; ``flip`` is the probability of a mirror image. What is given are
    affine maps from places of the result to those of the image, in [-1, 1]. The generator lives on
    the CPU.

    Of 0.5 to 1 the mean area is 0.75, and the logarithm of the aspect ratio deviates by 0.134.
    torchvision draws area and ratio again where a side does not fit, as that of a large area often
    does: about 0.70 and 0.15.
    """
    if crop_min >= 1 and flip <= 0:
        return None
    area, ratio, left, top, coin = torch.rand(5, count, generator=generator)
    if crop_min < 1:
        area = crop_min + (1 - crop_min) * area
        # Both sides must fit: sqrt(area * ratio) <= 1 and sqrt(area / ratio) <= 1.
        lo, hi = area.clamp_min(ASPECT[0]).log(), (1 / area).clamp_max(ASPECT[1]).log()
        ratio = torch.exp(lo + (hi - lo) * ratio)
        width, height = (area * ratio).sqrt(), (area / ratio).sqrt()
    else:
        width = height = torch.ones(count)
    mirror = torch.where(coin < flip, -1.0, 1.0)
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0] = width * mirror
    theta[:, 0, 2] = (2 * left - 1) * (1 - width)
    theta[:, 1, 1] = height
    theta[:, 1, 2] = (2 * top - 1) * (1 - height)
    return theta


def random_jitter(
    count: int, channels: int, generator: torch.Generator, strength: float
) -> tuple[Tensor, Tensor] | None:
    """Factors and offsets ``[N, 1, 1, 1]`` and ``[N, C, 1, 1]``; None where ``strength`` is 0.

    An image's contrast changes by up to ``strength`` of itself, its brightness by half of that and
    each channel by a quarter, in the standard deviations that images are normalised to. All are
    uniform. The generator lives on the CPU.
    """
    if strength <= 0:
        return None
    draws = 2 * torch.rand(count, 2 + channels, 1, 1, generator=generator) - 1
    offsets = strength * (draws[:, 1:2] / 2 + draws[:, 2:] / 4)
    return 1 + strength * draws[:, :1], offsets


def jittered(images: Tensor, jitter: tuple[Tensor, Tensor]) -> Tensor:
    """The images with the contrast around their own mean, and the brightness, of ``jitter``."""
    factors, offsets = (part.to(images.device, images.dtype) for part in jitter)
    means = images.mean((1, 2, 3), keepdim=True)
    return (images - means) * factors + means + offsets


def cropped(images: Tensor, crops: Tensor) -> Tensor:
    """The crops of ``images``, enlarged bilinearly to the whole size; differentiable in these."""
    crops = crops.to(images.device, images.dtype)
    grid = functional.affine_grid(crops, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
