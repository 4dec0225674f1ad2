"""What a teacher's BatchNorm layers see, beside what they saw in training."""

import torch
from torch import Tensor, nn

from synq import losses
from synq.hooks import recorded
from synq.losses import Statistics
from synq.models import batchnorms


class Statistician:
    """Reads the statistics of every BatchNorm input, in the order of execution."""

    def __init__(self, teacher: nn.Module, image_shape: tuple[int, int, int]) -> None:
        self.teacher = teacher
        layers = batchnorms(teacher)
        example = next(teacher.parameters()).new_zeros(1, *image_shape)
        with torch.no_grad(), recorded(layers, inputs=True) as record:
            teacher(example)
        self.layers = {name: layers[name] for name in record}
        ordered = list(self.layers.values())
        state = [(layer.running_mean, layer.running_var) for layer in ordered]
        self.running = Statistics(
            [mean for mean, _ in state if mean is not None],
            [variance for _, variance in state if variance is not None],
        )
        # TexQ's "deep" layers begin here.
        self.first_deep = max((len(ordered) + 2) // 2 - 2, 0)

    def batch(self, record: dict[str, Tensor]) -> Statistics:
        return losses.batch_statistics([record[name].float() for name in self.layers])
