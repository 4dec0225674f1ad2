"""Accuracy of a classifier on labelled images."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


def top1(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Share of images, in percent, whose largest logit is that of the label."""
    device = next(model.parameters()).device
    right = seen = 0
    with torch.inference_mode():
        for images, labels in batches:
            predicted = model(images.to(device)).argmax(1).cpu()
            right += int((predicted == labels).sum())
            seen += len(labels)
    return 100 * right / seen
