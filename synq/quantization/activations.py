"""Which activations are quantized, which are gates, and which functions are activations."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pytorchcv.models.common.activ import HSigmoid, HSwish, Swish
from torch import Tensor, nn
from torch.nn import functional

# By their exact type: a subclass may do anything.
QUANTIZABLE: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU),
    *(nn.Hardswish, nn.Hardtanh, nn.SiLU, nn.GELU, nn.Mish),
    *(HSwish, Swish),
)


# Their output, of [0, 1], multiplies a feature map: few values, and every error is spread by them.
GATES: tuple[type[nn.Module], ...] = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, HSigmoid)


# Whatever these are given, what they give is an activation.
_ALWAYS = (
    *("relu", "relu6", "leaky_relu", "prelu", "elu", "selu", "celu"),
    *("hardswish", "hardtanh", "silu", "gelu", "mish"),
)


# Of these an integer kernel needs to do nothing but clip its result.
CLIPPING: tuple[type[nn.Module], ...] = (nn.ReLU, nn.ReLU6, nn.Hardtanh)


# What these give holds no value that was not in their input, or zero: codes stay codes.
PRESERVING = {
    *("max_pool1d", "max_pool2d", "max_pool3d", "adaptive_max_pool2d", "pad", "dropout"),
    *("flatten", "view", "reshape", "permute", "transpose", "squeeze", "unsqueeze", "contiguous"),
    *("chunk", "split", "cat", "stack", "getitem", "unbind", "clone", "detach", "to", "roll"),
    *("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "dropout2d", "expand", "narrow"),
    "index_select",
}


# What stands between two layers, by the function's name -> its name in that of a site. Where
# everything is quantized these have codes of their own.
OPERATIONS: Mapping[str, str] = {
    **{
        name: name
        for name in (
            *("conv1d", "conv2d", "conv3d", "linear"),
            *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
            *("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"),
            *("add", "sub", "mul", "div", "cat", "stack", "mean", "interpolate"),
            *("avg_pool1d", "avg_pool2d", "avg_pool3d"),
            *("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
            *("sigmoid", "hardsigmoid", "tanh"),
        )
    },
    **dict.fromkeys(("iadd", "radd"), "add"),
    **dict.fromkeys(("isub", "rsub"), "sub"),
    **dict.fromkeys(("imul", "rmul", "multiply"), "mul"),
    **dict.fromkeys(("truediv", "itruediv", "rtruediv", "divide"), "div"),
    **dict.fromkeys(("concat", "concatenate"), "cat"),
}


def spoken(func: Callable[..., Any]) -> str:
    """The name of a function, without the signs of its spelling."""
    return str(getattr(func, "__name__", "")).strip("_")


# Activations by their arguments: clamp(min=0), clamp(0, 6), maximum(x, 0).
_BY_ARGUMENTS = {
    "clamp": "clamp",
    "clip": "clamp",
    "clamp_min": "clamp",
    "maximum": "maximum",
}


def _functions() -> dict[Callable[..., Any], tuple[str, str]]:
    places = {"F": functional, "torch": torch, "Tensor": Tensor}
    names = {**dict(zip(_ALWAYS, _ALWAYS, strict=True)), **_BY_ARGUMENTS}
    return {
        getattr(place, spelling): (f"{where}.{spelling}", name)
        for written, name in names.items()
        for spelling in (written, f"{written}_")
        for where, place in reversed(places.items())
        if hasattr(place, spelling)
    }


# Function -> how it is written, and its name in that of a site.
FUNCTIONS = _functions()


def activation(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """The name of the activation that this call is, or may be; else nothing.

    By the call alone, whatever the tensors hold: so that the calls of every forward are counted
    alike. Of ``maximum`` it is not known then whether the other tensor is 0.
    """
    name = FUNCTIONS[func][1] if func in FUNCTIONS else ""
    if name == "clamp":
        ends = dict(zip(("min", "max"), args[1:], strict=False))
        low, high = ({**ends, **kwargs}.get(end) for end in ("min", "max"))
        plain = isinstance(low, int | float) and (high is None or isinstance(high, int | float))
        return name if plain and low == 0 and high in (None, 6) else ""
    return name
