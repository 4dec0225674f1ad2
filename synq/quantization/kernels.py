"""What an integer kernel multiplies and adds: codes without zero point, and whole biases."""

from typing import Any, NamedTuple

import numpy
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synq.quantization.activations import PRESERVING, spoken
from synq.quantization.affine import SMALLEST_RANGE, Grid, channel_ranges
from synq.quantization.convert import weight_quantizers
from synq.quantization.layers import QuantConv2d, QuantizedWeight, QuantLinear
from synq.quantization.quantizers import Quantizer
from synq.quantization.routes import CallSites
from synq.quantization.sites import evaluating

# Of a weight in INT8. With FULL two products with an 8-bit activation still fit into 16 bits, where
# a processor without dot products adds them.
LARGEST, FULL = 127, 63
# Of what is added, in INT32: the largest number, how much of it is used, and how many units what
# is added alone has.
LIMIT, MARGIN, FINE = 2**31 - 1, 0.99, 2**20


class Codes(NamedTuple):
    """A weight as ``(codes - zeros) * scales``; the latter two have an entry per output channel."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor


def codes_of(weight: Tensor, grid: Grid) -> Codes:
    """The codes of a weight ``[out, ...]`` on its grid, none of them and no zero point below 0."""
    axes = (-1,) + (1,) * (weight.dim() - 1)
    codes, scales = grid.codes(weight) + grid.half, grid.scale.flatten()
    zeros = grid.zero_point.flatten() + grid.half
    # A channel without 0 in its range has a zero point beyond the codes: both move.
    moved = (-zeros).clamp_min(0)
    codes, zeros = codes + moved.view(axes), zeros + moved
    # A channel of one value has no scale of its own; that value is one.
    lo, hi = (end.flatten() for end in channel_ranges(weight))
    single = (lo == hi) & (lo != 0) & (grid.scale.flatten() < SMALLEST_RANGE)
    codes = torch.where(single.view(axes), (lo > 0).float().view(axes), codes)
    zeros = torch.where(single, (lo < 0).float(), zeros)
    return Codes(codes, torch.where(single, lo.abs(), scales), zeros)


class Kernel(NamedTuple):
    """A weight ``whole * finer * scales``, all but the first with an entry per output channel.

    ``whole`` are the codes less their zero point, ``whole * finer`` what a kernel multiplies, and
    ``scales`` float32.
    """

    whole: Any
    finer: Any
    scales: Any


def kernel_of(
    codes: Any,
    scales: Any,
    zeros: Any,
    factor: Any,
    added: Any = 0.0,
    input_scale: Any = None,
) -> Kernel | None:
    """The kernel of arrays as ``Codes`` has them, times a factor per output channel.

    ``added`` is what comes to each channel in whole numbers of 32 bits, in units of its scale times
    ``input_scale``, if that is known.

    None where INT8 does not hold it. A channel of few codes is multiplied by a whole number: that
    makes the unit finer in which its bias is added.
    """
    axes = (-1,) + (1,) * (codes.ndim - 1)
    whole = codes.astype(numpy.int64) - zeros.astype(numpy.int64).reshape(axes)
    whole[factor < 0] *= -1
    scales = scales.astype(numpy.float64) * numpy.abs(factor)
    # A channel that BatchNorm shuts, or whose weights are all 0, is what is added alone.
    whole[scales == 0] = 0
    dead = ~whole.reshape(len(whole), -1).any(1)
    added = numpy.broadcast_to(numpy.abs(added), scales.shape)
    of_input = 1.0 if input_scale is None else float(input_scale)
    scales = numpy.where(
        dead, numpy.where(added > SMALLEST_RANGE, added / FINE / of_input, 1.0), scales
    )
    if whole.max() == LARGEST + 1 and (zeros == LARGEST + 1).all():
        # A learned grid without zero point may have reached its first code, which has no negative.
        whole = whole.clip(-LARGEST, LARGEST)
    largest = numpy.abs(whole.reshape(len(whole), -1)).max(1)
    if largest.max() > LARGEST + (whole.max() <= LARGEST):
        return None
    finer = (FULL // largest.clip(1)).clip(1)
    if input_scale is not None:
        # Of vanishing weights the unit would be too fine to count what is added. Coarser weights
        # are of no consequence there: they are a ten thousandth of it.
        least = added / (LIMIT * MARGIN * of_input)
        share = numpy.where(least > 0, scales / numpy.where(least > 0, least, 1.0), numpy.inf)
        finer = numpy.minimum(finer, share.clip(1.0)).astype(numpy.int64)
        shrunk = numpy.rint(whole * share.clip(0.0, 1.0).reshape(axes)).astype(numpy.int64)
        whole, scales = shrunk, numpy.maximum(scales, least)
    finer = numpy.where(dead, 1, finer)
    return Kernel(whole, finer, (scales / finer).astype(numpy.float32))


class Line(NamedTuple):
    """What a BatchNorm does to each channel: ``factor * x + shift``, in float64."""

    factor: Any
    shift: Any


def line_of(weight: Any, bias: Any, mean: Any, variance: Any, epsilon: float) -> Line:
    """The line of a BatchNorm's arrays."""
    weight, bias, mean, variance = (
        array.astype(numpy.float64) for array in (weight, bias, mean, variance)
    )
    factor = weight / numpy.sqrt(variance + epsilon)
    return Line(factor, bias - mean * factor)


def whole_bias(bias: Any, scales: Any, input_scale: Any) -> tuple[Any, Any]:
    """A bias per channel in whole numbers, and the unit of each: a product of two scales."""
    unit = (scales * numpy.float32(input_scale)).astype(numpy.float32)
    return numpy.rint(bias / unit.astype(numpy.float64)).clip(-LIMIT, LIMIT), unit


def is_integer(student: nn.Module) -> bool:
    """Whether a student is one of ``scope: everything``: something but activations has a grid."""
    return any(
        quantizer.whole
        for sites in student.modules()
        if isinstance(sites, CallSites)
        for quantizer in sites.modules()
        if isinstance(quantizer, Quantizer)
    )


class _Kernels(TorchFunctionMode):
    """Which quantizer gives each layer's input, and which BatchNorm alone reads its output."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: dict[nn.Module, Quantizer] = {}
        self.norms: dict[nn.Module, nn.Module] = {}
        self.running: list[nn.Module] = []
        self._from: dict[int, tuple[Tensor, nn.Module]] = {}

    def made(self, module: nn.Module, _: Any, output: Any) -> None:
        self._from[id(output)] = (output, module)

    def begin(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()

    def source(self, tensor: Any) -> nn.Module | None:
        found = self._from.get(id(tensor))
        return found[1] if found else None

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = spoken(func)
        module = self.running[-1] if self.running else None
        source = self.source(args[0]) if args else None
        if name in ("conv2d", "linear") and isinstance(module, QuantizedWeight):
            if isinstance(source, Quantizer):
                self.inputs.setdefault(module, source)
            self._from[id(result)] = (result, module)
        elif name == "batch_norm" and isinstance(source, QuantConv2d) and module is not None:
            self.norms.setdefault(source, module)
        elif name == "copy":
            source = self.source(args[1])
        if isinstance(source, Quantizer) and (name in PRESERVING or name == "copy"):
            for tensor in result if isinstance(result, list | tuple) else [result]:
                self._from[id(tensor)] = (tensor, source)
        return result


def settle_biases(student: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """Move each bias to the nearest whole number of its kernel's units, in place.

    Of a student of ``scope: everything``; of any other nothing. An integer kernel adds whole
    numbers, and at few bits a network whose biases it rounds is another one. That of a BatchNorm
    moves so that the sum of what is added behind the convolution is whole.
    """
    if not is_integer(student):
        return
    layers = weight_quantizers(student).values()
    seen = _Kernels()
    image = next(student.parameters()).new_zeros(1, *image_shape)
    hooks = []
    for module in student.modules():
        if isinstance(module, Quantizer):
            hooks.append(module.register_forward_hook(seen.made))
        elif isinstance(module, QuantizedWeight | nn.modules.batchnorm._NormBase):
            hooks.append(module.register_forward_pre_hook(seen.begin))
            hooks.append(module.register_forward_hook(seen.end, always_call=True))
    try:
        with evaluating(student), torch.no_grad(), seen:
            student(image)
    finally:
        for hook in hooks:
            hook.remove()
    for layer in layers:
        if layer in seen.inputs and isinstance(layer, QuantConv2d | QuantLinear):
            _settle(layer, seen.inputs[layer], seen.norms.get(layer))


def _settle(layer: QuantizedWeight, source: Quantizer, norm: Any) -> None:
    weight = layer.weight.detach()
    bias: Any = layer.bias
    line = Line(numpy.ones(len(weight)), numpy.zeros(len(weight)))
    if norm is not None:
        if norm.weight is None or norm.running_mean is None:
            return
        own = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
        scale, shift, mean, variance = map(_array, own)
        line = line_of(scale, shift, mean, variance, norm.eps)
    elif bias is None:
        return
    codes, scales, zeros = map(_array, codes_of(weight, layer.weight_quantizer.grid(weight)))
    added = line.shift + (0 if bias is None else line.factor * _array(bias))
    of_input = _array(source.grid(torch.zeros(1, device=weight.device)).scale)
    kernel = kernel_of(codes, scales, zeros, line.factor, added, of_input)
    if kernel is None:
        return
    whole, unit = whole_bias(added, kernel.scales, of_input)
    moved = torch.from_numpy((whole * unit.astype(numpy.float64) - added).astype(numpy.float32))
    target = bias if norm is None else norm.bias
    target.detach().add_(moved.to(target.device))


def _array(tensor: Tensor) -> Any:
    return tensor.detach().cpu().numpy()
