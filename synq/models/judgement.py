"""What a teacher thinks of images: how difficult each one is."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

# (1 - p)^gamma has an infinite gradient at p = 1 where gamma < 1; one unit of float32 rounding
# below 1 is as confident as a float32 softmax can tell.
SMALLEST_DIFFICULTY = 6e-8


def difficulty(logits: Tensor, labels: Tensor) -> Tensor:
    """d_i = 1 - softmax(t_i)[y_i], ``[N]`` in [0, 1] (paper, section 4.3)."""
    return 1 - logits.softmax(1).gather(1, labels[:, None]).squeeze(1)


class Synthesized(NamedTuple):
    """Images ``[N, C, H, W]`` (normalised, on the CPU) and the teacher's view of them."""

    images: Tensor
    labels: Tensor
    confidence: Tensor


def together(parts: Iterable[Synthesized]) -> Synthesized:
    """Several parts as one, in their order."""
    return Synthesized(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def judged(teacher: nn.Module, images: Tensor, labels: Tensor) -> Synthesized:
    """The images with the teacher's probability of their label, all on the CPU."""
    device = next(teacher.parameters()).device
    with torch.no_grad():
        logits = teacher(images.to(device))
        confidence = 1 - difficulty(logits, labels.to(device))
    return Synthesized(images.cpu(), labels.cpu(), confidence.cpu())
