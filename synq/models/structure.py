"""What layers a network has: BatchNorm and attention."""

import copy

import torch
from torch import nn
from torch.nn import functional
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations

from synq.errors import ModelError, reason

# What the layer that makes queries, keys and values at once is called: DeiT, Swin and all that
# follow them; MaxViT.
FUSED = ("qkv", "to_qkv")
# By their exact type: a subclass may use its weight in another way. The second is the output
# projection of nn.MultiheadAttention, and the same thing under another name.
LINEAR: tuple[type[nn.Linear], ...] = (nn.Linear, NonDynamicallyQuantizableLinear)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)


def batchnorms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Name -> BatchNorm layer; ModelError where there is none with running statistics."""
    layers = statistical(model)
    if not layers:
        raise ModelError(
            "the model has no BatchNorm layer with running statistics to synthesize images from; "
            "images of a network that has do in their place (relative: NAME, another model of the "
            "config with the same classes; from Python images=synq.synthesize(OTHER, ...)), or a "
            "few real ones (method few-shot), and for a transformer synthesis.prior: patches"
        )
    return layers


def statistical(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Name -> BatchNorm layer with running statistics; empty where there is none."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    }


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> attention layer: nn.MultiheadAttention, or what owns a linear layer of ``FUSED``."""
    return {name: module for name, module in model.named_modules() if is_attention(module)}


def is_attention(module: nn.Module) -> bool:
    fused = (getattr(module, name, None) for name in FUSED)
    return isinstance(module, nn.MultiheadAttention) or any(
        isinstance(layer, nn.Linear) for layer in fused
    )


def check_own(model: nn.Module, name: str) -> None:
    """ModelError where layers cannot be replaced: in what torch has compiled or scripted, and where
    a layer makes its weight of other tensors before each forward.
    """
    if isinstance(model, torch.jit.ScriptModule):
        raise ModelError(f"{name} is a TorchScript module; give the one that it was scripted from")
    if isinstance(getattr(model, "_orig_mod", None), nn.Module):
        raise ModelError(
            f"{name} is what torch.compile gave; give the network itself, its _orig_mod"
        )
    for key, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ModelError(f"{name} has no size of {key} yet; send an image through it first")
        if parameter.is_meta:
            raise ModelError(f"{name} has no values in {key}, on the meta device; load them first")
    for path, layer in model.named_modules():
        kind = type_before_parametrizations(layer)
        own = is_parametrized(layer) or not isinstance(getattr(layer, "weight", 0), nn.Parameter)
        if kind in CONVOLUTIONS + LINEAR and own:
            raise ModelError(
                f"{path or name} makes its weight before each forward; fix it first, by "
                "prune.remove, remove_weight_norm or parametrize.remove_parametrizations "
                "of torch.nn.utils"
            )


def copied(model: nn.Module, name: str) -> nn.Module:
    """A copy on the CPU; ModelError where there can be none."""
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:  # what a network holds raises whatever it likes
        raise ModelError(
            f"{name} cannot be copied ({reason(error)}); if it keeps what its last forward made, "
            "let it keep that .detach()ed"
        ) from None


def plain(model: nn.Module) -> nn.Module:
    """The model with layers of a subclass that computes what ``nn.Linear`` or ``nn.BatchNorm2d``
    does (timm's own, SyncBatchNorm) as such ones, in place: their type alone tells what they are.
    """
    for module in model.modules():
        if type(module) is nn.SyncBatchNorm:
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]  # it is, in evaluation
        if (
            isinstance(module, nn.Linear)
            and type(module) not in LINEAR
            and _computes_linear(module)
        ):
            module.__class__ = nn.Linear
    return model


def _computes_linear(module: nn.Linear) -> bool:
    # What has more than a weight and a bias may use it at another time.
    own = {*vars(module), *module._parameters, *module._buffers, *module._modules}
    if own != {*vars(nn.Linear(1, 1)), "weight", "bias"}:
        return False
    generator = torch.Generator().manual_seed(0)
    tokens = torch.rand(2, module.in_features, generator=generator).to(module.weight)
    with torch.no_grad():
        try:
            found = module(tokens)
        except Exception:  # a network's own code raises whatever it likes
            return False
        return torch.equal(found, functional.linear(tokens, module.weight, module.bias))
