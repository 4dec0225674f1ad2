"""Images from noise: Adam on the pixels until the teacher finds them natural.

What is natural, the teacher's BatchNorm layers tell, or its attention layers where it has no such
statistics.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from synq import losses
from synq.augment import crop_and_flip
from synq.config import Synthesis
from synq.errors import DivergenceError
from synq.hooks import recorded
from synq.losses import Statistics
from synq.patches import PatchReader, uses_patches
from synq.runtime import autocast, progress
from synq.statistician import Statistician

SMALLEST_LEARNING_RATE = 1e-4
# Images -> the teacher's logits, and how unnatural the images are.
Prior = Callable[[Tensor], tuple[Tensor, Tensor]]


class Synthesized(NamedTuple):
    """Images ``[N, C, H, W]`` (normalised, on the CPU) and the teacher's view of them."""

    images: Tensor
    labels: Tensor
    confidence: Tensor


def synthesize(
    teacher: nn.Module,
    labels: Tensor,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    generator: torch.Generator,
    centres: Statistics | None = None,
) -> Synthesized:
    """One image for each label ``[N]``, a batch of them optimised together (paper, section 4.1).

    Batches are of nearly equal size. ``teacher`` is frozen; ``generator`` lives on the CPU.
    ``centres`` are the statistics of the calibration centres, needed where ``deep_weight`` is
    positive. Raises DivergenceError when the loss is not finite, ModelError where the teacher has
    not what ``prior`` reads.
    """
    if uses_patches(settings.prior, teacher):
        prior = patch_prior(teacher, image_shape, settings)
    else:
        prior = batchnorm_prior(teacher, image_shape, settings, centres)
    gamma = settings.target_gamma if settings.target == "hard" else 0.0

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        seen = images
        if torch.rand((), generator=generator) < settings.synthesis_augment:
            crop = settings.synthesis_crop_min
            seen = crop_and_flip(images, generator, crop_min=crop, flip=0.5)
        logits, loss = prior(seen)
        if settings.target != "none":
            loss = loss + settings.target_weight * losses.target_loss(logits, labels, gamma)
        return loss

    def batch_of(labels: Tensor) -> Synthesized:
        images = _optimise(
            loss_of, labels, image_shape, settings, settings.iterations, generator, device
        )
        return judged(teacher, images, labels)

    device = next(teacher.parameters()).device
    count = -(-len(labels) // settings.synthesis_batch_size)
    batches = [batch_of(part) for part in labels.tensor_split(count)]
    return Synthesized(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))


def batchnorm_prior(
    teacher: nn.Module,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    centres: Statistics | None,
) -> Prior:
    """w_bn L_bn + w_deep L_lbns: the statistics of training, and those of the centres."""
    reader = Statistician(teacher, image_shape, settings.synthesis_compile)

    def prior(images: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(images.device, settings.synthesis_precision):
            logits, batch = reader(images)
        mean_term, variance_term = losses.bn_alignment(batch, reader.running)
        loss = settings.bn_weight * (mean_term + variance_term)
        if settings.deep_weight > 0 and centres is not None:
            divisor: float = reader.count - reader.first_deep
            if settings.deep_norm == "released":
                divisor = reader.count * len(images)
            deep = losses.deep_alignment(batch, centres, reader.first_deep, divisor)
            loss = loss + settings.deep_weight * deep
        return logits.float(), loss

    return prior


def patch_prior(
    teacher: nn.Module, image_shape: tuple[int, int, int], settings: Synthesis
) -> Prior:
    """w_pse L_pse + w_tv L_tv: diverse patches and smooth images (PSAQ-ViT)."""
    reader = PatchReader(teacher, image_shape)

    def prior(images: Tensor) -> tuple[Tensor, Tensor]:
        with (
            recorded(reader.layers) as record,
            autocast(images.device, settings.synthesis_precision),
        ):
            logits = teacher(images).float()
        loss = settings.patch_weight * reader.loss(record, settings.patch_bandwidth)
        return logits, loss + settings.tv_weight * losses.total_variation(images)

    return prior


def calibration_centres(
    teacher: nn.Module,
    classes: int,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    generator: torch.Generator,
) -> Statistics:
    """Statistics of one optimised image a class (TexQ's calibration centres).

    1,500 iterations of L = 5 CE + (1/L) sum_l w_l [...], w_l = 0.2 in the shallow layers and 1.1 in
    the deep ones. The variance is the total one: within the images and between them.
    """
    reader = Statistician(teacher, image_shape, settings.synthesis_compile)
    weights = [0.2 if i < reader.first_deep else 1.1 for i in range(reader.count)]

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        logits, batch = reader(images)
        mean_term, variance_term = losses.bn_alignment(batch, reader.running, weights)
        return mean_term + variance_term + 5 * losses.target_loss(logits, labels, 0)

    labels = torch.arange(classes)
    device = next(teacher.parameters()).device
    images = _optimise(
        loss_of, labels, image_shape, settings, settings.centre_iterations, generator, device
    )
    with torch.no_grad():
        _, centres = reader(images)
    return centres


def judged(teacher: nn.Module, images: Tensor, labels: Tensor) -> Synthesized:
    """The images with the teacher's probability of their label, all on the CPU."""
    device = next(teacher.parameters()).device
    with torch.no_grad():
        logits = teacher(images.to(device))
        confidence = 1 - losses.difficulty(logits, labels.to(device))
    return Synthesized(images.cpu(), labels.cpu(), confidence.cpu())


def _optimise(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    labels: Tensor,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    iterations: int,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Adam on the pixels of one image a label, from noise that was drawn on the CPU."""
    noise = torch.randn(len(labels), *image_shape, generator=generator)
    images = noise.to(device).requires_grad_()
    labels = labels.to(device)
    optimizer = torch.optim.Adam([images], settings.pixel_learning_rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        factor=0.1,
        patience=settings.plateau_patience,
        min_lr=SMALLEST_LEARNING_RATE,
    )
    steps = progress(range(iterations), "synthesis")
    for step in steps:
        loss = loss_of(images, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(
                f"the synthesis loss is {value} at iteration {step}; lower "
                "synthesis.pixel_learning_rate or synthesis.target_weight"
            )
        (images.grad,) = torch.autograd.grad(loss, images)
        optimizer.step()
        schedule.step(value)
        steps.set_postfix_str(f"loss {value:.4g}", refresh=False)
    return images.detach()
