"""The arithmetic of quantization: grids, codes, and their gradients.

A grid of k bits has the values ``scale (code - zero_point)`` of the codes -2^(k-1) to 2^(k-1) - 1.
The range [lo, hi] gives (paper, section 2, "quantization scheme")

    scale = max(hi - lo, 1e-8) / (2^k - 1)        zero_point = -round(lo / scale) - 2^(k-1)
    code  = clamp(round(v / scale + zero_point), -2^(k-1), 2^(k-1) - 1)

The zero point is a whole number, and not always a code: it is far outside for a range that does not
hold 0.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

SMALLEST_RANGE = 1e-8


class Grid(NamedTuple):
    """What values are rounded to; scale and zero point broadcast against the values.

    ``scale`` is in real units per code, as in ONNX and torchao. ``inverse`` is codes per real unit:
    the published program multiplies by it, and ``1 / (1 / x)`` is not x in float32.
    """

    scale: Tensor
    zero_point: Tensor
    inverse: Tensor
    bits: int

    @property
    def half(self) -> int:
        """The codes are from minus this to one less."""
        return int(2 ** (self.bits - 1))

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """The values of the first and the last code."""
        first = -self.half - self.zero_point
        return first / self.inverse, (first + 2**self.bits - 1) / self.inverse

    def codes(self, values: Tensor) -> Tensor:
        """The codes of ``values``, whole numbers as floats of the same shape."""
        places = (values * self.inverse).add_(self.zero_point)
        return places.round_().clamp_(-self.half, self.half - 1)

    def values(self, codes: Tensor) -> Tensor:
        """What the codes stand for."""
        return (codes - self.zero_point).div_(self.inverse)


class LearnedGrid(Grid):
    """A grid whose scale is trained: values are divided by it, as its forward does.

    A product with the inverse would round some of those halfway between two codes to the other one.
    """

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        first = -self.half - self.zero_point
        return first * self.scale, (first + 2**self.bits - 1) * self.scale

    def codes(self, values: Tensor) -> Tensor:
        places = (values / self.scale).add_(self.zero_point)
        return places.round_().clamp_(-self.half, self.half - 1)

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.zero_point).mul_(self.scale)


def grid_of_range(lo: Tensor, hi: Tensor, bits: int) -> Grid:
    """The grid of ``2**bits`` values over ``[lo, hi]``, of the shape of ``lo``."""
    inverse = (2**bits - 1) / (hi - lo).clamp_min(SMALLEST_RANGE)
    zero_point = -(inverse * lo).round() - 2 ** (bits - 1)
    return Grid(1 / inverse, zero_point, inverse, bits)


def symmetric_grid(lo: Tensor, hi: Tensor, bits: int) -> Grid:
    """The grid whose zero point is 0 and whose largest code is the larger end; the first is unused.

    So that the negated codes are codes as well, which a negative factor behind the layer needs.
    """
    largest = torch.maximum(lo.abs(), hi.abs())
    scale = largest.clamp_min(SMALLEST_RANGE) / (2 ** (bits - 1) - 1)
    return Grid(scale, torch.zeros_like(scale), 1 / scale, bits)


def channel_ranges(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each output channel (first axis), shaped to broadcast."""
    flat = weight.detach().flatten(1)
    shape = (-1,) + (1,) * (weight.dim() - 1)
    lo, hi = torch.aminmax(flat, dim=1)
    return lo.view(shape), hi.view(shape)


class _StraightThrough(torch.autograd.Function):
    """Quantize and dequantize; the gradient is that of the identity, so nothing is stored."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, grid: Grid) -> Tensor:
        return grid.values(grid.codes(values.float())).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def fake_quantize(values: Tensor, grid: Grid) -> Tensor:
    """``values`` rounded to the grid, same shape.

    The gradient passes straight through to the values, also where they were clipped (as the
    published program has it).
    """
    return _StraightThrough.apply(values, grid)


class _Learned(torch.autograd.Function):
    """Quantize and dequantize with a gradient to the values and to the logarithm of the scale."""

    @staticmethod
    def forward(
        ctx: Any, values: Tensor, log_scale: Tensor, zero_point: Tensor, bits: int, scaling: float
    ) -> Tensor:
        scale = log_scale.exp()
        places = (values.float() / scale).add_(zero_point)
        ctx.save_for_backward(places, scale, zero_point)
        ctx.scaling = scaling
        ctx.ends = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        codes = places.round().clamp_(*ctx.ends)
        return codes.sub_(zero_point).mul_(scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        places, scale, zero_point = ctx.saved_tensors
        gradient = gradients[0]
        inside = (places >= ctx.ends[0]) & (places <= ctx.ends[1])
        # d v_hat / d scale: the rounding error inside, the code itself where it was clipped.
        slope = torch.where(inside, places, zero_point).neg_()
        slope.add_(places.round().clamp_(*ctx.ends)).mul_(gradient)
        of_scale = slope.sum_to_size(scale.shape) * scale
        passed = gradient * inside
        if ctx.scaling:
            passed *= 1 + ctx.scaling * gradient.sign() * (places - places.round())
        return passed, of_scale, None, None, None


def learned_quantize(
    values: Tensor, log_scale: Tensor, zero_point: Tensor, bits: int, scaling: float = 0.0
) -> Tensor:
    """``values`` rounded to the grid of a learned scale, same shape (LSQ, Esser et al., ICLR 2020).

    d v_hat / d scale = round(v / scale) - v / scale inside the grid, and the code (counted from the
    zero point) outside. The gradient to the values is 1 inside and 0 outside: a clipped value can
    do nothing about its error. The scale is a logarithm, so that it stays positive and a step
    changes it by a share of itself.

    With ``scaling`` d the gradient g to a value inside is g (1 + d sign(g) (v - v_hat) / scale):
    larger where the step that it asks for leads to the code's middle (EWGS, Lee et al., CVPR 2021).
    """
    return _Learned.apply(values, log_scale, zero_point, bits, scaling)
