"""Every term of the synthesis' objective, one pure function a term."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from synq.models.judgement import SMALLEST_DIFFICULTY, difficulty

SMALLEST_VARIANCE = 1e-6


class Statistics(NamedTuple):
    """Mean and variance of each channel, ``[C_l]`` each, for every BatchNorm layer."""

    means: list[Tensor]
    variances: list[Tensor]


def bn_alignment(
    batch: Statistics, target: Statistics, layer_weights: Sequence[float] | None = None
) -> tuple[Tensor, Tensor]:
    """L_bn = (1/L) sum_l w_l [mse(mean_l) + mse(var_l)], its two parts (ZeroQ; paper, eq. 2)."""
    weights = layer_weights or [1.0] * len(target.means)
    means, variances = (
        _squares(owns, wanteds, weights) / len(weights)
        for owns, wanteds in zip(batch, target, strict=True)
    )
    return means, variances


def deviation_alignment(batch: Statistics, target: Statistics) -> tuple[Tensor, Tensor]:
    """(1/L) sum_l [mse(mean_l) + mse(std_l)], its two parts (Genie, Jeon et al., CVPR 2023)."""
    return bn_alignment(_with_deviations(batch), _with_deviations(target))


def _with_deviations(of: Statistics) -> Statistics:
    # The root of nothing has no gradient.
    return Statistics(of.means, [(v + SMALLEST_VARIANCE).sqrt() for v in of.variances])


def deep_alignment(
    batch: Statistics, target: Statistics, first_layer: int, divisor: float
) -> Tensor:
    """L_lbns = sum over layers l >= first of [mse(mean_l) + mse(var_l)] / divisor (TexQ)."""
    means, variances = (
        _squares(owns[first_layer:], wanteds[first_layer:], [1.0] * len(owns[first_layer:]))
        for owns, wanteds in zip(batch, target, strict=True)
    )
    return (means + variances) / divisor


def _squares(owns: Sequence[Tensor], wanteds: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """sum_l w_l mse(own_l, wanted_l), on all channels at once: a layer is too small for itself."""
    shares = [
        torch.full_like(wanted, weight / len(wanted))
        for wanted, weight in zip(wanteds, weights, strict=True)
    ]
    return (torch.cat(list(owns)) - torch.cat(list(wanteds))).square() @ torch.cat(shares)


def target_loss(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    """mean_i d_i^gamma CE(f(x_i), y_i): cross-entropy that dwells on hard images (HAST, eq. 4)."""
    entropy = functional.cross_entropy(logits, labels, reduction="none")
    if gamma == 0:
        return entropy.mean()
    hardness = difficulty(logits, labels).clamp_min(SMALLEST_DIFFICULTY)
    return (hardness.pow(gamma) * entropy).mean()


def total_variation(images: Tensor) -> Tensor:
    """Mean |difference| of pixels side by side plus that of pixels one above the other."""
    beside = (images[..., 1:] - images[..., :-1]).abs().mean()
    above = (images[..., 1:, :] - images[..., :-1, :]).abs().mean()
    return beside + above
