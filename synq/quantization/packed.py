"""A student packed to the bit: the layout of ``docs/packed.md``, there and back.

Weights are codes of exactly their bits with a scale and a zero point for each output channel, and
what is not quantized stays as it is. A grid that follows the weights' own minimum and maximum
(MinMax) is not that of the rounded weights: these end half a step inside or outside of it, and its
scale differs in the last bit. So the ends ``lo`` and ``hi`` are packed too, and a weight of each
channel becomes either of them again. Of a learned step the logarithm is packed beside the scale: a
reader's exponential need not be torch's to the last bit.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy
import torch
from torch import Tensor, nn

from synq.errors import ArtifactError, ModelError, reason
from synq.models.weights import COUNTER
from synq.quantization.affine import (
    Grid,
    channel_ranges,
    fake_quantize,
    grid_of_range,
    symmetric_grid,
)
from synq.quantization.convert import activation_quantizers, weight_quantizers
from synq.quantization.layers import (
    QuantConvTranspose2d,
    QuantizedWeight,
    QuantMultiheadAttention,
    swap_channels,
)
from synq.quantization.quantizers import LearnedStep, MinMax, Quantizer, StaticRange

# What the names of the activations' tensors begin with, and of those that are a quantizer's own.
ACTIVATIONS, KEPT = "activations", "kept."

# Quantizers of weights whose student comes back.
REBUILT: set[type] = {MinMax, StaticRange, LearnedStep}

# Codes that are packed at a time; whole bytes at any width.
PIECE = 1 << 20


def pack(student: nn.Module) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The packed tensors of a student on the CPU, and the part of the record that describes them.

    Raises ModelError where these would not give the student again.
    """
    state = {
        name: value.detach().contiguous()
        for name, value in student.state_dict().items()
        if name.split(".")[-1] != COUNTER
    }
    activations = _activations(student)
    kept = {f"{name}.{own}" for name, quantizer in activations.items() for own in _own(quantizer)}
    aliases = {name: first for name, first in _aliases(student).items() if name not in kept}
    layers = {weight_key(name, layer): layer for name, layer in weight_quantizers(student).items()}
    without = {*layers, *aliases, *kept}
    # Of a learned step it is what is packed for the codes.
    without |= {
        zero_point_key(key)
        for key, layer in layers.items()
        if key not in aliases and isinstance(layer.weight_quantizer, LearnedStep)
    }
    tensors = {name: value for name, value in state.items() if name not in without}
    weights: dict[str, Any] = {}
    for key, layer in layers.items():
        if key not in aliases:
            tensors |= {f"{key}.{part}": value for part, value in _packed_weight(layer).items()}
            shape = list(layer.by_output(layer.weight).shape)
            weights[key] = {"bits": layer.weight_quantizer.bits, "shape": shape}
            if layer.weight_quantizer.symmetric:
                weights[key]["symmetric"] = True
            if isinstance(layer.weight_quantizer, LearnedStep):
                weights[key]["learned"] = True
            if isinstance(layer, QuantConvTranspose2d):
                weights[key]["groups"] = layer.groups
    for part, values in _packed_activations(activations).items():
        tensors[f"{ACTIVATIONS}.{part}"] = values
    layout: dict[str, Any] = {
        "weights": weights,
        "activations": {name: quantizer.bits for name, quantizer in activations.items()},
        "aliases": aliases,
    }
    # Of a kind that this module does not know, the codes are packed and a reader has all of them;
    # the weights behind a grid that follows them in its own way are not found again.
    kinds: set[type] = {type(layer.weight_quantizer) for layer in layers.values()}
    layout["rebuilt"] = kinds <= REBUILT
    if layout["rebuilt"]:
        _check(student, state, layers, unpack(tensors, layout))
    return tensors, layout


def _check(
    student: nn.Module,
    state: Mapping[str, Tensor],
    layers: Mapping[str, QuantizedWeight],
    found: Mapping[str, Tensor],
) -> None:
    """ModelError where a state is not the one that a student's forward reads."""
    same = found.keys() == state.keys()
    same = same and all(torch.equal(found[n], v) for n, v in state.items() if n not in layers)
    for key, layer in layers.items():
        own, packed = layer.by_output(state[key]), layer.by_output(found[key])
        quantizer = layer.weight_quantizer
        same = same and torch.equal(quantizer.rounded(packed), quantizer.rounded(own))
        pairs = zip(quantizer.grid(packed)[:3], quantizer.grid(own)[:3], strict=True)
        same = same and all(torch.equal(one, other) for one, other in pairs)
    if not same:
        raise ModelError(f"{type(student).__name__} cannot be packed: it would not be the same")


def unpack(tensors: Mapping[str, Tensor], layout: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state dict of a student of which every forward is the packed one's.

    Without the counters of BatchNorm, which no forward reads. Raises ArtifactError where tensors
    and layout do not fit each other.
    """
    if not layout.get("rebuilt", True):
        raise ArtifactError(
            "its weights have quantizers of a kind that is not rebuilt from codes; "
            "use student.safetensors"
        )
    try:
        return _unpacked(tensors, layout)
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise ArtifactError(f"its tensors are not what its record says ({reason(error)})") from None


def _unpacked(tensors: Mapping[str, Tensor], layout: Mapping[str, Any]) -> dict[str, Tensor]:
    rest = dict(tensors)
    state: dict[str, Tensor] = {}
    for key, about in layout["weights"].items():
        parts = ("codes", "scale", "zero_point", "range")
        packed = {part: rest.pop(f"{key}.{part}") for part in parts if f"{key}.{part}" in rest}
        shape, bits = about["shape"], about["bits"]
        codes = codes_in(packed["codes"], bits, math.prod(shape)).view(shape)
        values = _values(packed, codes)
        if "range" in packed:
            make = symmetric_grid if about.get("symmetric") else grid_of_range
            lo, hi = (end.view((-1,) + (1,) * (values.dim() - 1)) for end in packed["range"])
            values = _within(values, codes, lo, hi, make(lo, hi, bits))
        state[key] = swap_channels(values, about["groups"]) if "groups" in about else values
        # Files that do not say so were written before, and have it among the rest.
        if about.get("learned"):
            zero_point = packed["zero_point"].view((-1,) + (1,) * (values.dim() - 1))
            state[zero_point_key(key)] = (zero_point.long() - 2 ** (bits - 1)).float()
    for name in [name for name in rest if name.startswith(f"{ACTIVATIONS}.")]:
        own, values = name.removeprefix(f"{ACTIVATIONS}."), rest.pop(name)
        if own.startswith(KEPT):
            for value, quantizer in zip(values, sorted(layout["activations"]), strict=True):
                state[f"{quantizer}.{own.removeprefix(KEPT)}"] = value.clone()
    state |= rest
    return state | {alias: state[key] for alias, key in layout["aliases"].items()}


def _within(rounded: Tensor, codes: Tensor, lo: Tensor, hi: Tensor, grid: Grid) -> Tensor:
    """Weights from ``lo`` to ``hi`` in each channel that the grid rounds to ``rounded``.

    They are those themselves, but for the smallest and the largest, which are the ends.
    """
    values = rounded.clamp(lo, hi)
    wrong = fake_quantize(values, grid) != rounded
    if wrong.any():
        values = torch.where(wrong, _smallest(rounded, lo, hi, grid), values)
    flat, own = values.flatten(1), codes.flatten(1)
    first = own.argmin(1, keepdim=True)
    last = own.shape[1] - 1 - own.flip(1).argmax(1, keepdim=True)
    flat = flat.scatter(1, first, lo.flatten(1)).scatter(1, last, hi.flatten(1))
    return flat.view_as(rounded)


def _smallest(rounded: Tensor, lo: Tensor, hi: Tensor, grid: Grid) -> Tensor:
    """The smallest numbers from ``lo`` to ``hi`` that are rounded to ``rounded``, by bisection.

    For channels whose values are so near to one another, and so far from 0, that float32 has few
    numbers between them: there a rounded value need not be rounded to itself.
    """
    low, high = (_ordered(end).expand_as(rounded).clone() for end in (lo, hi))
    while bool((low < high).any()):
        middle = (low + high).div(2, rounding_mode="floor")
        reached = fake_quantize(_number(middle), grid) >= rounded
        high = torch.where(reached & (low < high), middle, high)
        low = torch.where(~reached & (low < high), middle + 1, low)
    return _number(low)


def _ordered(numbers: Tensor) -> Tensor:
    """Whole numbers in the order of float32 ones, neighbours of neighbours."""
    bits = numbers.contiguous().view(torch.int32).long()
    return torch.where(bits < 0, -(bits & 0x7FFFFFFF), bits)


def _number(places: Tensor) -> Tensor:
    """The float32 numbers that ``_ordered`` has put there."""
    size = places.abs().to(torch.int32).view(torch.float32)
    return torch.where(places < 0, -size, size)


def _activations(student: nn.Module) -> dict[str, Quantizer]:
    """The quantizers of activations under every name, of those with several too, by name."""
    known = set(activation_quantizers(student).values())
    modules: Any = student.named_modules(remove_duplicate=False)
    return dict(sorted((name, module) for name, module in modules if module in known))


def _aliases(student: nn.Module) -> dict[str, str]:
    """Further names of tensors that a network has under several -> the first of them."""
    first: dict[int, str] = {}
    state = student.state_dict(keep_vars=True)
    return {
        name: first[id(value)]
        for name, value in state.items()
        if first.setdefault(id(value), name) != name and name.split(".")[-1] != COUNTER
    }


def weight_key(name: str, layer: QuantizedWeight) -> str:
    """The state-dict key of a layer's quantized weight."""
    own = "in_proj_weight" if isinstance(layer, QuantMultiheadAttention) else "weight"
    return f"{name}.{own}".lstrip(".")


def zero_point_key(key: str) -> str:
    """The state-dict key of a learned step's zero point, by that of the weight."""
    return f"{key.rpartition('.')[0]}.weight_quantizer.zero_point".lstrip(".")


def stream_of(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers of ``bits`` bits as bytes: the first in the lowest bits of the first byte."""
    pieces = []
    for piece in codes.flatten().to(torch.uint8).split(PIECE):
        single = numpy.unpackbits(piece.numpy()[:, None], axis=1, count=bits, bitorder="little")
        pieces.append(numpy.packbits(single, bitorder="little"))
    return torch.from_numpy(numpy.concatenate(pieces))


def codes_in(stream: Tensor, bits: int, count: int) -> Tensor:
    """The ``count`` numbers that ``stream_of`` has packed."""
    whole = stream.numpy()
    if len(whole) != -(-count * bits // 8):
        raise ValueError(f"{len(whole)} bytes for {count} codes of {bits} bits")
    pieces = []
    for first in range(0, count, PIECE):
        number = min(PIECE, count - first)
        own = whole[first * bits // 8 :][: -(-number * bits // 8)]
        single = numpy.unpackbits(own, count=number * bits, bitorder="little")
        table = single.reshape(number, bits)
        pieces.append(numpy.packbits(table, axis=1, bitorder="little")[:, 0])
    return torch.from_numpy(numpy.concatenate(pieces))


def _packed_weight(layer: QuantizedWeight) -> dict[str, Tensor]:
    weight = layer.by_output(layer.weight.detach()).contiguous()
    quantizer = layer.weight_quantizer
    codes = quantizer.grid(weight).codes(weight) + quantizer.grid(weight).half
    scale, zero_point = _scale_and_zero_point(quantizer, weight)
    packed = {
        "codes": stream_of(codes, quantizer.bits),
        "scale": _single(scale.flatten()),
        "zero_point": _narrow(zero_point.flatten()),
    }
    if isinstance(quantizer, MinMax):
        lo, hi = channel_ranges(weight)
        packed["range"] = torch.stack([lo.flatten(), hi.flatten()])
    if not torch.equal(_values(packed, codes), quantizer.rounded(weight)):
        raise ModelError(f"a quantizer {type(quantizer).__name__} rounds to what no grid has")
    return packed


def _values(packed: Mapping[str, Tensor], codes: Tensor) -> Tensor:
    """What a reader of the file computes: see ``docs/packed.md``."""
    axes = (-1,) + (1,) * (codes.dim() - 1)
    zero_point, scale = packed["zero_point"].view(axes), packed["scale"].view(axes)
    steps = (codes.long() - zero_point.long()).float()
    return (steps.double() * scale.double()).float()


def _scale_and_zero_point(quantizer: Quantizer, values: Tensor) -> tuple[Tensor, Tensor]:
    """Of codes from 0 on: a scale in float64 and a whole number.

    The double makes one product of what a student has as a division by the inverse (MinMax,
    StaticRange) or a product with a scale in float32 (LearnedStep): it rounds to the same float32.
    """
    grid = quantizer.grid(values)
    scale = grid.scale.double() if isinstance(quantizer, LearnedStep) else 1 / grid.inverse.double()
    return scale, grid.zero_point.long() + grid.half


def _narrow(numbers: Tensor) -> Tensor:
    """The same numbers in the smallest type of integers that holds them."""
    for kind in (torch.int8, torch.int16, torch.int32):
        if torch.equal(numbers.to(kind).long(), numbers):
            return numbers.to(kind)
    return numbers


def _single(numbers: Tensor) -> Tensor:
    """The same numbers as float32 where it holds all of them: those of learned steps."""
    single = numbers.float()
    return single if torch.equal(single.double(), numbers) else numbers


def _own(quantizer: Quantizer) -> list[str]:
    """The names of what a quantizer keeps."""
    return list(quantizer.state_dict())


def _packed_activations(quantizers: Mapping[str, Quantizer]) -> dict[str, Tensor]:
    """An entry for each quantizer: its grid, and what it keeps itself."""
    if not quantizers:
        return {}
    every = list(quantizers.values())
    grids = [_scale_and_zero_point(quantizer, torch.zeros(1)) for quantizer in every]
    own = {KEPT + name: [q.state_dict()[name] for q in every] for name in _own(every[0])}
    return {
        "scale": _single(torch.stack([scale for scale, _ in grids])),
        "zero_point": _narrow(torch.stack([zero_point for _, zero_point in grids])),
        **{name: torch.stack(values) for name, values in own.items()},
    }
