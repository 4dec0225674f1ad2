"""Rounding whose errors cancel each other, of weights alone: no images, no training (SQuant).

Cong Guo et al., *SQuant: On-the-Fly Data-Free Quantization via Diagonal Hessian Approximation*
(ICLR 2022): of the Hessian of a layer's output three parts are kept, which need no data. They ask
for a small error of each weight, of each kernel's sum and of each output channel's sum. Rounding to
the nearest code gives the first; then weights are flipped to the code on their other side, as few
as bring a sum within half a step, those with the largest errors first.
"""

import torch
from torch import Tensor

from synq.quantization.affine import Grid


def flipped_codes(weight: Tensor, grid: Grid) -> Tensor:
    """The codes of ``weight`` ``[M, N, ...]``, whole numbers of the same shape.

    In steps, of N kernels in each of M output channels, where every weight has a code on its other
    side: the errors of an output channel add up to 0.5 at most, of a kernel to 1, of a weight to 1,
    and a code is the nearest one or next to it. At the ends of the grid, or where weights are
    clipped by more, there may be too few weights to flip.
    """
    places = weight.double() * grid.inverse.double() + grid.zero_point.double()
    codes = grid.codes(weight.float()).double()
    shape = (*weight.shape[:2], -1)
    places, codes = places.reshape(shape), codes.reshape(shape)
    codes = flip_in_kernels(codes, places, grid)
    codes = flip_in_channels(codes, places, grid)
    return codes.reshape(weight.shape).to(weight.dtype)


def flip_in_kernels(codes: Tensor, places: Tensor, grid: Grid) -> Tensor:
    """Codes ``[M, N, K]`` of which each kernel's errors add up to 0.5 at most (SQuant-K).

    ``places`` are the weights in units of codes, before they are rounded.
    """
    errors = codes - places
    total = errors.sum(2, keepdim=True)
    sign = total.sign()
    able = _able(codes, errors, sign, grid)
    first = _rank(torch.where(able, errors.abs(), -1.0)) < total.abs().round()
    return torch.where(able & first, codes - sign, codes)


def flip_in_channels(codes: Tensor, places: Tensor, grid: Grid) -> Tensor:
    """Codes ``[M, N, K]`` of which each output channel's errors add up to 0.5 at most (SQuant-C).

    In each of the kernels whose errors add up to most one weight is flipped: that with the largest
    error. Where a kernel's sum has changed its sign by the flips before, that is one of theirs, and
    goes back to its nearest code.
    """
    errors = codes - places
    kernels = errors.sum(2)
    total = kernels.sum(1, keepdim=True)
    sign = total.sign()
    able = _able(codes, errors, sign[:, :, None], grid)
    largest, place = torch.where(able, errors.abs(), -1.0).max(2, keepdim=True)
    willing = (kernels * sign > 0) & (largest.squeeze(2) > 0)
    first = _rank(torch.where(willing, kernels.abs(), -1.0)) < total.abs().round()
    step = torch.where(willing & first, sign, 0.0)
    return codes.scatter_add(2, place, -step[:, :, None])


def _able(codes: Tensor, errors: Tensor, sign: Tensor, grid: Grid) -> Tensor:
    """Where a flip makes a sum of this sign smaller, and leaves the code in the grid.

    An error of more than a step is no rounding: a clipped weight's, or float32's own noise where a
    channel is constant and its zero point near 1e8.
    """
    towards = codes - sign
    rounding = (errors * sign > 0) & (errors.abs() <= 1)
    return rounding & (towards >= -grid.half) & (towards < grid.half)


def _rank(scores: Tensor) -> Tensor:
    """The place of each score in its row, 0 for the largest; equal ones keep their order."""
    return scores.argsort(stable=True, dim=-1, descending=True).argsort(-1)
