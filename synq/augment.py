"""Random crops and flips of whole batches, with a generator of their own."""

import torch
from torch import Tensor
from torch.nn import functional

ASPECT = (3 / 4, 4 / 3)


def crop_and_flip(
    images: Tensor, generator: torch.Generator, *, crop_min: float, flip: float
) -> Tensor:
    """A random resized crop and flip of each image of ``[N, C, H, W]``, same shape.

    A crop keeps an area uniform in [crop_min, 1] with an aspect ratio log-uniform in the
    part of [3/4, 4/3] that fits, and is enlarged bilinearly to the whole size; ``flip`` is the
    probability of a mirror image.
    Differentiable in ``images``. The generator lives on the CPU.
    """
    if crop_min >= 1 and flip <= 0:
        return images
    count = len(images)
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
    theta = theta.to(images.device, images.dtype)
    grid = functional.affine_grid(theta, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)
