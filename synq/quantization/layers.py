"""Layers with a quantized weight, in place of torch's under the same names and state-dict keys."""

from typing import Any, Self, cast

from torch import Tensor, nn

from synq.quantization.attention import OpenMultiheadAttention
from synq.quantization.quantizers import Quantizer


class QuantizedWeight(nn.Module):
    """What the quantized layers share: the quantizer of the weight, and the weight it rounds.

    And that of the input, where no activation gives it and the scope or a transformer asks for one.
    """

    weight: Tensor
    weight_quantizer: Quantizer
    input: Quantizer | None

    def entered(self, values: Tensor) -> Tensor:
        """The input as the layer reads it."""
        return values if self.input is None else self.input(values)

    def rounded(self, weight: Tensor) -> Tensor:
        """``weight``, whose first axis are the output channels, as its codes say."""
        rounded: Tensor = self.weight_quantizer(weight)
        return rounded

    def quantized_weight(self) -> Tensor:
        return self.rounded(self.by_output(self.weight))

    def by_output(self, weight: Tensor) -> Tensor:
        """The weight with its output channels as the first axis."""
        return weight

    def axes(self) -> tuple[int, ...]:
        """The shape of a tensor with one entry per output channel."""
        own = self.by_output(self.weight)
        return (own.shape[0],) + (1,) * (own.dim() - 1)


class Turned(QuantizedWeight):
    """A quantized layer that a float one becomes: its hooks, its own attributes and whoever else
    holds it stay as they are.
    """

    @classmethod
    def from_float(cls, layer: nn.Module) -> Self:
        """The layer itself, of this class from now on."""
        layer.__class__ = cls
        turned = cast(Self, layer)
        turned.input = None
        return turned


class QuantConv2d(Turned, nn.Conv2d):
    """A convolution with fake-quantized weights."""

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.entered(input), self.quantized_weight(), self.bias)


class QuantLinear(Turned, nn.Linear):
    """A linear layer with fake-quantized weights, and of a transformer with a quantized input."""

    def product(self, input: Tensor, bias: Tensor | None) -> Tensor:
        """``input`` times the weight, plus a bias that need not be the layer's own."""
        return nn.functional.linear(self.entered(input), self.quantized_weight(), bias)

    def forward(self, input: Tensor) -> Tensor:
        return self.product(input, self.bias)


class QuantMultiheadAttention(QuantizedWeight, OpenMultiheadAttention):
    """An attention with a quantized fused weight, a grid for each of its rows, and its input."""

    @classmethod
    def from_float(cls, layer: nn.MultiheadAttention) -> Self:
        new = cls(
            layer.embed_dim,
            layer.num_heads,
            layer.dropout,
            bias=layer.in_proj_bias is not None,
            batch_first=layer.batch_first,
            device="meta",
        )
        # It was made without memory.
        for name in ("in_proj_weight", "in_proj_bias", "out_proj"):
            setattr(new, name, getattr(layer, name))
        return new.train(layer.training)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.in_proj_weight

    def projection(self) -> Tensor:
        return self.quantized_weight()


class QuantConvTranspose2d(Turned, nn.ConvTranspose2d):
    """A transposed convolution, quantized as the others are."""

    def by_output(self, weight: Tensor) -> Tensor:
        return swap_channels(weight, self.groups)

    def quantized_weight(self) -> Tensor:
        return swap_channels(super().quantized_weight(), self.groups)

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        input = self.entered(input)
        geometry: Any = (self.stride, self.padding, self.dilation)
        stride, padding, dilation = geometry
        more = self._output_padding(
            input, output_size, stride, padding, list(self.kernel_size), 2, dilation
        )
        weight = self.quantized_weight()
        return nn.functional.conv_transpose2d(
            input, weight, self.bias, stride, padding, more, self.groups, dilation
        )


def swap_channels(weight: Tensor, groups: int) -> Tensor:
    """``[in, out / groups, ...]`` of a transposed convolution as ``[out, in / groups, ...]``.

    The latter is how a convolution stores its weight. The function is its own inverse.
    """
    return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
