"""Layers with a quantized weight, in place of torch's under the same names and state-dict keys."""

from typing import Any, Self

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


def _taking_over(new: nn.Module, old: nn.Module, names: tuple[str, ...]) -> None:
    """Give a layer that was made without memory the parameters of another, themselves."""
    for name in names:
        setattr(new, name, getattr(old, name))
    new.train(old.training)


class QuantConv2d(QuantizedWeight, nn.Conv2d):
    """A convolution with fake-quantized weights."""

    @classmethod
    def from_float(cls, layer: nn.Conv2d) -> Self:
        new = cls(**_geometry(layer))
        _taking_over(new, layer, ("weight", "bias"))
        new.input = None
        return new

    def forward(self, input: Tensor) -> Tensor:
        return self._conv_forward(self.entered(input), self.quantized_weight(), self.bias)


class QuantLinear(QuantizedWeight, nn.Linear):
    """A linear layer with fake-quantized weights, and of a transformer with a quantized input."""

    @classmethod
    def from_float(cls, layer: nn.Linear) -> Self:
        bias = layer.bias is not None
        new = cls(layer.in_features, layer.out_features, bias, device="meta")
        _taking_over(new, layer, ("weight", "bias"))
        new.input = None
        return new

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
        _taking_over(new, layer, ("in_proj_weight", "in_proj_bias", "out_proj"))
        return new

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.in_proj_weight

    def projection(self) -> Tensor:
        return self.quantized_weight()


class QuantConvTranspose2d(QuantizedWeight, nn.ConvTranspose2d):
    """A transposed convolution, quantized as the others are."""

    @classmethod
    def from_float(cls, layer: nn.ConvTranspose2d) -> Self:
        new = cls(**_geometry(layer), output_padding=layer.output_padding)  # type: ignore[arg-type]
        _taking_over(new, layer, ("weight", "bias"))
        new.input = None
        return new

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


def _geometry(layer: nn.Conv2d | nn.ConvTranspose2d) -> dict[str, Any]:
    """Made on the meta device: its parameters will be those of the layer, and none of its own."""
    names = (
        *("in_channels", "out_channels", "kernel_size", "stride", "padding"),
        *("dilation", "groups", "padding_mode"),
    )
    own = {name: getattr(layer, name) for name in names}
    return {**own, "bias": layer.bias is not None, "device": "meta"}
