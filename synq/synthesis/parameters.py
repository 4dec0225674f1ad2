"""What is optimised: the pixels themselves, or the Fourier coefficients of natural amplitudes.

A photograph's amplitudes fall about as 1 / f (Field, 1987). Adam moves every parameter by steps of
one size, whatever its gradient: on pixels that is white noise, which nothing in the statistics of
the layers takes away; on coefficients that are scaled by 1 / f it is an image (Olah et al.,
"Feature Visualization", Distill 2017).
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

# Noise -> what is optimised, and how it becomes the images.
Parameters = Callable[[Tensor], tuple[Tensor, Callable[[], Tensor]]]


def pixels(noise: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """Images ``[N, C, H, W]`` that begin as the noise itself."""
    images = noise.clone().requires_grad_()
    return images, lambda: images


def fourier(noise: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
    """Images that begin as pink noise of the same mean square, by its coefficients over 1 / f.

    The coefficients ``[N, C, H, W // 2 + 1, 2]`` (real and imaginary parts) begin as those of white
    noise, of size one.
    """
    height, width = noise.shape[-2:]
    scale = natural_amplitudes(height, width).to(noise.device) * (height * width) ** 0.5
    white = torch.fft.rfft2(noise) / (height * width) ** 0.5
    coefficients = torch.view_as_real(white).clone().requires_grad_()

    def images() -> Tensor:
        spectrum = torch.view_as_complex(coefficients) * scale
        return torch.fft.irfft2(spectrum, s=(height, width))

    return coefficients, images


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


PARAMETERS: Mapping[str, Parameters] = {"pixels": pixels, "fourier": fourier}
