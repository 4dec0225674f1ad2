"""Attention layers: which there are, and how the linear layers inside them can be replaced.

An attention layer seldom calls its linear layers as modules: nn.MultiheadAttention keeps one fused
weight, and torchvision's shifted windows hand the weights to a function. What is below leads every
such product past the layer that owns the weight, which then quantizes it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from synq.errors import ModelError
from synq.models.structure import LINEAR, attention_layers
from synq.quantization.activations import QUANTIZABLE


def open_inputs(model: nn.Module) -> list[nn.Linear]:
    """The linear layers of a transformer whose input no activation module gives.

    None in a model without attention. The last linear layer is the classifier, unless it is an
    attention's, and its input stays in full precision as in the paper's networks. An activation
    gives the input where it stands before the layer in the module that owns both, with nothing but
    dropout between (the MLPs of torchvision's and timm's transformers).
    """
    attentions = attention_layers(model).values()
    found: list[nn.Linear] = []
    behind_activation = set()
    for module in model.modules():
        previous: nn.Module | None = None
        for child in module.children():
            if type(child) in LINEAR and type(previous) in QUANTIZABLE:
                behind_activation.add(child)
            if not isinstance(child, nn.Dropout | nn.Identity):
                previous = child
        if isinstance(module, nn.Linear) and type(module) in LINEAR:
            found.append(module)
    if not attentions:
        return []
    if found and not any(found[-1] is child for layer in attentions for child in layer.children()):
        found.pop()
    return [layer for layer in found if layer not in behind_activation]


def owners(model: nn.Module) -> dict[int, nn.Linear]:
    """The linear layers of attentions, by the number of their weight."""
    own = (layer for module in attention_layers(model).values() for layer in module.children())
    return {id(layer.weight): layer for layer in own if isinstance(layer, nn.Linear)}


def owned_products(
    owners: Mapping[int, nn.Linear],
    caller: nn.Module | None,
    func: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
) -> dict[nn.Module, int]:
    """Multiply-adds of the attentions' weights in a call of a function, by who owns the weight.

    nn.MultiheadAttention itself owns the one that makes queries, keys and values.
    """
    if func is functional.multi_head_attention_forward:
        if not isinstance(caller, nn.MultiheadAttention):
            return {}
        query, key, value = args[:3]
        numbers = query.numel() + key.numel() + value.numel()
        own, width = caller.embed_dim, query.numel()
        return {caller: numbers * own, caller.out_proj: width * own}
    if func is not functional.linear:
        return {}
    given = {**dict(zip(("input", "weight"), args, strict=False)), **kwargs}
    layer = owners.get(id(given["weight"]))
    return {layer: given["input"].numel() * layer.out_features} if layer is not None else {}


class OpenMultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention in steps, so that a subclass can change its weight and its input.

    Softmax and the two products of the attention itself are in full precision. Raises ModelError
    for what image classifiers do not use: masks, separate widths of keys and values, added biases.
    """

    def entered(self, tokens: Tensor) -> Tensor:
        """What the projection to queries, keys and values gets."""
        return tokens

    def projection(self) -> Tensor:
        """The fused weight ``[3 E, E]`` of queries, keys and values."""
        return self.in_proj_weight

    def forward(  # type: ignore[override]
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Tokens ``[N, L, E]`` (``[L, N, E]`` unless batch_first), and the attention if asked."""
        if key_padding_mask is not None or attn_mask is not None or query.dim() != 3:
            raise ModelError("an attention layer with a mask, or without a batch, is not supported")
        first = self.batch_first
        q, k, v = (
            part if first else part.transpose(0, 1) for part in self._split(query, key, value)
        )
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in (q, k, v))
        attention = (q * self.head_dim**-0.5 @ k.transpose(2, 3)).softmax(3)
        dropped = functional.dropout(attention, self.dropout, self.training)
        output = (dropped @ v).transpose(1, 2).flatten(2)
        output = self.out_proj(output if first else output.transpose(0, 1))
        if not need_weights:
            return output, None
        return output, attention.mean(1) if average_attn_weights else attention

    def _split(self, query: Tensor, key: Tensor, value: Tensor) -> Iterable[Tensor]:
        weight, bias = self.projection(), self.in_proj_bias
        if key is query and value is query:
            return functional.linear(self.entered(query), weight, bias).chunk(3, -1)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        parts = zip((query, key, value), weight.chunk(3), biases, strict=True)
        return [functional.linear(self.entered(x), own, added) for x, own, added in parts]


def check_open(layer: nn.MultiheadAttention) -> None:
    """ModelError where ``OpenMultiheadAttention`` cannot stand in for ``layer``."""
    if type(layer) is not nn.MultiheadAttention:
        raise ModelError(
            f"{type(layer).__name__} is a kind of nn.MultiheadAttention whose way with its weights "
            "is not known; use nn.MultiheadAttention itself"
        )
    if layer.in_proj_weight is None or layer.bias_k is not None or layer.add_zero_attn:
        raise ModelError(
            "an attention layer has keys or values of another width, or added biases "
            "(kdim, vdim, add_bias_kv, add_zero_attn), and cannot be quantized"
        )


def forgo_fast_paths(model: nn.Module) -> None:
    """Make nn.TransformerEncoderLayer call its parts, not one kernel with all of their weights."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            # The kernel knows these two activations alone; without the mark it is not taken.
            module.activation_relu_or_gelu = 0


class _Redirected(TorchFunctionMode):
    """Sends F.linear(x, layer.weight, bias) to ``layer.product(x, bias)`` for the layers given."""

    def __init__(self, layers: Iterable[Any]) -> None:
        super().__init__()
        self.layers = {id(layer.weight): layer for layer in layers}

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            given = {**dict(zip(("input", "weight", "bias"), args, strict=False)), **kwargs}
            if id(given["weight"]) in self.layers:
                layer = self.layers[id(given["weight"])]
                return layer.product(given["input"], given.get("bias"))
        return func(*args, **kwargs)


class _Redirection:
    """Leads an attention's products past its layers while its forward runs, as a pair of hooks."""

    def __init__(self) -> None:
        self.entered: list[_Redirected] = []

    def begin(self, module: nn.Module, args: Any) -> None:
        mode = _Redirected(layer for layer in module.children() if hasattr(layer, "product"))
        mode.__enter__()
        self.entered.append(mode)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.entered.pop().__exit__(None, None, None)


def redirect(layer: nn.Module) -> None:
    """Let the linear layers of an attention act where it hands their weights to F.linear.

    The bias is the one that the attention gives, which need not be the layer's (Swin V2 has none
    for keys). An attention that calls its layers computes what it did.
    """
    redirection = _Redirection()
    layer.register_forward_pre_hook(redirection.begin)
    layer.register_forward_hook(redirection.end, always_call=True)
