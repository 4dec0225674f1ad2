"""Which activations are quantized, which are gates, and which calls hide one from the program.

An activation is quantized by its module: a function that a forward calls has no name to keep a
range under, and nothing to be swapped.
"""

from collections.abc import Callable
from typing import Any

import torch
from pytorchcv.models.common.activ import HSigmoid, HSwish, Swish
from torch import Tensor, nn
from torch.nn import functional

# By their exact type: a subclass may do anything.
QUANTIZABLE: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.SELU, nn.CELU),
    *(nn.Hardswish, nn.SiLU, nn.GELU, nn.Mish),
    *(HSwish, Swish),
)


# Their output, of [0, 1], multiplies a feature map: few values, and every error is spread by them.
GATES: tuple[type[nn.Module], ...] = (nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, HSigmoid)


_MODULES = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "leaky_relu": nn.LeakyReLU,
    "prelu": nn.PReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "celu": nn.CELU,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "mish": nn.Mish,
}


def _functions() -> dict[Callable[..., Any], tuple[str, type[nn.Module]]]:
    places = {"F": functional, "torch": torch, "Tensor": Tensor}
    return {
        getattr(place, spelling): (f"{where}.{spelling}", module)
        for name, module in _MODULES.items()
        for spelling in (name, f"{name}_")
        for where, place in reversed(places.items())
        if hasattr(place, spelling)
    }


# Function -> how it is written, and the module that does the same.
FUNCTIONS = _functions()
