"""Quantizers: modules that own a grid, which everything else reads.

A quantizer is a submodule of the layer or activation whose tensor it rounds. Forward, export, size
and tables read ``grid``; nothing recomputes it. A new kind is a class here and an entry in
``WEIGHTS`` or ``ACTIVATIONS``.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from typing import Any, Self

import torch
from torch import Tensor, nn

from synq.config.calibration import FLOAT, unmatched
from synq.errors import ConfigError, nearest
from synq.quantization.affine import (
    SMALLEST_RANGE,
    Grid,
    LearnedGrid,
    channel_ranges,
    fake_quantize,
    grid_of_range,
    learned_quantize,
    symmetric_grid,
)


class Quantizer(nn.Module):
    """Rounds tensors to a grid of ``bits``, one grid per output channel or one per tensor.

    ``axes`` is the shape of scale and zero point: ``(C, 1, 1, 1)`` for the weight of a convolution
    (per output channel), ``()`` per tensor. While an ``observer`` is set it is shown every tensor
    before that is rounded. A ``symmetric`` one has its zero point at 0, and a ``whole`` one spans
    the extremes, whatever the estimator of ranges.
    """

    symmetric = whole = False

    def __init__(self, bits: int, axes: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.bits, self.axes = bits, axes
        self.observer: Callable[[Tensor], None] | None = None

    @property
    def grids(self) -> int:
        """How many scales and zero points there are."""
        return max(self.axes, default=1)

    def grid(self, values: Tensor) -> Grid:
        """The grid that ``values`` are rounded to."""
        return self.spanning(*channel_ranges(values))

    def spanning(self, lo: Tensor, hi: Tensor) -> Grid:
        """The grid over ``[lo, hi]``."""
        make = symmetric_grid if self.symmetric else grid_of_range
        return make(lo, hi, self.bits)

    def set_range(self, lo: Tensor, hi: Tensor) -> None:
        """Let the grid span ``[lo, hi]`` from now on, where it does not follow the values."""

    def rounded(self, values: Tensor) -> Tensor:
        return fake_quantize(values, self.grid(values))

    def forward(self, values: Tensor) -> Tensor:
        if self.observer is not None:
            self.observer(values)
        return self.rounded(values)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


class FullPrecision(Quantizer):
    """Rounds nothing: of what a recipe keeps as it is."""

    def __init__(self) -> None:
        super().__init__(FLOAT)

    def rounded(self, values: Tensor) -> Tensor:
        return values


class MinMax(Quantizer):
    """From the smallest to the largest weight of each output channel, anew at every forward."""


class StaticRange(Quantizer):
    """Between two ends that calibration sets once: buffers ``lo`` and ``hi``."""

    lo: Tensor
    hi: Tensor

    def __init__(self, bits: int, axes: tuple[int, ...] = ()) -> None:
        super().__init__(bits, axes)
        self.register_buffer("lo", torch.zeros(axes))
        self.register_buffer("hi", torch.zeros(axes))

    def grid(self, values: Tensor) -> Grid:
        return self.spanning(self.lo, self.hi)

    def set_range(self, lo: Tensor, hi: Tensor) -> None:
        self.lo.copy_(lo)
        self.hi.copy_(hi)


class LearnedStep(Quantizer):
    """A scale that is trained with the weights, from where calibration sets it (LSQ).

    The zero point, a buffer, stays what calibration made it: a whole number that an integer runtime
    takes. See ``synq.quantization.affine.learned_quantize``, which has ``scaling`` of a training.
    """

    zero_point: Tensor
    scaling = 0.0

    def __init__(self, bits: int, axes: tuple[int, ...] = ()) -> None:
        super().__init__(bits, axes)
        self.log_scale = nn.Parameter(torch.zeros(axes))
        self.register_buffer("zero_point", torch.zeros(axes))

    def grid(self, values: Tensor) -> Grid:
        scale = self.log_scale.detach().exp()
        return LearnedGrid(scale, self.zero_point, 1 / scale, self.bits)

    def spanning(self, lo: Tensor, hi: Tensor) -> Grid:
        if self.symmetric:
            return super().spanning(lo, hi)
        # Held by codes: a zero point outside them, that the range of a constant channel has, would
        # multiply each change of the scale.
        lo, hi = lo.clamp_max(0), hi.clamp_min(0)
        scale = (hi - lo).clamp_min(SMALLEST_RANGE) / (2**self.bits - 1)
        zero_point = -(lo / scale).round() - 2 ** (self.bits - 1)
        return LearnedGrid(scale, zero_point, 1 / scale, self.bits)

    def set_range(self, lo: Tensor, hi: Tensor) -> None:
        grid = self.spanning(lo, hi)
        self.log_scale.data.copy_(grid.scale.log())
        self.zero_point.copy_(grid.zero_point)

    def rounded(self, values: Tensor) -> Tensor:
        return learned_quantize(values, self.log_scale, self.zero_point, self.bits, self.scaling)


class Open(Quantizer):
    """Rounds nothing: for a network of floats with the student's quantizers in their places.

    What is given is a copy, so that what works in place afterwards leaves the observer's as it was.
    """

    def rounded(self, values: Tensor) -> Tensor:
        return values.clone()


# With squant it is calibration that rounds, and gives the range.
WEIGHTS: Mapping[str, type[Quantizer]] = {
    "minmax": MinMax,
    "learned": LearnedStep,
    "squant": StaticRange,
    "open": Open,
}
ACTIVATIONS: Mapping[str, type[Quantizer]] = {
    "static": StaticRange,
    "learned": LearnedStep,
    "open": Open,
}


@dataclass(frozen=True)
class Recipe:
    """Which quantizer each tensor gets; a part of a student's record, so that it can be rebuilt.

    ``ends`` are the bits of the first and the last layer's weights, 0 for those of all; ``keep``
    maps names, or patterns of them (``*.attention.*``), to other bits, 32 for full precision. A
    layer's name is that of its weight, and ``convert.quantized_names`` has those of activations.
    ``scope`` says which tensors are quantized beside the weights, and ``sum_bits`` are those of the
    image and of all that ``everything`` adds.
    """

    weight_bits: int
    activation_bits: int
    weights: str = "minmax"
    activations: str = "static"
    ends: int = 0
    keep: Mapping[str, int] | None = None
    scope: str = "calls"
    sum_bits: int = 8

    def kept(self, name: str) -> int:
        """The bits that ``keep`` has for a name, 0 for none.

        The name itself counts before any pattern, and a later pattern before an earlier one.
        """
        keep = self.keep or {}
        found = [bits for pattern, bits in keep.items() if fnmatchcase(name, pattern)]
        return keep.get(name, 0) or (found[-1] if found else 0)

    def fixed(self, name: str, position: int, count: int) -> int:
        """Bits that the ``position``-th of ``count`` layers has of its own, 0 for the run's."""
        return self.kept(name) or (self.ends if position in (0, count - 1) else 0)

    def resolved(self, names: Iterable[str]) -> Self:
        """The same with names in place of patterns, of which a record does not keep the order.

        Raises ConfigError for a pattern that none of the ``names`` matches.
        """
        names = list(names)
        for pattern in self.keep or {}:
            refusal = unmatched(pattern, names)
            if refusal:
                raise ConfigError(f"calibration.keep_bits names {pattern!r}, but {refusal}")
        kept = {name: self.kept(name) for name in names if self.kept(name)}
        return replace(self, keep=kept or None)

    def of_weight(self, name: str, position: int, count: int, axes: tuple[int, ...]) -> Quantizer:
        """The quantizer of layer ``name``, the ``position``-th of ``count`` in order."""
        kind = _kind(WEIGHTS, self.weights, "weights")
        bits = self.fixed(name, position, count) or self.weight_bits
        if bits == FLOAT:
            return FullPrecision()
        quantizer = kind(bits, axes)
        # Integer kernels take 8 bits of weights with no zero point; fewer become 8 without one.
        quantizer.symmetric = self.scope == "everything" and bits == 8
        return quantizer

    def of_activation(self, name: str = "") -> Quantizer:
        kind = _kind(ACTIVATIONS, self.activations, "activations")
        bits = self.kept(name) or self.activation_bits
        return FullPrecision() if bits == FLOAT else kind(bits)

    def of_sum(self, name: str = "") -> Quantizer:
        """The quantizer of the image, or of what ``everything`` adds: clipping is for few codes."""
        kind = _kind(ACTIVATIONS, self.activations, "activations")
        bits = self.kept(name) or self.sum_bits
        if bits == FLOAT:
            return FullPrecision()
        quantizer = kind(bits)
        quantizer.whole = True
        return quantizer

    def record(self) -> dict[str, Any]:
        return asdict(self)


def _kind(known: Mapping[str, type[Quantizer]], name: str, what: str) -> type[Quantizer]:
    if name not in known:
        raise ConfigError(f"the quantizer of {what} is {name!r}; {nearest(name, known)}")
    return known[name]
