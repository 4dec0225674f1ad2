"""Images from noise or dead leaves: Adam on the pixels until the teacher finds them natural.

What is natural, the teacher's BatchNorm layers tell, or its attention layers where it has no such
statistics.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from synq.config.synthesis import Synthesis
from synq.data.augment import crop_and_flip
from synq.data.lowpass import blur_transfer, lowpass
from synq.errors import DivergenceError
from synq.models.judgement import Synthesized, judged
from synq.runtime.progress import progress
from synq.synthesis import losses
from synq.synthesis.leaves import dead_leaves
from synq.synthesis.losses import Statistics
from synq.synthesis.parameters import PARAMETERS
from synq.synthesis.prior import prior_of

SMALLEST_LEARNING_RATE = 1e-4


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
    prior = prior_of(teacher, image_shape, settings, centres)
    gamma = settings.target_gamma if settings.target == "hard" else 0.0

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        seen = images
        if torch.rand((), generator=generator) < settings.augment:
            crop = settings.crop_min
            seen = crop_and_flip(images, generator, crop_min=crop, flip=0.5)
        logits, loss = prior(seen)
        if settings.target != "none":
            loss = loss + settings.target_weight * losses.target_loss(logits, labels, gamma)
        return loss

    def batch_of(labels: Tensor) -> Synthesized:
        images = optimise(
            loss_of, labels, image_shape, settings, settings.iterations, generator, device
        )
        return judged(teacher, images, labels)

    device = next(teacher.parameters()).device
    count = -(-len(labels) // settings.batch_size)
    batches = [batch_of(part) for part in labels.tensor_split(count)]
    return Synthesized(*(torch.cat(tensors) for tensors in zip(*batches, strict=True)))


def optimise(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    labels: Tensor,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    iterations: int,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Adam on the pixels of one image per label, or what they are made of.

    What it begins with is drawn on the CPU. What a filter takes away has no gradient and is not in
    the images: the statistics are met by what is left, and not by noise that is filtered later.
    """
    kind = PARAMETERS[settings.parameters]
    if settings.begin == "leaves":
        optimised = kind.of_images(dead_leaves(len(labels), image_shape, generator).to(device))
    else:
        noise = torch.randn(len(labels), *image_shape, generator=generator)
        optimised = kind.of_noise(noise.to(device))
    optimised.requires_grad_()
    _, height, width = image_shape
    transfer = None
    if settings.lowpass_sigma > 0:
        transfer = blur_transfer(height, width, settings.lowpass_sigma).to(device)

    def images() -> Tensor:
        made = kind.images(optimised, (height, width))
        return made if transfer is None else lowpass(made, transfer)

    labels = labels.to(device)
    optimizer = torch.optim.Adam([optimised], settings.pixel_learning_rate)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer,
        factor=0.1,
        patience=settings.plateau_patience,
        min_lr=SMALLEST_LEARNING_RATE,
    )
    steps = progress(range(iterations), "synthesis")
    for step in steps:
        loss = loss_of(images(), labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(
                f"the synthesis loss is {value} at iteration {step}; lower "
                "synthesis.pixel_learning_rate or synthesis.target_weight"
            )
        (optimised.grad,) = torch.autograd.grad(loss, optimised)
        optimizer.step()
        schedule.step(value)
        steps.set_postfix_str(f"loss {value:.4g}", refresh=False)
    return images().detach()
