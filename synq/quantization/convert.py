"""Fake quantization: asymmetric, weights per output channel, activations per tensor.

Paper, section 2 ("quantization scheme"): a value v with range [lo, hi] and k bits becomes

    scale = (2^k - 1) / max(hi - lo, 1e-8)        zero = round(scale * lo) + 2^(k-1)
    code  = clamp(round(scale * v - zero), -2^(k-1), 2^(k-1) - 1)
    v_hat = (code + zero) / scale

and the gradient passes straight through, also where the code was clamped. Quantized layers replace
theirs in place under the same names, so teacher and student pair by name.

In a transformer the input of each linear layer is quantized as well: behind LayerNorm, behind the
attention, behind GELU. Softmax, the products of queries with keys and of attention with values,
LayerNorm and residual sums stay in full precision.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synq.errors import ModelError
from synq.quantization import attention
from synq.quantization.activations import QUANTIZABLE

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
        codes = quantize_to_codes(values.float(), scale, zero, bits)
        return codes.add_(zero).div_(scale).to(values.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return gradients[0], None, None, None


def fake_quantize(values: Tensor, lo: Tensor, hi: Tensor, bits: int) -> Tensor:
    """``values`` rounded to the grid of ``2**bits`` levels over ``[lo, hi]``, same shape.

    ``lo`` and ``hi`` broadcast against ``values``. Straight-through gradient, to values alone.
    """
    return _FakeQuantize.apply(values, lo, hi, bits)


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """``[in, out / groups, ...]`` of a transposed convolution as ``[out, in / groups, ...]``.

    The latter is how a convolution stores its weight. The function is its own inverse.
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)


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

    def rounded(self, weight: Tensor) -> Tensor:
        """``weight``, whose first axis are the output channels, as its codes say."""
        return fake_quantize(weight, *channel_ranges(weight), self.bits)

    def quantized_weight(self) -> Tensor:
        return self.rounded(self.weight)


class QuantConv2d(QuantizedWeight, nn.Conv2d):
    """A convolution with fake-quantized weights, its ranges taken anew at every forward."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(input, self.quantized_weight(), self.bias)


class QuantLinear(QuantizedWeight, nn.Linear):
    """A linear layer with fake-quantized weights, its ranges taken anew at every forward."""

    def product(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """``input`` times the weight, plus a bias that need not be the layer's own."""
        return nn.functional.linear(input, self.quantized_weight(), bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.product(input, self.bias)


class QuantTokenLinear(QuantLinear):
    """A linear layer that quantizes its input too, by its submodule ``input``."""

    input: nn.Module

    def product(self, input: Tensor, bias: Tensor | None) -> Tensor:
        return super().product(self.input(input), bias)


class QuantMultiheadAttention(QuantizedWeight, attention.OpenMultiheadAttention):
    """An attention with a quantized fused weight, a range for each of its rows, and its input."""

    input: nn.Module

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.in_proj_weight

    def entered(self, tokens: Tensor) -> Tensor:
        return self.input(tokens)

    def projection(self) -> Tensor:
        return self.quantized_weight()


class QuantConvTranspose2d(QuantizedWeight, nn.ConvTranspose2d):
    """A transposed convolution, quantized as the others are."""

    def quantized_weight(self) -> Tensor:
        weight = swap_channels(self.weight, self.groups)
        return swap_channels(self.rounded(weight), self.groups)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        stride, padding, dilation = self._geometry()
        more = self._output_padding(
            input, output_size, stride, padding, list(self.kernel_size), 2, dilation
        )
        weight = self.quantized_weight()
        return nn.functional.conv_transpose2d(
            input, weight, self.bias, stride, padding, more, self.groups, dilation
        )

    def _geometry(self) -> Any:
        return self.stride, self.padding, self.dilation


class QuantizedActivation(nn.Module):
    """What quantized activations share: the static range, and the observer while calibrating.

    Each is a class with the float activation behind this one, whose forward runs first.
    """

    bits: int
    lo: Tensor
    hi: Tensor
    observer: Callable[[Tensor], None] | None

    def rounded(self, values: Tensor) -> Tensor:
        return fake_quantize(values, self.lo, self.hi, self.bits)

    def forward(self, input: Tensor) -> Tensor:
        output = super().forward(input)
        if self.observer is not None:
            self.observer(output.detach())
        return self.rounded(output)


def _quantized(activation: type[nn.Module]) -> type[nn.Module]:
    """``QuantReLU`` of ReLU, and so on; in this module's namespace, where pickle looks for it."""
    name = f"Quant{activation.__name__}"
    text = f"{activation.__name__}, then quantization with a static range."
    members = {"__module__": __name__, "__doc__": text}
    globals()[name] = type(name, (QuantizedActivation, activation), members)
    return globals()[name]  # type: ignore[no-any-return]


# By their exact type: a subclass may use its weight in another way.
WEIGHTED = {
    nn.Conv2d: QuantConv2d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    **dict.fromkeys(attention.LINEAR, QuantLinear),
}


ACTIVATIONS = {activation: _quantized(activation) for activation in QUANTIZABLE}


# Where no activation module gives what is to be quantized.
QuantIdentity = _quantized(nn.Identity)


def quantize(model: nn.Module, weight_bits: int, activation_bits: int) -> nn.Module:
    """Turn the layers of ``model`` into quantized ones, in place, and return it.

    Every convolution and linear layer, the first and the last too, gets ``weight_bits``; every
    activation of ``QUANTIZABLE`` gets ``activation_bits``, and so does the input of every attention
    and every linear layer of a transformer but the last, by a new submodule ``input``. Names and
    state-dict keys stay; each activation gains the buffers ``lo`` and ``hi``, zero until they are
    calibrated. Raises ModelError where there is nothing to quantize, or nothing to quantize the
    activations after.
    """
    weighted = activations = 0
    open_inputs = _open_attention(model, weight_bits)
    for module in model.modules():
        if type(module) in WEIGHTED:
            module.__class__ = WEIGHTED[type(module)]
            module.bits = weight_bits  # type: ignore[assignment]
            weighted += 1
        elif type(module) in ACTIVATIONS:
            module.__class__ = ACTIVATIONS[type(module)]
            _add_range(module, activation_bits)
            activations += 1
    for module in open_inputs:
        if type(module) is QuantLinear:
            module.__class__ = QuantTokenLinear
        module.input = QuantIdentity()
        _add_range(module.input, activation_bits)
        activations += 1
    if not weighted:
        raise ModelError("the model has no convolution or linear layer to quantize")
    if not activations:
        names = ", ".join(activation.__name__ for activation in QUANTIZABLE)
        raise ModelError(
            f"the model has no activation module to quantize ({names}); "
            "functional activations (F.relu) must become modules"
        )
    return model


def _add_range(activation: nn.Module, bits: int) -> None:
    activation.bits = bits  # type: ignore[assignment]
    activation.observer = None  # type: ignore[assignment]
    activation.register_buffer("lo", torch.zeros(()))
    activation.register_buffer("hi", torch.zeros(()))


def _open_attention(model: nn.Module, bits: int) -> list[nn.Module]:
    """Make attention use the weights of its layers; all whose input needs a quantizer."""
    found: list[nn.Module] = list(attention.open_inputs(model))
    for module in attention.attention_layers(model).values():
        if isinstance(module, nn.MultiheadAttention):
            attention.check_open(module)
            module.__class__ = QuantMultiheadAttention
            module.bits = bits  # type: ignore[assignment]
            found.append(module)
        else:
            module.__class__ = attention.redirected(type(module))
    attention.forgo_fast_paths(model)
    return found


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
    else (biases, BatchNorm, activation ranges, layers that are not quantized) as it is stored.
    """
    total = 0
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        total += sum(tensor.numel() * tensor.element_size() for tensor in own)
        weighted = isinstance(module, QuantizedWeight) or type(module) in WEIGHTED
        if weight_bits < 32 and weighted:
            weight = module.get_parameter("weight")
            channels = weight.shape[0]
            if isinstance(module, nn.ConvTranspose2d):
                channels = weight.shape[1] * module.groups
            total -= weight.numel() * weight.element_size()
            total += -(-weight.numel() * weight_bits // 8) + 8 * channels
    return total
