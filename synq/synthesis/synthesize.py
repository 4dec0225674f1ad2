"""Images from noise or dead leaves: Adam until the teacher finds them natural.

What is natural, the teacher's BatchNorm layers tell, or its attention layers where it has no such
statistics.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import torch
from torch import Tensor, nn

from synq.config.synthesis import Synthesis
from synq.data.augment import crop_and_flip
from synq.data.lowpass import blur_transfer, lowpass
from synq.models.judgement import Synthesized, judged, together
from synq.runtime.progress import part_of, places
from synq.synthesis import losses
from synq.synthesis.canvas import canvas_of, descend
from synq.synthesis.conditional import conditional_images
from synq.synthesis.losses import Statistics
from synq.synthesis.prior import prior_of
from synq.synthesis.resume import Batches
from synq.synthesis.swing import swinging


def synthesize(
    teacher: nn.Module,
    labels: Tensor,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    generator: torch.Generator,
    centres: Statistics | None = None,
    ends: tuple[Tensor, Tensor] | None = None,
    kept: Batches | None = None,
) -> Synthesized:
    """One image for each label ``[N]``, a batch of them optimised together (paper, section 4.1).

    Batches are of nearly equal size. ``teacher`` is frozen; ``generator`` lives on the CPU.
    ``centres`` are the statistics of the calibration centres, needed where ``deep_weight`` is
    positive. ``ends`` are black and white as the teacher takes them, ``[C, 1, 1]``, which
    ``clamp`` needs. ``kept`` has the batches that were made before, and gets each further one; what
    a generator of ``parameters: conditional`` makes, it makes all at once, and nothing is kept.
    Raises DivergenceError when the loss is not finite, ModelError where the
    teacher has not what ``prior`` reads.
    """
    device = next(teacher.parameters()).device
    filtered = filter_of(settings, image_shape, device)
    seen = swinging(teacher, settings.swing, generator) if settings.swing else teacher
    prior = prior_of(seen, image_shape, settings, centres)
    gamma = settings.target_gamma if settings.target == "hard" else 0.0

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        images = filtered(images)
        if torch.rand((), generator=generator) < settings.augment:
            images = crop_and_flip(images, generator, crop_min=settings.crop_min, flip=0.5)
        logits, loss = prior(images)
        if settings.target != "none":
            loss = loss + settings.target_weight * losses.target_loss(logits, labels, gamma)
        return loss

    parts = labels.tensor_split(-(-len(labels) // settings.batch_size))
    if settings.parameters == "conditional" or len(parts) == 1:
        kept = None
    done = kept.resume(generator) if kept else []
    if done:
        print(f"going on after {len(done)} of {len(parts)} batches", flush=True)
    rest = parts[len(done) :]
    made: Iterable[Tensor]
    shown: Iterable[Tensor]
    if settings.parameters == "conditional":
        made = conditional_images(loss_of, parts, image_shape, settings, generator, device)
    else:
        count = settings.iterations
        made = (
            optimise(loss_of, part, image_shape, settings, count, generator, device, place)
            for part, place in zip(rest, islice(places(len(parts)), len(done), None), strict=True)
        )
    if settings.clamp:
        assert ends is not None
        black, white = (end.to(device) for end in ends)
        shown = (filtered(images).clamp(black, white) for images in made)
    else:
        shown = map(filtered, made)
    for images, part in zip(shown, rest, strict=True):
        done.append(judged(teacher, images, part))
        if kept:
            kept.save(len(done) - 1, done[-1], generator)
    return together(done)


def optimise(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    labels: Tensor,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    iterations: int,
    generator: torch.Generator,
    device: torch.device,
    place: str = "",
) -> Tensor:
    """Adam on the pixels of one image per label, or what they are made of.

    ``place`` is which of several batches this is, for who watches.
    """
    canvas = canvas_of(len(labels), image_shape, settings, generator, device)
    labels = labels.to(device)
    with part_of(place):
        descend(lambda: loss_of(canvas.images(), labels), canvas.learners, iterations)
    return canvas.images().detach()


def filter_of(
    settings: Synthesis, image_shape: tuple[int, int, int], device: torch.device
) -> Callable[[Tensor], Tensor]:
    """What the images pass before the network sees them.

    What it takes away has no gradient and is not in the images: the statistics are met by what is
    left, and not by noise that is filtered later.
    """
    if settings.lowpass_sigma == 0:
        return lambda images: images
    _, height, width = image_shape
    transfer = blur_transfer(height, width, settings.lowpass_sigma).to(device)
    return lambda images: lowpass(images, transfer)
