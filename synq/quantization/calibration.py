"""Grids of the student, from its weights and from the images that it will be trained on."""

import contextlib
import copy
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from synq.config.calibration import Calibration
from synq.errors import DivergenceError
from synq.models.structure import statistical
from synq.quantization.affine import Grid, channel_ranges, fake_quantize
from synq.quantization.convert import activation_quantizers, observing, weight_quantizers
from synq.quantization.layers import QuantizedWeight
from synq.quantization.quantizers import Quantizer
from synq.quantization.rounding import flipped_codes

# The clip search needs the shape of the distribution, not every value of a feature map.
SAMPLE = 65_536
# Under it a channel is constant, and a ratio of variances is noise.
SMALLEST_VARIANCE = 1e-10
LARGEST_RATIO = 4.0


# Of a step: how far behind the edge of its new code a weight is moved.
INSIDE = 0.05
CLIPS = torch.linspace(0.1, 1.0, 91).tolist()
# Codes that 0 may have, less the one that it has in a grid of the extremes; of 8 bits any will do.
ZEROS = (-1, 1, 2)
WHOLE_BITS = 8


# Exponents of the error that ``range_search`` tries.
POWERS = (2.0, 2.5, 3.0, 3.5)


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
        estimator = "minmax" if self.quantizer.whole else self.settings.range_estimator
        if estimator == "mse":
            power = self.settings.range_power
            lo, hi = best_range(sample(output), self.quantizer, lo, hi, power)
        if self.batches == 0:
            self.lo, self.hi = lo, hi
        elif estimator == "minmax":
            self.lo, self.hi = torch.minimum(self.lo, lo), torch.maximum(self.hi, hi)
        else:
            # A plain mean over the batches for mse; the exponential one otherwise.
            kept = self.settings.range_momentum
            if estimator == "mse":
                kept = self.batches / (self.batches + 1)
            self.lo = kept * self.lo + (1 - kept) * lo
            self.hi = kept * self.hi + (1 - kept) * hi
        self.batches += 1
        ratio = 1.0 if self.quantizer.whole else self.settings.clip_ratio
        self.quantizer.set_range(self.lo * ratio, self.hi * ratio)


def best_clips(
    values: Tensor, quantizer: Quantizer, lo: Tensor, hi: Tensor, power: float
) -> Tensor:
    """For each grid of a quantizer the factor of ``CLIPS`` with the smallest error, as ``lo``.

    The error is the mean of |v - rounded(v)|^p, where the grid spans ``[lo, hi]`` times the factor.
    ``lo`` and ``hi`` have the axes of ``channel_ranges`` where each channel, the first axis of
    ``values``, has its grid, and no axis where all have one.
    """
    channels = min(lo.dim(), 1)
    errors = torch.stack(
        [
            (fake_quantize(values, quantizer.spanning(lo * clip, hi * clip)) - values)
            .abs()
            .pow(power)
            .flatten(channels)
            .mean(-1)
            for clip in CLIPS
        ]
    )
    return torch.tensor(CLIPS, device=lo.device)[errors.argmin(0).to(lo.device)].view_as(lo)


def best_range(
    values: Tensor, quantizer: Quantizer, lo: Tensor, hi: Tensor, power: float
) -> tuple[Tensor, Tensor]:
    """The ends of one grid with a small error, of values with the extremes ``lo`` and ``hi``.

    The error is that of ``best_clips``. Both ends by the best factor of ``CLIPS``, or by another
    code of 0 and a coarser factor: at few bits one factor for both ends leaves SiLU and Hardswish
    no code below 0.
    """
    clip = best_clips(values, quantizer, lo, hi, power)
    ends = lo * clip, hi * clip
    if not (quantizer.bits < WHOLE_BITS and lo < 0 < hi):
        return ends

    def error(lo: Tensor, hi: Tensor) -> float:
        rounded = fake_quantize(values, quantizer.spanning(lo, hi))
        return float((rounded - values).abs().pow(power).mean())

    codes = 2**quantizer.bits - 1
    usual = int((-lo * codes / (hi - lo)).round())
    least = error(*ends)
    for zero in ZEROS:
        below = usual + zero
        if not 0 < below < codes:
            continue
        widest = torch.maximum(-lo / below, hi / (codes - below))
        for factor in CLIPS[::3]:
            step = factor * widest
            found = -below * step, (codes - below) * step
            if (own := error(*found)) < least:
                least, ends = own, found
    return ends


def sample(values: Tensor) -> Tensor:
    """At most ``SAMPLE`` of the values, drawn the same way each time.

    Not evenly spaced: such places are in step with the rows of a feature map, and may all be at
    its edge.
    """
    values = values.flatten()
    if len(values) <= SAMPLE:
        return values
    generator = torch.Generator().manual_seed(0)
    return values[torch.randint(len(values), (SAMPLE,), generator=generator).to(values.device)]


def set_weight_ranges(student: nn.Module, settings: Calibration) -> None:
    """Set every grid of a weight that is not anew at each forward, and with squant the weight too.

    The grid begins at the channel's extremes, or at a searched clip. With squant a weight becomes
    what it is rounded to, which is its nearest value from then on; where steps are learned, the
    weights that SQuant flips are moved to where they are rounded to their other side.
    """
    for layer in weight_quantizers(student).values():
        set_weight_range(layer, settings)


def set_weight_range(layer: QuantizedWeight, settings: Calibration) -> None:
    """``set_weight_ranges`` of one layer."""
    weight = layer.by_output(layer.weight.detach())
    lo, hi = channel_ranges(weight)
    if settings.weight_estimator == "mse":
        clips = best_clips(weight, layer.weight_quantizer, lo, hi, settings.range_power)
        lo, hi = lo * clips, hi * clips
    layer.weight_quantizer.set_range(lo, hi)
    flipping = settings.weights == "learned" and settings.weight_rounding == "squant"
    if flipping or settings.weights == "squant":
        grid = layer.weight_quantizer.grid(weight)
        codes = flipped_codes(weight, grid)
        moved = beyond_the_edge(weight, codes, grid) if flipping else grid.values(codes)
        # It is its own inverse, where it does anything.
        layer.weight.detach().copy_(layer.by_output(moved))


def beyond_the_edge(weight: Tensor, codes: Tensor, grid: Grid) -> Tensor:
    """The weight with those moved, as little as that takes, whose nearest codes are others.

    A training goes on from there: no weight is further from the network's than half a step and what
    is ``INSIDE``.
    """
    nearest = grid.codes(weight)
    edge = grid.values(codes + (0.5 - INSIDE) * (nearest - codes))
    return torch.where(codes == nearest, weight, edge)


class BatchNormCorrection:
    """Moves the statistics of the student's BatchNorm layers by what quantization moved.

    For each layer and channel, of its input on the same images (u_t the teacher's, u_s the
    student's, on the layers before it that are corrected already),

        mean += E[u_s] - E[u_t]        var *= Var[u_s] / Var[u_t]

    and not the student's own statistics, which would import what is wrong with the images. Over
    several batches the differences are averaged. Nagel et al., "Data-Free Quantization Through
    Weight Equalization and Bias Correction" (ICCV 2019) correct the mean so. A layer that is called
    several times in a forward has the same statistics for all calls, and no difference that would
    be right for each: it stays as it is.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        self.whole = teacher
        self.teacher, self.student = statistical(teacher), statistical(student)
        self.means = {name: _kept(layer.running_mean) for name, layer in self.student.items()}
        self.variances = {name: _kept(layer.running_var) for name, layer in self.student.items()}
        self.batches = 0
        self._wanted: dict[str, tuple[Tensor, Tensor]] = {}
        self._repeated: set[str] = set()
        self._shifts: dict[str, Tensor] = {}
        self._ratios: dict[str, Tensor] = {}

    @contextlib.contextmanager
    def following(self) -> Iterator[None]:
        """Within this block a forward of the teacher is remembered, and the student's corrected."""
        with contextlib.ExitStack() as stack:
            begun = self.whole.register_forward_pre_hook(lambda *_: self._wanted.clear())
            stack.callback(begun.remove)
            for name, layer in self.teacher.items():
                hook = layer.register_forward_pre_hook(partial(self._remember, name))
                stack.callback(hook.remove)
            for name, layer in self.student.items():
                hook = layer.register_forward_pre_hook(partial(self._correct, name))
                stack.callback(hook.remove)
            yield

    def _remember(self, name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        if name in self._wanted:
            self._repeated.add(name)
        self._wanted[name] = _moments(args[0])

    def _correct(self, name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        # What is computed here is none of the calls of the layer's own, which are counted.
        with torch._C.DisableTorchFunction():
            self._move(name, layer, args)

    def _move(self, name: str, layer: nn.Module, args: tuple[Tensor, ...]) -> None:
        if name in self._repeated:
            return
        mean, variance = _moments(args[0])
        wanted_mean, wanted_variance = self._wanted[name]
        shift = mean - wanted_mean
        ratio = variance / wanted_variance.clamp_min(SMALLEST_VARIANCE)
        # A channel that is constant in one of the two tells nothing.
        varied = torch.minimum(variance, wanted_variance) > SMALLEST_VARIANCE
        ratio = torch.where(varied, ratio, torch.ones_like(ratio))
        share = 1 / (self.batches + 1)
        before = self._shifts.get(name, shift), self._ratios.get(name, ratio)
        self._shifts[name] = torch.lerp(before[0], shift, share)
        self._ratios[name] = torch.lerp(before[1], ratio, share)
        batchnorm: Any = layer
        batchnorm.running_mean.copy_(self.means[name] + self._shifts[name])
        batchnorm.running_var.copy_(
            self.variances[name] * self._ratios[name].clamp(1 / LARGEST_RATIO, LARGEST_RATIO)
        )


def _kept(statistic: Tensor | None) -> Tensor:
    assert statistic is not None
    return statistic.clone()


def _moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel of ``[N, C, ...]``."""
    axes = [0, *range(2, values.dim())]
    variance, mean = torch.var_mean(values.float(), axes, correction=0)
    return mean, variance


def calibrate(
    student: nn.Module,
    batches: Iterable[Tensor],
    settings: Calibration,
    teacher: nn.Module | None = None,
) -> None:
    """Set the grids of weights, and of activations from batches ``[n, C, H, W]``, in place.

    With ``batchnorm: corrected`` the BatchNorm layers are corrected on the way, by ``teacher``, so
    that every range is found on activations that are right already.
    """
    set_weight_ranges(student, settings)
    quantizers = activation_quantizers(student)
    observers = {name: Observer(module, settings) for name, module in quantizers.items()}
    correction = None
    if settings.batchnorm == "corrected" and teacher is not None:
        correction = BatchNormCorrection(teacher, student)
    with contextlib.ExitStack() as stack:
        stack.enter_context(observing(student, observers))
        if correction is not None:
            stack.enter_context(correction.following())
        # The batches may come from a generator that is trained between them.
        for images in batches:
            with torch.no_grad():
                if correction is not None and teacher is not None:
                    teacher(images)
                student(images)
                if correction is not None:
                    correction.batches += 1
    for name, observer in observers.items():
        if not torch.isfinite(observer.hi - observer.lo):
            raise DivergenceError(
                f"the activations of {name} are not finite on the synthetic images; "
                "synthesize them with a lower synthesis.pixel_learning_rate"
            )


def nearest_power(
    teacher: nn.Module,
    student: nn.Module,
    batches: Sequence[Tensor],
    settings: Calibration,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> float:
    """The exponent of ``POWERS`` whose calibrated student is nearest to the teacher.

    Calibrated on every other batch, ``[n, C, H, W]``, and measured on those between by ``loss``, a
    mean over a batch of the student's and the teacher's logits; on all where there is one batch.
    Which exponent is good differs between networks and widths, and this tells: the students differ
    in their grids alone. The student stays as it is.
    """
    seen, between = (batches[::2], batches[1::2]) if len(batches) > 1 else (batches, batches)
    with torch.no_grad():
        answers = [teacher(images) for images in between]
    found: dict[float, float] = {}
    for power in POWERS:
        trial = copy.deepcopy(student)
        calibrate(trial, seen, dataclasses.replace(settings, range_power=power), teacher)
        with torch.no_grad():
            losses = [
                len(images) * loss(trial(images), wanted)
                for images, wanted in zip(between, answers, strict=True)
            ]
        total = float(torch.stack(losses).sum())
        found[power] = math.inf if math.isnan(total) else total
    return min(found, key=found.__getitem__)
