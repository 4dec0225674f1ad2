"""Grids of the student, from its weights and from the images that it will be trained on."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from synq.config.calibration import Calibration
from synq.errors import DivergenceError
from synq.quantization.affine import channel_ranges, fake_quantize, grid_of_range
from synq.quantization.convert import activation_quantizers, observing, weight_quantizers
from synq.quantization.quantizers import Quantizer

# The clip search needs the shape of the distribution, not every value of a feature map.
SAMPLE = 65_536


CLIPS = torch.linspace(0.1, 1.0, 91).tolist()


class Observer:
    """Estimates one activation's range from its outputs, and sets it at once.

    The range is set before the output is quantized, so that the layers behind already see the
    activations that they will see in training.
    """

    def __init__(self, quantizer: Quantizer, settings: Calibration) -> None:
        self.quantizer = quantizer
        self.settings = settings
        self.batches = 0
        self.lo, self.hi = torch.zeros(()), torch.zeros(())

    def __call__(self, output: Tensor) -> None:
        # The range always holds 0, which ReLU gives exactly.
        lo, hi = (end.cpu() for end in torch.aminmax(output))
        lo, hi = lo.clamp_max(0), hi.clamp_min(0)
        if self.settings.range_estimator == "mse":
            clip = best_clip(output, self.quantizer.bits, self.settings.range_power)
            lo, hi = lo * clip, hi * clip
        if self.batches == 0:
            self.lo, self.hi = lo, hi
        elif self.settings.range_estimator == "minmax":
            self.lo, self.hi = torch.minimum(self.lo, lo), torch.maximum(self.hi, hi)
        else:
            # A plain mean over the batches for mse; the exponential one otherwise.
            kept = self.settings.range_momentum
            if self.settings.range_estimator == "mse":
                kept = self.batches / (self.batches + 1)
            self.lo = kept * self.lo + (1 - kept) * lo
            self.hi = kept * self.hi + (1 - kept) * hi
        self.batches += 1
        ratio = self.settings.clip_ratio
        self.quantizer.set_range(self.lo * ratio, self.hi * ratio)


def best_clip(output: Tensor, bits: int, power: float) -> float:
    """The factor on both ends of the range with the smallest mean |x - quantized(x)|^p."""
    values = output.flatten()
    values = values[:: max(len(values) // SAMPLE, 1)]
    lo, hi = values.min().clamp_max(0), values.max().clamp_min(0)
    errors = [
        (fake_quantize(values, grid_of_range(lo * clip, hi * clip, bits)) - values)
        .abs()
        .pow(power)
        .mean()
        for clip in CLIPS
    ]
    return CLIPS[int(torch.stack(errors).argmin())]


def best_channel_clips(weight: Tensor, bits: int, power: float) -> Tensor:
    """For each output channel (first axis) the factor of ``CLIPS`` with the smallest error.

    The error is the mean of |w - quantized(w)|^p; the result has the axes of ``channel_ranges``.
    """
    lo, hi = channel_ranges(weight)
    errors = torch.stack(
        [
            (fake_quantize(weight, grid_of_range(lo * clip, hi * clip, bits)) - weight)
            .abs()
            .pow(power)
            .flatten(1)
            .mean(1)
            for clip in CLIPS
        ]
    )
    return torch.tensor(CLIPS, device=weight.device)[errors.argmin(0)].view_as(lo)


def set_weight_ranges(student: nn.Module, settings: Calibration) -> None:
    """Let every learned grid of a weight begin at the channel's extremes, or at a searched clip."""
    for layer in weight_quantizers(student).values():
        weight = layer.by_output(layer.weight.detach())
        lo, hi = channel_ranges(weight)
        if settings.weight_estimator == "mse":
            bits = layer.weight_quantizer.bits
            clips = best_channel_clips(weight, bits, settings.range_power)
            lo, hi = lo * clips, hi * clips
        layer.weight_quantizer.set_range(lo, hi)


def calibrate(student: nn.Module, batches: Iterable[Tensor], settings: Calibration) -> None:
    """Set the grids of weights, and of activations from batches ``[n, C, H, W]``, in place."""
    set_weight_ranges(student, settings)
    quantizers = activation_quantizers(student)
    observers = {name: Observer(module, settings) for name, module in quantizers.items()}
    with observing(student, observers):
        # The batches may come from a generator that is trained between them.
        for images in batches:
            with torch.no_grad():
                student(images)
    for name, observer in observers.items():
        if not torch.isfinite(observer.hi):
            raise DivergenceError(
                f"the activations of {name} are not finite on the synthetic images; "
                "synthesize them with a lower synthesis.pixel_learning_rate"
            )
