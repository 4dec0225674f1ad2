"""Fake quantization: asymmetric, weights per output channel, activations per tensor.

Paper, section 2 ("quantization scheme"): a value v with range [lo, hi] and k bits becomes

    scale = (2^k - 1) / max(hi - lo, 1e-8)        zero = round(scale * lo) + 2^(k-1)
    code  = clamp(round(scale * v - zero), -2^(k-1), 2^(k-1) - 1)
    v_hat = (code + zero) / scale

and the gradient passes straight through, also where the code was clamped. Quantized layers replace
theirs in place under the same names, so teacher and student pair by name.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synq.errors import ModelError

SMALLEST_RANGE = 1e-8


def scale_and_zero(lo: Tensor, hi: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Scale (codes a unit) and zero point of ranges ``[lo, hi]``, both of the shape of ``lo``."""
    scale = (2**bits - 1) / (hi - lo).clamp_min(SMALLEST_RANGE)
    return scale, (scale * lo).round() + 2 ** (bits - 1)


def quantize_to_codes(values: Tensor, scale: Tensor, zero: Tensor, bits: int) -> Tensor:
    """Integer codes in [-2^(k-1), 2^(k-1) - 1], as floats of the shape of ``values``."""
    half = 2 ** (bits - 1)
    return (values * scale).sub_(zero).round_().clamp_(-half, half - 1)


class _FakeQuantize(torch.autograd.Function):
    """Quantize and dequantize; the gradient is that of the identity, so nothing is stored."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, lo: Tensor, hi: Tensor, bits: int) -> Tensor:
        scale, zero = scale_and_zero(lo, hi, bits)
        return quantize_to_codes(values, scale, zero, bits).add_(zero).div_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0], None, None, None


def fake_quantize(values: Tensor, lo: Tensor, hi: Tensor, bits: int) -> Tensor:
    """``values`` rounded to the grid of ``2**bits`` levels over ``[lo, hi]``, same shape.

    ``lo`` and ``hi`` broadcast against ``values``. Straight-through gradient, to values alone.
    """
    return _FakeQuantize.apply(values, lo, hi, bits)


def channel_ranges(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Minimum and maximum of each output channel (first axis), shaped to broadcast."""
    flat = weight.detach().flatten(1)
    shape = (-1,) + (1,) * (weight.dim() - 1)
    lo, hi = torch.aminmax(flat, dim=1)
    return lo.view(shape), hi.view(shape)


class QuantizedWeight(nn.Module):
    """What the quantized layers share: the width, and the weight as its codes say."""

    weight: Tensor
    bits: int

    def quantized_weight(self) -> Tensor:
        return fake_quantize(self.weight, *channel_ranges(self.weight), self.bits)


class QuantConv2d(QuantizedWeight, nn.Conv2d):
    """A convolution with fake-quantized weights, its ranges taken anew at every forward."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.quantized_weight(), self.bias)


class QuantLinear(QuantizedWeight, nn.Linear):
    """A linear layer with fake-quantized weights, its ranges taken anew at every forward."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.quantized_weight(), self.bias)


class QuantizedActivation(nn.Module):
    """What quantized activations share: the static range, and the observer while calibrating."""

    bits: int
    lo: Tensor
    hi: Tensor
    observer: Callable[[Tensor], None] | None

    def quantized(self, output: Tensor) -> Tensor:
        if self.observer is not None:
            self.observer(output.detach())
        return fake_quantize(output, self.lo, self.hi, self.bits)


class QuantReLU(QuantizedActivation, nn.ReLU):
    """ReLU, then quantization with a static range."""

    def forward(self, input: Tensor) -> Tensor:
        return self.quantized(super().forward(input))


class QuantReLU6(QuantizedActivation, nn.ReLU6):
    """ReLU6, then quantization with a static range."""

    def forward(self, input: Tensor) -> Tensor:
        return self.quantized(super().forward(input))


WEIGHTED = {nn.Conv2d: QuantConv2d, nn.Linear: QuantLinear}
ACTIVATIONS = {nn.ReLU: QuantReLU, nn.ReLU6: QuantReLU6}


def quantize(model: nn.Module, weight_bits: int, activation_bits: int) -> nn.Module:
    """Turn the layers of ``model`` into quantized ones, in place, and return it.

    Every convolution and linear layer, the first and the last too, gets ``weight_bits``; every
    ReLU and ReLU6 gets ``activation_bits``. Names and state-dict keys stay; each activation gains
    the buffers ``lo`` and ``hi``, zero until they are calibrated. Raises ModelError where there is
    nothing to quantize, or nothing to quantize the activations after.
    """
    weighted = activations = 0
    for module in model.modules():
        if type(module) in WEIGHTED:
            module.__class__ = WEIGHTED[type(module)]
            module.bits = weight_bits  # type: ignore[assignment]
            weighted += 1
        elif type(module) in ACTIVATIONS:
            module.__class__ = ACTIVATIONS[type(module)]
            module.bits = activation_bits  # type: ignore[assignment]
            module.observer = None  # type: ignore[assignment]
            module.register_buffer("lo", torch.zeros(()))
            module.register_buffer("hi", torch.zeros(()))
            activations += 1
    if not weighted:
        raise ModelError("the model has no convolution or linear layer to quantize")
    if not activations:
        raise ModelError(
            "the model has no ReLU or ReLU6 module to quantize activations after; "
            "functional activations (F.relu) must become modules"
        )
    return model


def activation_quantizers(model: nn.Module) -> dict[str, QuantizedActivation]:
    """Name -> quantized activation, in the order of the model's modules."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QuantizedActivation)
    }


@contextlib.contextmanager
def observing(
    model: nn.Module, observers: Mapping[str, Callable[[Tensor], None]]
) -> Iterator[None]:
    """Show each named activation's output, before quantization, to its observer in this block."""
    quantizers = activation_quantizers(model)
    try:
        for name, observer in observers.items():
            quantizers[name].observer = observer
        yield
    finally:
        for quantizer in quantizers.values():
            quantizer.observer = None


def packed_bytes(model: nn.Module, weight_bits: int) -> int:
    """Bytes of the parameters and statistics with the weights packed at ``weight_bits``.

    Codes without padding, a float32 scale and an int32 zero point for each output channel; all
    else (biases, BatchNorm, activation ranges) as it is stored.
    """
    total = 0
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        total += sum(tensor.numel() * tensor.element_size() for tensor in own)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and weight_bits < 32:
            weight = module.weight
            total -= weight.numel() * weight.element_size()
            total += -(-weight.numel() * weight_bits // 8) + 8 * weight.shape[0]
    return total
