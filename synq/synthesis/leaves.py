"""Dead leaves: images of shapes that cover one another, drawn without any data.

Shapes of random place, colour and texture whose sizes r fall as r^-3 have edges, even regions and
correlations as photographs have them at every scale (Lee, Mumford and Huang, "Occlusion models for
natural images", IJCV 2001), and networks learn from them alone what noise does not teach (Baradad
et al., "Learning to See by Looking at Noise", NeurIPS 2021).
"""

import math

import torch
from torch import Tensor

from synq.synthesis.parameters import natural_amplitudes

LEAVES = 40  # behind which nothing of the first ones is seen
SIZES = (0.08, 0.6)  # of the image's height, the smallest and the largest radius
# Shares of the variance that all channels have in common: photographs are mostly grey.
COMMON_COLOUR, COMMON_TEXTURE = 0.6, 0.8
TEXTURE = 0.3  # mean amplitude of a leaf's texture, in standard deviations of the colours
CONTRAST, BRIGHTNESS = (0.6, 1.3), 0.4  # of whole images: a range, and a standard deviation


def dead_leaves(count: int, shape: tuple[int, int, int], generator: torch.Generator) -> Tensor:
    """``count`` images of ``shape`` ``[C, H, W]``, normalised; the generator lives on the CPU.

    Each image has a mean of deviation ``BRIGHTNESS`` and a standard deviation in ``CONTRAST``.
    """
    channels, height, width = shape

    def uniform() -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=generator)

    def mixed(common: float, *size: int) -> Tensor:
        """Normal numbers ``[N, C, *size]`` of which channels share so much of the variance."""
        own = torch.randn(count, channels, *size, generator=generator)
        shared = torch.randn(count, 1, *size, generator=generator)
        return math.sqrt(common) * shared + math.sqrt(1 - common) * own

    def texture() -> Tensor:
        spectrum = torch.fft.rfft2(mixed(COMMON_TEXTURE, height, width))
        return torch.fft.irfft2(spectrum * natural_amplitudes(height, width), s=(height, width))

    rows, columns = torch.meshgrid(
        torch.arange(height, dtype=torch.float32),
        torch.arange(width, dtype=torch.float32),
        indexing="ij",
    )
    smallest, largest = ((height * size) ** -2 for size in SIZES)
    images = texture()
    for _ in range(LEAVES):
        # P(r) ~ r^-3, by the inverse of its distribution.
        radius = (smallest + (largest - smallest) * uniform()).rsqrt()
        angle, stretch = 2 * math.pi * uniform(), 0.5 + uniform()
        x, y = columns - width * uniform(), rows - height * uniform()
        along = (x * angle.cos() + y * angle.sin()) * stretch
        across = (y * angle.cos() - x * angle.sin()) / stretch
        kind = torch.randint(3, (count, 1, 1, 1), generator=generator)
        disc = along.square() + across.square() < radius.square()
        box = (along.abs() < radius) & (across.abs() < radius)
        wedge = (across > -radius / 2) & (across < radius - 1.7 * along.abs())
        covered = torch.where(kind == 0, disc, torch.where(kind == 1, box, wedge))
        leaf = mixed(COMMON_COLOUR, 1, 1) + 2 * TEXTURE * uniform() * texture()
        images = torch.where(covered, leaf, images)
    deviation, mean = torch.std_mean(images, (1, 2, 3), keepdim=True)
    contrast = CONTRAST[0] + (CONTRAST[1] - CONTRAST[0]) * uniform()
    brightness = BRIGHTNESS * torch.randn(count, 1, 1, 1, generator=generator)
    return (images - mean) / deviation * contrast + brightness
