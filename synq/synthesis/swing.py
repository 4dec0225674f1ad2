"""Swing convolutions: a convolution with a stride does not always see the same pixels (Genie).

Of a map it reads only some places with some weights, and so images that are optimised through it
become checked. Yongkweon Jeon, Chungman Lee and Ho-young Kim, *Genie: Show Me the Data for
Quantization* (CVPR 2023): its input is shifted at random, and what comes in from outside are its
own reflected margins.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


def shifted(maps: Tensor, pixels: int, generator: torch.Generator) -> Tensor:
    """Maps ``[N, C, H, W]`` moved by -pixels to pixels at random, down and to the right.

    All images of a batch alike. The margins are reflected, so a map moves by less than its side.
    """
    height, width = maps.shape[2:]
    reach = [min(pixels, side - 1) for side in (height, width)]
    first, left = (
        int(torch.randint(2 * most + 1, (), generator=generator)) if most else 0 for most in reach
    )
    down, right = reach
    padded = functional.pad(maps, (right, right, down, down), mode="reflect")
    return padded[..., first : first + height, left : left + width]


def swinging(teacher: nn.Module, pixels: int, generator: torch.Generator) -> nn.Module:
    """The teacher with shifted inputs of its convolutions that have a stride: a copy of its own.

    The copy shares the teacher's parameters and buffers, and has them shifted anew at each forward.
    """
    state = [*teacher.parameters(), *teacher.buffers()]
    network = copy.deepcopy(teacher, {id(tensor): tensor for tensor in state})

    # A function, which a further copy of the network has too, generator and all.
    def swing(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (shifted(args[0], pixels, generator), *args[1:])

    for module in network.modules():
        if isinstance(module, nn.Conv2d) and max(module.stride) > 1:
            module.register_forward_pre_hook(swing)
    return network
