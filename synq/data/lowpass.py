"""Gaussian low-pass filter against the noise of synthetic images (paper, equation 4)."""

import math

import torch
from torch import Tensor


def cutoff_bins(size: int, sigma: float) -> float:
    """D0 in frequency bins that blurs an axis of ``size`` pixels by a Gaussian of ``sigma`` px.

    exp(-D^2 / (2 D0^2)) is the transform of a Gaussian of sigma = size / (2 pi D0): the paper's
    D0 = 80 at 224 pixels is 0.45 px.
    """
    return size / (2 * math.pi * sigma)


def transfer_function(height: int, width: int, cutoff: tuple[float, float]) -> Tensor:
    """H(u, v) = exp(-D(u, v)^2 / (2 D0^2)) for a real FFT, ``[height, width // 2 + 1]``.

    ``cutoff`` is D0 along the height and the width, in bins; the paper has one D0 for both.
    """
    vertical = torch.fft.fftfreq(height, 1 / height, dtype=torch.float64) / cutoff[0]
    horizontal = torch.fft.rfftfreq(width, 1 / width, dtype=torch.float64) / cutoff[1]
    distance = vertical[:, None].square() + horizontal[None, :].square()
    return torch.exp(-distance / 2).float()


def blur_transfer(height: int, width: int, sigma: float) -> Tensor:
    """Transfer function of a Gaussian blur of ``sigma`` pixels along both axes."""
    return transfer_function(height, width, (cutoff_bins(height, sigma), cutoff_bins(width, sigma)))


def lowpass(images: Tensor, transfer: Tensor) -> Tensor:
    """F^-1(F(x) H) of ``images`` ``[N, C, H, W]``, same shape; ``transfer`` as built above."""
    spectrum = torch.fft.rfft2(images) * transfer
    return torch.fft.irfft2(spectrum, s=images.shape[-2:])
