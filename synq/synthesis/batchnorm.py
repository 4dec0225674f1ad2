"""What a teacher's BatchNorm layers see, beside what they saw in training."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from synq.models.hooks import recorded
from synq.models.structure import batchnorms
from synq.runtime.process import compiled
from synq.synthesis.losses import Statistics


class Statistician:
    """A copy of a teacher that also answers with the statistics of every BatchNorm input.

    The layers stand in the order of execution. The copy shares the teacher's parameters, and is
    compiled unless ``mode`` is off.
    """

    def __init__(
        self, teacher: nn.Module, image_shape: tuple[int, int, int], mode: str = "off"
    ) -> None:
        state = [*teacher.parameters(), *teacher.buffers()]
        network = copy.deepcopy(teacher, {id(tensor): tensor for tensor in state})
        layers = batchnorms(network)
        example = next(teacher.parameters()).new_zeros(1, *image_shape)
        with torch.no_grad(), recorded(layers) as record:
            network(example)
        ordered = [layers[name] for name in record]
        self.count = len(ordered)
        # TexQ's "deep" layers begin here.
        self.first_deep = max((self.count + 2) // 2 - 2, 0)
        self._measures = [_Measure(layer) for layer in ordered]
        self.running = Statistics(
            [measure.running_mean for measure in self._measures],
            [measure.running_variance for measure in self._measures],
        )
        for layer, measure in zip(ordered, self._measures, strict=True):
            layer.forward = measure  # type: ignore[method-assign,assignment]
        self._network = compiled(network, mode)

    def __call__(self, images: Tensor) -> tuple[Tensor, Statistics]:
        """The logits for ``images`` ``[N, C, H, W]``, and mean and biased variance a channel."""
        logits: Tensor = self._network(images)
        seen = [measure.take() for measure in self._measures]
        return logits, Statistics([mean for mean, _ in seen], [variance for _, variance in seen])


class _Measure:
    """The forward of a BatchNorm layer that keeps the moments of its newest input."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        mean, variance = layer.running_mean, layer.running_var
        assert mean is not None
        assert variance is not None
        self.running_mean, self.running_variance = mean, variance
        self.seen: list[Tensor] = []
        # A subclass may do more in its forward than normalise (timm's has the activation in it).
        plain = type(layer).forward is nn.BatchNorm2d.forward
        self.forward = None if plain else layer.forward
        self.scale, self.offset = torch.ones_like(mean), torch.zeros_like(mean)
        if plain:
            self.scale = torch.rsqrt(variance + layer.eps)
            if layer.affine:
                self.scale = self.scale * layer.weight.detach()
                self.offset = layer.bias.detach()
            self.offset = self.offset - mean * self.scale

    def __call__(self, x: Tensor) -> Tensor:
        normalized, *self.seen = _NormalizedWithMoments.apply(x, self.scale, self.offset)
        return normalized if self.forward is None else self.forward(x)

    def take(self) -> tuple[Tensor, Tensor]:
        """The moments; the graph behind them lives no longer than the caller needs it."""
        (mean, variance), self.seen = self.seen, []
        return mean, variance


class _NormalizedWithMoments(torch.autograd.Function):
    """x s + o a channel, and mean and biased variance of x over batch and space.

    One function for all three, since d mean / dx = 1 / n and d var / dx = 2 (x - mean) / n: the
    gradient is g s + x a + b with one s, a and b a channel, two passes where autograd takes four.
    Nothing is kept but x. The moments are taken by the kernel of BatchNorm's own training, in two
    passes, since mean(x^2) - mean^2 loses its digits to cancellation.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, offset: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        wide = x.float() if x.dtype == torch.bfloat16 else x
        mean, variance = torch.batch_norm_update_stats(wide, None, None, 0.0)
        ctx.save_for_backward(x, mean, scale)
        normalized = torch.addcmul(offset[:, None, None], wide, scale[:, None, None])
        return normalized.to(x.dtype), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        x, mean, scale = ctx.saved_tensors
        of_normalized, of_mean, of_variance = gradients
        count = x.numel() // x.shape[1]
        factor = 2 * of_variance / count
        shift = of_mean / count - factor * mean
        gradient = torch.addcmul(shift[:, None, None], x.to(mean.dtype), factor[:, None, None])
        gradient.addcmul_(of_normalized.to(mean.dtype), scale[:, None, None])
        return gradient.to(x.dtype), None, None
