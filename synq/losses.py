"""Every term of the two objectives, one pure function a term.

N images, C classes. Weights (lambda, beta, alpha) are applied by the callers, except where a
published term carries its own scale.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

# (1 - p)^gamma has an infinite gradient at p = 1 where gamma < 1; one unit of float32 rounding
# below 1 is as confident as a float32 softmax can tell.
SMALLEST_DIFFICULTY = 6e-8


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


def difficulty(logits: Tensor, labels: Tensor) -> Tensor:
    """d_i = 1 - softmax(t_i)[y_i], ``[N]`` in [0, 1] (paper, section 4.3)."""
    return 1 - logits.softmax(1).gather(1, labels[:, None]).squeeze(1)


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


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t/T) || softmax(s/T)), mean over the batch; logits ``[N, C]``."""
    divergence = functional.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def masked_cross_entropy(logits: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """(1/N) sum_i mask_i CE(s_i, y_i): hard images are taught by soft labels alone (eq. 8)."""
    entropy = functional.cross_entropy(logits, labels, reduction="none")
    return (entropy * mask).mean()


def cam_alignment(student: Tensor, teacher: Tensor) -> Tensor:
    """mse(S_f, S_q) of saliency maps ``[N, 1, H, W]`` (paper, eq. 6)."""
    return functional.mse_loss(student, teacher)


class _Energy(torch.autograd.Function):
    """Mean over space of x^2; the gradient has the memory format of x.

    Torch's own would be contiguous: of networks that are channels last, every layer before it would
    then work across formats, and a step take a sixth to a third longer (docs/experiments.md).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.square().mean((2, 3))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        factor = gradients[0] * (2 / (x.shape[2] * x.shape[3]))
        return x * factor[:, :, None, None]


def channel_energy(features: Tensor) -> Tensor:
    """a = mean over space of F^2, l2-normalised over the channels, ``[N, K]`` (HAST)."""
    return functional.normalize(_Energy.apply(features), dim=1)


def feature_alignment(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """sum over blocks of mean((a_q - a_f)^2) (HAST, eq. 7); feature maps ``[N, K, h, w]``."""
    return torch.stack(
        [
            functional.mse_loss(channel_energy(own), channel_energy(wanted))
            for own, wanted in zip(student, teacher, strict=True)
        ]
    ).sum()
