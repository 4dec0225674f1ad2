"""The scale of images that the synthesis knows, and that of a network which takes another one.

Noise of deviation 1, learning rates of pixels and jitter are for images normalised by the mean and
the standard deviation of images. A network that takes [0, 1] or 0 to 255 as they are, since it
normalises by itself or not at all, names numbers that are those of no images.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Of photographs in [0, 1], where the network does not say it.
MEAN, DEVIATION = 0.45, 0.25
SMALLEST_DEVIATION = 0.02  # that images have: five levels of 255


class Scale(NamedTuple):
    """What a network takes is ``unit`` x a normalised image + ``offset``, ``[C, 1, 1]`` each."""

    unit: Tensor
    offset: Tensor

    @property
    def usual(self) -> bool:
        """Whether the network takes normalised images as they are."""
        return bool((self.unit == 1).all() and (self.offset == 0).all())

    def of_network(self, images: Tensor) -> Tensor:
        """Normalised images ``[N, C, H, W]`` as the network takes them."""
        unit, offset = (part.to(images.device, images.dtype) for part in self)
        return images * unit + offset

    def of_images(self, images: Tensor) -> Tensor:
        """What the network takes ``[N, C, H, W]`` as normalised images."""
        unit, offset = (part.to(images.device, images.dtype) for part in self)
        return (images - offset) / unit


def scale_of(mean: Sequence[float], std: Sequence[float]) -> Scale:
    """The scale of a network whose input is (x - mean) / std of images x in [0, 1]."""
    if all(map(_of_images, mean, std)):
        return Scale(torch.ones(len(mean), 1, 1), torch.zeros(len(mean), 1, 1))
    deviations = torch.tensor(std)[:, None, None]
    return Scale(DEVIATION / deviations, (MEAN - torch.tensor(mean)[:, None, None]) / deviations)


def _of_images(mean: float, std: float) -> bool:
    """Whether images in [0, 1] can have them: black and white ones deviate most."""
    inside = 0 < mean < 1 and std >= SMALLEST_DEVIATION
    return inside and std <= math.sqrt(mean * (1 - mean)) + 1e-6


class Rescaled(nn.Module):
    """A network behind a ``Scale``, which takes normalised images."""

    def __init__(self, network: nn.Module, scale: Scale) -> None:
        super().__init__()
        self.network, self.scale = network, scale
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        """The logits for normalised images ``[N, C, H, W]``."""
        logits: Tensor = self.network(self.scale.of_network(images))
        return logits


def rescaled(network: nn.Module, scale: Scale) -> nn.Module:
    """The network itself where it takes normalised images."""
    return network if scale.usual else Rescaled(network, scale)
