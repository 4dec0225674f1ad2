"""Networks into students: quantized layers in place of float ones, quantizers behind activations.

Quantized layers replace theirs under the same names, so teacher and student pair by name. An
activation stays the module that it is and gets a submodule ``quantizer``, which a hook applies to
its output. What is called as a function, or called again, is quantized in ``sites``.

In a transformer the input of each linear layer is quantized as well: behind LayerNorm, behind the
attention, behind GELU. Softmax, the products of queries with keys and of attention with values,
LayerNorm and residual sums stay in full precision.

That is the scope ``calls``, the paper's. With ``inputs`` every layer whose input is on no grid gets
a quantizer of it, and with ``everything`` so does what is added, averaged, multiplied or joined
between the layers (``dataflow``).
"""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from synq.config.calibration import FLOAT
from synq.errors import ModelError
from synq.models.structure import LINEAR, attention_layers
from synq.quantization import attention
from synq.quantization.activations import QUANTIZABLE
from synq.quantization.dataflow import list_scope
from synq.quantization.layers import (
    QuantConv2d,
    QuantConvTranspose2d,
    QuantizedWeight,
    QuantLinear,
    QuantMultiheadAttention,
)
from synq.quantization.quantizers import FullPrecision, Quantizer, Recipe
from synq.quantization.routes import CONTAINER, add_sites
from synq.quantization.sites import Calls, evaluating, site_name

# By their exact type: a subclass may use its weight in another way.
WEIGHTED: Mapping[type[nn.Module], Any] = {
    nn.Conv2d: QuantConv2d,
    nn.ConvTranspose2d: QuantConvTranspose2d,
    **dict.fromkeys(LINEAR, QuantLinear),
}

# A layer's quantizer of its own input has this behind the layer's name.
INPUT = ".input"
# Of the largest logit: more than sums in another order, or in TF32, make.
UNROUNDED = 1e-2


def quantize(
    model: nn.Module, recipe: Recipe, image_shape: tuple[int, int, int] | None = None
) -> nn.Module:
    """Turn the layers of ``model`` into quantized ones, in place, and return it.

    Every convolution and linear layer, the first and the last too, gets a quantizer of its weight;
    every activation of ``QUANTIZABLE`` gets one of its output, and so does the input of every
    attention and every linear layer of a transformer but the last, as a submodule ``input``. With
    an ``image_shape`` one image of zeros is sent through the model, and every call of an activation
    is quantized where it is called; without it, those of modules alone, by one range each. Names
    and state-dict keys stay; those of the quantizers are new. Raises ModelError where there is
    nothing to quantize, or nothing to quantize the activations after, and where the network would
    compute something else although no quantizer rounds.
    """
    wanted = _answer(model, image_shape) if image_shape else None
    _open_attention(model)
    if image_shape is None and recipe.scope != "calls":
        raise ModelError(f"the scope {recipe.scope} needs the shape of an image, to be found out")
    calls = list_scope(model, image_shape, recipe) if image_shape else Calls()
    opened = {layer for layer in attention.open_inputs(model) if layer not in calls.fed}
    new = _replace_layers(model, recipe, {**dict.fromkeys(opened, False), **calls.inputs})
    inputs = sum(getattr(layer, "input", None) is not None for layer in new.values())
    calls.sites = [replace(site, module=new.get(site.module, site.module)) for site in calls.sites]
    behind = {name: m for name, m in model.named_modules() if type(m) in QUANTIZABLE}
    repeated = {site.module for site in calls.sites}
    for name, module in behind.items():
        module.add_module("quantizer", recipe.of_activation(name))
        # That of several calls gets a hook of its own.
        if module not in repeated:
            module.register_forward_hook(_quantized_output)
    add_sites(model, calls, recipe)
    if not weight_quantizers(model):
        rest = "that is not kept in full precision " if layers_of(model) else ""
        raise ModelError(f"the model has no convolution or linear layer {rest}to quantize")
    if not behind and not inputs and not calls.sites:
        names = ", ".join(activation.__name__ for activation in QUANTIZABLE)
        raise ModelError(f"the model has no activation to quantize ({names}, or their functions)")
    if image_shape:
        _check_unrounded(model, image_shape, wanted)
    return model


def _answer(model: nn.Module, image_shape: tuple[int, int, int]) -> Any:
    """What the model gives out for one random image, in evaluation mode."""
    own = next(model.parameters())
    image = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0)).to(own)
    devices = [own.device] if own.is_cuda else []
    with torch.random.fork_rng(devices), evaluating(model), torch.no_grad():
        torch.manual_seed(0)
        return model(image)


def _check_unrounded(model: nn.Module, image_shape: tuple[int, int, int], wanted: Any) -> None:
    """ModelError where the student is another network before anything is rounded."""
    quantizers: list[Any] = [m for m in model.modules() if isinstance(m, Quantizer)]
    try:
        for quantizer in quantizers:
            quantizer.forward = _unrounded
        found = _answer(model, image_shape)
    finally:
        for quantizer in quantizers:
            del quantizer.forward
    # A network that was not built for this program may give out something else than logits.
    if not isinstance(wanted, Tensor):
        return
    # False where numbers of the network itself are not finite.
    if float((wanted - found).abs().max()) > UNROUNDED * float(wanted.abs().max()):
        raise ModelError(
            "the network computes something else with quantizers in it, although they do not "
            "round: its code looks through its own modules; let it call each by its name"
        )


def _unrounded(values: Tensor) -> Tensor:
    return values


def quantize_layers(model: nn.Module, recipe: Recipe) -> nn.Module:
    """Turn the layers alone into quantized ones, in place, and leave activations as they are."""
    _open_attention(model)
    _replace_layers(model, recipe, dict.fromkeys(attention.open_inputs(model), False))
    return model


def _open_attention(model: nn.Module) -> None:
    for layer in attention_layers(model).values():
        if isinstance(layer, nn.MultiheadAttention):
            attention.check_open(layer)
        else:
            attention.redirect(layer)
    attention.forgo_fast_paths(model)


def _replace_layers(
    model: nn.Module, recipe: Recipe, opened: Mapping[nn.Module, bool]
) -> dict[nn.Module, nn.Module]:
    """Put quantized layers in place of float ones, and give the new for the old.

    ``opened`` get a quantizer of their input, and say whether that is the image.
    """
    kinds = {**WEIGHTED, nn.MultiheadAttention: QuantMultiheadAttention}
    layers = {name: m for name, m in model.named_modules() if type(m) in kinds}
    replaced: dict[nn.Module, nn.Module] = {}
    shared: dict[int, tuple[str, Quantizer]] = {}
    for position, (name, layer) in enumerate(layers.items()):
        new = kinds[type(layer)].from_float(layer)
        new.weight_quantizer = recipe.of_weight(name, position, len(layers), new.axes())
        if isinstance(getattr(layer, "weight", None), Tensor):
            # A weight that two layers have in common has one grid, since it is stored once.
            own = new.weight_quantizer
            first, quantizer = shared.setdefault(id(layer.weight), (name, own))
            if (quantizer.bits, quantizer.axes) != (own.bits, own.axes):
                raise ModelError(
                    f"{first} and {name} have one weight in common, and cannot have a grid each; "
                    "give both the same bits (calibration.keep_bits), or each its own weight"
                )
            new.weight_quantizer = quantizer
        if layer in opened or isinstance(new, QuantMultiheadAttention):
            place = f"{name}{INPUT}"
            new.input = recipe.of_sum(place) if opened.get(layer) else recipe.of_activation(place)
        replaced[layer] = new
        # A layer may have several places.
        for module in [*model.modules()]:
            for attribute, child in module.named_children():
                if child is layer:
                    setattr(module, attribute, new)
    return replaced


def _quantized_output(module: nn.Module, args: Any, output: Tensor) -> Any:
    quantizer: Any = module.quantizer
    return quantizer(output)


def weight_quantizers(model: nn.Module) -> dict[str, QuantizedWeight]:
    """Name -> layer with a quantized weight, in the order of the model's modules."""
    return {name: layer for name, layer in layers_of(model).items() if not _is_kept(layer)}


def activation_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Name -> quantizer of an activation or an input, in the order of the model's modules."""
    return {
        name: quantizer
        for name, quantizer in _quantizers(model).items()
        if not isinstance(quantizer, FullPrecision)
    }


def input_bits(model: nn.Module) -> dict[str, int]:
    """Name of each layer with a quantizer of its own input -> the bits of that."""
    quantizers = activation_quantizers(model).items()
    return {name[: -len(INPUT)]: own.bits for name, own in quantizers if name.endswith(INPUT)}


def layers_of(model: nn.Module) -> dict[str, QuantizedWeight]:
    """Those whose weight is kept in full precision, too."""
    return {n: module for n, module in model.named_modules() if isinstance(module, QuantizedWeight)}


def _quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """Those of activations that are kept in full precision, too."""
    of_weights = {layer.weight_quantizer for layer in layers_of(model).values()}
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Quantizer) and module not in of_weights
    }


def _is_kept(layer: QuantizedWeight) -> bool:
    return isinstance(layer.weight_quantizer, FullPrecision)


def quantized_names(model: nn.Module) -> list[str]:
    """The names of a student's layers and activations, as a recipe and ``synq inspect`` have them.

    An activation is named as its module, a call ``module/function/index``, the input of a
    transformer's linear layer ``layer.input``.
    """
    return [*layers_of(model), *map(activation_name, _quantizers(model))]


def activation_name(quantizer: str) -> str:
    """The name of what the quantizer of this name rounds."""
    site = re.fullmatch(rf"(?:(.*)\.)?{CONTAINER}\.(.*)", quantizer)
    return site_name(site[1] or "", site[2]) if site else quantizer.removesuffix(".quantizer")


def bits_in_use(model: nn.Module) -> dict[str, list[float]]:
    """``weights`` and ``activations`` of a student: mean, smallest and largest of their bits.

    The mean is over all numbers of the weights, and over the quantizers of activations.
    """
    layers = layers_of(model).values()
    weights = [(layer.weight_quantizer.bits, layer.weight.numel()) for layer in layers]
    activations = [(quantizer.bits, 1) for quantizer in _quantizers(model).values()]
    return {"weights": _spread(weights), "activations": _spread(activations)}


def _spread(counted: Sequence[tuple[int, int]]) -> list[float]:
    mean = sum(bits * count for bits, count in counted) / sum(count for _, count in counted)
    every = [bits for bits, _ in counted]
    return [mean, min(every), max(every)]


@contextlib.contextmanager
def observing(
    model: nn.Module, observers: Mapping[str, Callable[[Tensor], None]]
) -> Iterator[None]:
    """Show what each named quantizer is given, before it is rounded, to its observer."""
    quantizers = activation_quantizers(model)
    try:
        for name, observer in observers.items():
            quantizers[name].observer = observer
        yield
    finally:
        for quantizer in quantizers.values():
            quantizer.observer = None


def packed_bytes(model: nn.Module, weight_bits: int = 0) -> int:
    """Bytes of the parameters and statistics with the weights packed.

    At ``weight_bits``, which a float model needs, or each at its quantizer's. Codes without
    padding, a float32 scale and an int32 zero point for each grid; all else (biases, BatchNorm,
    layers that are not quantized) as it is stored.
    """
    total = 0
    counted: set[int] = set()
    for module in model.modules():
        if isinstance(module, Quantizer):
            # Those of weights are counted with their weight.
            continue
        # What several modules have in common is stored once.
        found = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        own = [tensor for tensor in found if id(tensor) not in counted]
        counted |= {id(tensor) for tensor in own}
        total += sum(tensor.numel() * tensor.element_size() for tensor in own)
        weighted = isinstance(module, QuantizedWeight) or type(module) in WEIGHTED
        kept = isinstance(module, QuantizedWeight) and _is_kept(module)
        if weight_bits < FLOAT and weighted and not kept:
            weight = module.get_parameter(
                "in_proj_weight" if isinstance(module, QuantMultiheadAttention) else "weight"
            )
            if not any(weight is tensor for tensor in own):
                continue
            channels = weight.shape[0]
            if isinstance(module, nn.ConvTranspose2d):
                channels = weight.shape[1] * module.groups
            bits = weight_bits
            if isinstance(module, QuantizedWeight):
                bits = weight_bits or module.weight_quantizer.bits
            total -= weight.numel() * weight.element_size()
            total += -(-weight.numel() * bits // 8) + 8 * channels
    return total + 8 * sum(quantizer.grids for quantizer in activation_quantizers(model).values())
