"""The order of a network's tensors in memory: channels last where its code allows that."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
# Relative to the largest logit: two layouts add up in two orders, of rounding errors alone.
TOLERANCE = 1e-3


def layout_of(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """``channels_last`` where the network computes the same with it, else ``contiguous``.

    A network that takes the order of its tensors for granted (``x.view(len(x), -1)`` of a feature
    map) fails in the other order, or computes something else. The model stays as it is.
    """
    images = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    one = copy.deepcopy(model).cpu().eval()
    with torch.no_grad():
        wanted = one(images)
        try:
            found = arranged(one, "channels_last")(images)
        except Exception:  # a network's own code raises whatever it likes
            return "contiguous"
    largest = float(wanted.abs().max())
    same = torch.allclose(found, wanted, rtol=0, atol=TOLERANCE * largest)
    return "channels_last" if same else "contiguous"


def arranged(model: nn.Module, layout: str) -> nn.Module:
    """The model in a layout, in place; one that needs its input ``contiguous`` makes it so."""
    model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    if layout == "contiguous":
        # A convolution hands on the order of its input, and images come in any.
        model.register_forward_pre_hook(_contiguous)
    return model


def _contiguous(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(value.contiguous() if isinstance(value, Tensor) else value for value in args)
