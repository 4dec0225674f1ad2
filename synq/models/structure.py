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
# What three such layers are called where each makes one of them: timm, transformers, and others.
SEPARATE = (
    *(("q", "k", "v"), ("to_q", "to_k", "to_v"), ("wq", "wk", "wv")),
    *(("query", "key", "value"), ("q_proj", "k_proj", "v_proj")),
)
# By their exact type: a subclass may use its weight in another way. The second is the output
# projection of nn.MultiheadAttention, and the same thing under another name.
LINEAR: tuple[type[nn.Linear], ...] = (nn.Linear, NonDynamicallyQuantizableLinear)
CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
# Activations, and a gate, that networks write out in modules of their own.
WRITTEN = (
    *(nn.SiLU(), nn.Hardswish(), nn.Mish(), nn.GELU(), nn.GELU("tanh")),
    *(nn.Hardsigmoid(), nn.Sigmoid()),
)


def batchnorms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Name -> BatchNorm layer; ModelError where there is none with running statistics."""
    layers = statistical(model)
    if not layers:
        raise ModelError(
            "the model has no BatchNorm layer with running statistics to synthesize images from; "
            "images of a network that has do in their place (relative: NAME, another model of the "
            "config with the same classes; from Python images=synq.synthesize(OTHER, ...)), or a "
            "few real ones (method few-shot), and for a transformer with nn.MultiheadAttention, or "
            "linear layers of its own called qkv or q, k and v, synthesis.prior: patches"
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
    """Name -> attention layer: nn.MultiheadAttention, or what owns the linear layers of one."""
    return {name: module for name, module in model.named_modules() if is_attention(module)}


def is_attention(module: nn.Module) -> bool:
    """Whether it is nn.MultiheadAttention, or owns linear layers of ``FUSED`` or ``SEPARATE``."""
    return isinstance(module, nn.MultiheadAttention) or any(
        all(isinstance(getattr(module, name, None), nn.Linear) for name in names)
        for names in (*((name,) for name in FUSED), *SEPARATE)
    )


def check_own(model: nn.Module, name: str) -> None:
    """ModelError where layers cannot be replaced: in what torch has compiled or scripted, and where
    a layer makes its weight of other tensors before each forward.
    """
    for path, module in model.named_modules():
        place = f"{path} of {name}" if path else name
        if isinstance(module, torch.jit.ScriptModule):
            raise ModelError(
                f"{place} is a TorchScript module; give the one that it was scripted from"
            )
        if isinstance(getattr(module, "_orig_mod", None), nn.Module):
            raise ModelError(
                f"{place} is what torch.compile gave; give the network itself, its _orig_mod"
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
    """The model with modules that compute what torch's own do as such ones, in place.

    Their type alone tells what they are: layers of a subclass that is ``nn.Linear`` or
    ``nn.BatchNorm2d`` (timm's own, SyncBatchNorm), activations and gates that somebody wrote out
    (``x * relu6(x + 3) / 6``), and ``nn.RReLU``, which is a leaky ReLU in evaluation.
    """
    _name_activations(model)
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


def _name_activations(model: nn.Module) -> None:
    """Put torch's activation in the place of a module of the same values, by rounding."""
    found: dict[nn.Module, nn.Module | None] = {}
    for parent in [*model.modules()]:
        for name, child in [*parent._modules.items()]:
            if child is None:
                continue
            known = found[child] if child in found else found.setdefault(child, _computed(child))
            if known is not None:
                setattr(parent, name, known)


def _computed(module: nn.Module) -> nn.Module | None:
    """The one of ``WRITTEN`` that a module computes that holds no values; else nothing."""
    if type(module) is nn.RReLU:  # in evaluation
        return nn.LeakyReLU((module.lower + module.upper) / 2)
    foreign = not type(module).__module__.startswith(("torch.", "pytorchcv."))
    held = [*module.parameters(), *module.buffers(), *module._forward_hooks]
    if not foreign or held or module._forward_pre_hooks:
        return None
    values = torch.linspace(-8, 8, 1024).view(1, 4, 16, 16)
    with torch.no_grad():
        try:
            # It may write into what it is given, and count its calls.
            found = copy.deepcopy(module).eval()(values.clone())
        except Exception:  # a network's own code raises whatever it likes
            return None
        if not isinstance(found, torch.Tensor) or found.shape != values.shape:
            return None
        alike = (own for own in WRITTEN if torch.allclose(found, own(values), 1e-5, 1e-6))
        return copy.deepcopy(next(alike, None))


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
