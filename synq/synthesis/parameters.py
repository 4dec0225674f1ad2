"""What is optimised: the pixels themselves, or the Fourier coefficients of natural amplitudes.

A photograph's amplitudes fall about as 1 / f (Field, 1987). Adam moves every parameter by steps of
one size, whatever its gradient: on pixels that is white noise, which nothing in the statistics of
the layers takes away; on coefficients that are scaled by 1 / f it is an image (Olah et al.,
"Feature Visualization", Distill 2017).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Parameters(NamedTuple):
    """What is optimised, of white noise or of images ``[N, C, H, W]``; and the images of it.

    ``images`` takes what is optimised, and height and width.
    """

    of_noise: Callable[[Tensor], Tensor]
    of_images: Callable[[Tensor], Tensor]
    images: Callable[[Tensor, tuple[int, int]], Tensor]


def coefficients_of_noise(noise: Tensor) -> Tensor:
    """Real and imaginary parts ``[N, C, H, W // 2 + 1, 2]``, of size one.

    The images of them are pink noise of the mean square of ``noise``.
    """
    height, width = noise.shape[-2:]
    return torch.view_as_real(torch.fft.rfft2(noise) / (height * width) ** 0.5)


def coefficients_of_images(images: Tensor) -> Tensor:
    """The coefficients over 1 / f whose images these are."""
    return torch.view_as_real(torch.fft.rfft2(images) / _scale(images.shape[-2:], images.device))


def images_of_coefficients(coefficients: Tensor, size: tuple[int, int]) -> Tensor:
    """The images ``[N, C, H, W]``."""
    spectrum = torch.view_as_complex(coefficients) * _scale(size, coefficients.device)
    return torch.fft.irfft2(spectrum, s=size)


def _scale(size: Sequence[int], device: torch.device) -> Tensor:
    height, width = size
    return natural_amplitudes(height, width).to(device) * (height * width) ** 0.5


def natural_amplitudes(height: int, width: int) -> Tensor:
    """1 / f for each coefficient of a real FFT, ``[H, W // 2 + 1]``, of mean square 1 over all.

    The constant's frequency is taken for the lowest other one's.
    """
    vertical = torch.fft.fftfreq(height, dtype=torch.float64)
    every = (
        vertical[:, None].square() + torch.fft.fftfreq(width, dtype=torch.float64).square()
    ).sqrt()
    amplitudes = 1 / every.clamp_min(1 / max(height, width))
    return (amplitudes / amplitudes.square().mean().sqrt())[:, : width // 2 + 1].float()


# The names are choices of ``synthesis.parameters``; the others are networks: see ``generators``.
PARAMETERS: Mapping[str, Parameters] = {
    "pixels": Parameters(torch.clone, torch.clone, lambda pixels, _: pixels),
    "fourier": Parameters(coefficients_of_noise, coefficients_of_images, images_of_coefficients),
}
