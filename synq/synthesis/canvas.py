"""What is optimised so that images come of it, and how: pixels, coefficients, or a generator."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from synq.config.synthesis import Synthesis
from synq.errors import DivergenceError
from synq.runtime.progress import progress
from synq.synthesis.generators import BETAS, LATENT, Generator
from synq.synthesis.leaves import dead_leaves
from synq.synthesis.parameters import PARAMETERS

SMALLEST_LEARNING_RATE = 1e-4
# By so much of its size a loss has to fall to be a better one.
IMPROVEMENT = 1e-4
# A generator of a batch has its learning rate multiplied by this after so many iterations (Genie).
DECAY, DECAY_ITERATIONS = 0.95, 100


class Learner(NamedTuple):
    """An optimizer, and what sets its learning rate by the loss of an iteration."""

    optimizer: torch.optim.Optimizer
    follow: Callable[[float], Any]

    @property
    def tensors(self) -> list[Tensor]:
        return [tensor for group in self.optimizer.param_groups for tensor in group["params"]]


class Canvas(NamedTuple):
    """The images as they are by now, and who learns of their loss."""

    images: Callable[[], Tensor]
    learners: Sequence[Learner]


def canvas_of(
    count: int,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    generator: torch.Generator,
    device: torch.device,
) -> Canvas:
    """The canvas of ``count`` images. What it begins with is drawn on the CPU."""
    if settings.parameters == "generator":
        return _of_generator(count, image_shape, settings, generator, device)
    kind = PARAMETERS[settings.parameters]
    if settings.begin == "leaves":
        optimised = kind.of_images(dead_leaves(count, image_shape, generator).to(device))
    else:
        noise = torch.randn(count, *image_shape, generator=generator)
        optimised = kind.of_noise(noise.to(device))
    optimised.requires_grad_()
    images = partial(kind.images, optimised, image_shape[1:])
    return Canvas(images, [_on_plateaus(optimised, settings)])


def _of_generator(
    count: int,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    generator: torch.Generator,
    device: torch.device,
) -> Canvas:
    """A latent for each image and a generator for all of them, both fresh (Genie).

    Its BatchNorm layers normalise by these images, as they do until the end.
    """
    network = Generator(image_shape, generator).to(device)
    latents = torch.randn(count, LATENT, generator=generator).to(device).requires_grad_()
    optimizer = torch.optim.Adam(network.parameters(), settings.generator_learning_rate)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, DECAY_ITERATIONS, DECAY)
    learners = [
        _on_plateaus(latents, settings),
        Learner(optimizer, lambda _: schedule.step()),
    ]
    return Canvas(partial(network, latents), learners)


def _on_plateaus(tensor: Tensor, settings: Synthesis) -> Learner:
    """Adam on a tensor, its learning rate a tenth after each time without improvement."""
    optimizer = torch.optim.Adam([tensor], settings.pixel_learning_rate)
    return Learner(optimizer, Plateaus(optimizer, settings.plateau_patience).step)


class Plateaus:
    """A tenth of the learning rate after more than ``patience`` iterations without improvement.

    torch's ReduceLROnPlateau for a loss of either sign. Of a negative one, as patch similarity
    makes it, the same share of its size is a step up there, so that every loss is an improvement.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, patience: int) -> None:
        self.optimizer, self.patience = optimizer, patience
        self.best, self.waited = math.inf, 0

    def step(self, loss: float) -> None:
        """After an iteration with this loss."""
        least = IMPROVEMENT * abs(self.best) if math.isfinite(self.best) else 0.0
        if loss < self.best - least:
            self.best, self.waited = loss, 0
            return
        self.waited += 1
        if self.waited > self.patience:
            self.waited = 0
            for group in self.optimizer.param_groups:
                lower = max(group["lr"] * 0.1, SMALLEST_LEARNING_RATE)
                group["lr"] = min(group["lr"], lower)


def constant(parameters: Sequence[Tensor], rate: float) -> Learner:
    """Adam as GDFQ's program has it."""
    return Learner(torch.optim.Adam(parameters, rate, BETAS), lambda _: None)


def descend(loss_of: Callable[[], Tensor], learners: Sequence[Learner], iterations: int) -> None:
    """So many iterations; DivergenceError when the loss is not finite."""
    tensors = [tensor for learner in learners for tensor in learner.tensors]
    steps = progress(range(iterations), "synthesis")
    for step in steps:
        loss = loss_of()
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DivergenceError(
                f"the synthesis loss is {value} at iteration {step}; lower "
                "synthesis.pixel_learning_rate, synthesis.generator_learning_rate or "
                "synthesis.target_weight"
            )
        for tensor, gradient in zip(tensors, torch.autograd.grad(loss, tensors), strict=True):
            tensor.grad = gradient
        for learner in learners:
            learner.optimizer.step()
            learner.follow(value)
        steps.set_postfix_str(f"loss {value:.4g}", refresh=False)
