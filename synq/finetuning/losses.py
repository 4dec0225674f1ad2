"""Every term of the two objectives, one pure function a term.

N images, C classes. Weights (lambda, beta, alpha) are applied by the callers, except where a
published term carries its own scale.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from synq.config.finetune import Finetune

# What the quantizers of activations are given, before they round it.
ROUNDED = "activations"
# Of a layer that answers with zeros alone.
SMALLEST_POWER = 1e-12


def distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t/T) || softmax(s/T)), mean over the batch; logits ``[N, C]``."""
    divergence = functional.kl_div(
        (student / temperature).log_softmax(1),
        (teacher / temperature).log_softmax(1),
        reduction="batchmean",
        log_target=True,
    )
    return temperature**2 * divergence


def _as_it_is(means: Tensor) -> Tensor:
    return means


def relative_errors(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    whole: Callable[[Tensor], Tensor] = _as_it_is,
) -> Tensor:
    """sum over layers of mean((F_q - F_f)^2) / mean(F_f^2); feature maps of one shape each.

    The division makes a term of every layer out of what it is wrong by, whatever its size: the
    reconstruction error of BRECQ (Li et al., ICLR 2021) for all blocks at once. ``whole`` makes of
    the layers' means over these images ``[layers]`` those over a batch that they are a part of.
    """
    powers = whole(torch.stack([wanted.square().mean() for wanted in teacher]))
    errors = [
        functional.mse_loss(own, wanted) for own, wanted in zip(student, teacher, strict=True)
    ]
    return (torch.stack(errors) / powers.clamp_min(SMALLEST_POWER)).sum()


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


class View(NamedTuple):
    """What one forward of both networks on a batch shows, for the terms of the objective.

    Logits ``[N, C]``, ``labels`` ``[N]``, ``easy`` ``[N]`` (taught by their label too), the
    recorded feature maps of the student and the teacher by module, and the class activation maps,
    which are made when they are asked for. ``whole`` makes of means over these images means over
    the batch, which several processes may share.
    """

    student: Tensor
    teacher: Tensor
    labels: Tensor
    easy: Tensor
    features: Callable[[str], tuple[list[Tensor], list[Tensor]]]
    maps: Callable[[Any], tuple[Tensor, Tensor]]
    whole: Callable[[Tensor], Tensor]


class Term(NamedTuple):
    """A term of the objective: the setting that is its weight, and its function.

    ``reads`` names the layers whose feature maps it needs, by a key of ``objective.LAYERS``;
    ``perturbed`` says whether it counts at x' too, ``relative`` whether it divides by means of each
    of these layers over the whole batch.
    """

    weight: str
    loss: Callable[[View, Finetune], Tensor]
    reads: str = ""
    perturbed: bool = True
    relative: bool = False


# A term is an entry here and a weight in the settings; one whose weight is 0 costs nothing.
TERMS: Mapping[str, Term] = {
    "distillation": Term(
        "distillation_weight", lambda v, s: distillation(v.student, v.teacher, s.temperature)
    ),
    "cross_entropy": Term(
        "ce_weight", lambda v, s: masked_cross_entropy(v.student, v.labels, v.easy)
    ),
    "features": Term(
        "feature_weight", lambda v, _: feature_alignment(*v.features("branches")), "branches"
    ),
    "blocks": Term(
        "block_weight",
        lambda v, _: relative_errors(*v.features("blocks"), v.whole),
        "blocks",
        relative=True,
    ),
    "activations": Term(
        "activation_weight",
        lambda v, _: relative_errors(*v.features(ROUNDED), v.whole),
        ROUNDED,
        relative=True,
    ),
    "cam": Term("cam_weight", lambda v, _: cam_alignment(*v.maps(v)), "map", perturbed=False),
}
