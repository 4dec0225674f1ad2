"""Quantization-aware fine-tuning of the student on synthetic images (paper, algorithm 1)."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from synq import losses
from synq.augment import crop_and_flip
from synq.config import Finetune
from synq.errors import DivergenceError, ModelError
from synq.hooks import recorded
from synq.lowpass import blur_transfer, lowpass
from synq.runtime import generator_for, progress
from synq.saliency import activation_map, cam_layer
from synq.shards import ShardSet, split


class Terms(NamedTuple):
    """The losses of one step before their lambdas; ``distillation`` carries alpha."""

    distillation: Tensor
    cross_entropy: Tensor
    features: Tensor
    cam: Tensor
    perturbed: Tensor


class Recording(NamedTuple):
    """What the hooks keep of a network's newest forward, by the modules' names."""

    features: dict[str, Tensor]
    maps: dict[str, Tensor]


class Objective:
    """The whole objective for one pair of networks; use it as a context, which holds the hooks.

    A step costs ten forwards of the network where everything is on: the teacher at x (1), its
    gradient to the image (1) and at x' (1), the student at x (1), its gradients to the image (1)
    and the parameters (2), and the same at x' without the image (3). Features and activation maps
    are read from those same forwards.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        settings: Finetune,
        image_shape: tuple[int, int, int],
    ) -> None:
        self.teacher, self.student, self.settings = teacher, student, settings
        self.size = image_shape[1:]
        self.blocks = feature_blocks(teacher) if settings.feature_weight > 0 else []
        self.cam = cam_layer(teacher, image_shape) if settings.cam != "off" else ""
        self._stack = contextlib.ExitStack()
        self._of_teacher = self._of_student = Recording({}, {})

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._of_teacher = self._record(stack, self.teacher)
            self._of_student = self._record(stack, self.student)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _record(self, stack: contextlib.ExitStack, model: nn.Module) -> Recording:
        blocks = {name: model.get_submodule(name) for name in self.blocks}
        maps = {self.cam: model.get_submodule(self.cam)} if self.cam else {}
        return Recording(
            stack.enter_context(recorded(blocks)),
            # Without a perturbation nothing before the map has a gradient in the teacher, so the
            # graph of its map begins there.
            stack.enter_context(recorded(maps, transform=_with_gradient)),
        )

    def backward(self, images: Tensor, labels: Tensor) -> Terms:
        """Add the gradient of the objective to the student's parameters; the losses, detached.

        ``images`` ``[N, C, H, W]`` are augmented and filtered, ``labels`` ``[N]``.
        """
        s = self.settings
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        images = images.detach().requires_grad_(s.perturbation > 0)
        teacher, student = self.teacher(images), self.student(images)
        easy = self._easy(teacher.detach(), labels)
        terms = self._main_terms(teacher, student, labels, easy, bool(self.blocks))
        main = self._weighted(terms)
        cam = self._cam_term(teacher, student, labels) if self.cam else main.new_zeros(())
        gradient = None
        if s.perturbation > 0:
            (gradient,) = torch.autograd.grad(main, images, retain_graph=True)
        (main + s.cam_weight * cam).backward(inputs=parameters)
        perturbed = main.new_zeros(())
        if gradient is not None:
            moved = perturbed_images(images.detach(), gradient, s.perturbation)
            with torch.no_grad():
                teacher = self.teacher(moved)
            student = self.student(moved)
            features = bool(self.blocks) and s.perturbed_features
            again = self._main_terms(teacher, student, labels, easy, features)
            perturbed = self._weighted(again)
            (s.perturbation_weight * perturbed).backward(inputs=parameters)
        return Terms(*(term.detach() for term in (*terms, cam, perturbed)))

    def total(self, terms: Terms) -> Tensor:
        """L_kd + lambda_ce L_ce + L_fa + lambda_pert L' + lambda_cam L_cam."""
        return (
            self._weighted(terms[:3])
            + self.settings.cam_weight * terms.cam
            + self.settings.perturbation_weight * terms.perturbed
        )

    def _easy(self, teacher: Tensor, labels: Tensor) -> Tensor:
        if self.settings.hard_labels == "easy":
            return losses.difficulty(teacher, labels) < self.settings.difficulty_threshold
        return torch.full_like(labels, self.settings.hard_labels == "all", dtype=torch.bool)

    def _main_terms(
        self, teacher: Tensor, student: Tensor, labels: Tensor, easy: Tensor, features: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        s = self.settings
        distilled = s.distillation_weight * losses.distillation(student, teacher, s.temperature)
        entropy = losses.masked_cross_entropy(student, labels, easy)
        aligned = entropy.new_zeros(())
        if features:
            own = [self._of_student.features[name] for name in self.blocks]
            wanted = [self._of_teacher.features[name] for name in self.blocks]
            aligned = losses.feature_alignment(own, wanted)
        return distilled, entropy, aligned

    def _weighted(self, terms: tuple[Tensor, ...]) -> Tensor:
        distilled, entropy, aligned = terms
        s = self.settings
        return distilled + s.ce_weight * entropy + s.feature_weight * aligned

    def _cam_term(self, teacher: Tensor, student: Tensor, labels: Tensor) -> Tensor:
        if self.settings.cam_class == "label":
            wanted_class = own_class = labels
        else:
            wanted_class = teacher.argmax(1)
            own_class = student.argmax(1) if self.settings.cam_class == "own" else wanted_class
        wanted = self._map(teacher, wanted_class, self._of_teacher)
        own = self._map(student, own_class, self._of_student)
        return losses.cam_alignment(own, wanted.detach())

    def _map(self, logits: Tensor, classes: Tensor, record: Recording) -> Tensor:
        scores = logits.gather(1, classes[:, None]).squeeze(1)
        return activation_map(scores, record.maps[self.cam], self.size, self.settings.cam)


def perturbed_images(images: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
    """x' = x + epsilon sign(dL/dx): a step towards what is harder to agree on (HAST, eq. 5)."""
    return images + epsilon * gradient.sign()


def _with_gradient(output: Tensor) -> Tensor:
    if output.requires_grad or not torch.is_grad_enabled():
        return output
    return output.detach().requires_grad_()


def feature_blocks(model: nn.Module) -> list[str]:
    """Names of the residual branches, whose outputs HAST aligns (``body`` in pytorchcv)."""
    names = [name for name, _ in model.named_modules() if name.split(".")[-1] == "body"]
    if not names:
        raise ModelError(
            "the model has no residual branch (a module named body) to align features of; "
            "set finetune.feature_weight: 0"
        )
    return names


@dataclass
class Progress:
    """All that an interrupted fine-tuning needs to go on, at the end of an epoch."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    momentum: dict[str, Tensor] = field(default_factory=dict)


class Images:
    """The synthetic images as fine-tuning sees them: split, filtered, augmented."""

    def __init__(self, shards: ShardSet, settings: Finetune, device: torch.device) -> None:
        self.shards, self.settings, self.device = shards, settings, device
        self.train, self.held_out = split(shards.labels, settings.holdout)
        channels, height, width = shards.images(torch.tensor([0]))[0].shape
        self.shape = (channels, height, width)
        self.transfer = blur_transfer(height, width, settings.lowpass_sigma).to(device)

    def batch(self, indices: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Images and labels on the device; augmented where there is a generator."""
        s = self.settings
        images = self.shards.images(indices).to(self.device)
        if s.lowpass == "before":
            images = lowpass(images, self.transfer)
        if generator is not None:
            images = crop_and_flip(images, generator, crop_min=s.crop_min, flip=s.flip)
        if s.lowpass == "batch":
            images = lowpass(images, self.transfer)
        return images, self.shards.labels[indices].to(self.device)


def held_out_loss(
    teacher: nn.Module, student: nn.Module, images: Images, settings: Finetune
) -> float:
    """Mean distillation loss on the held-out images, which selects the epoch; nan if none."""
    if not len(images.held_out):
        return math.nan
    total = 0.0
    with torch.inference_mode():
        for indices in images.held_out.split(settings.batch_size):
            batch, _ = images.batch(indices, None)
            loss = losses.distillation(student(batch), teacher(batch), settings.temperature)
            total += float(loss) * len(indices)
    return total / len(images.held_out)


def finetune(
    teacher: nn.Module,
    student: nn.Module,
    images: Images,
    settings: Finetune,
    seed: int,
    state: Progress,
) -> Iterator[Progress]:
    """Fine-tune in place and yield the progress after every epoch, the state's own to begin with.

    ``student`` is calibrated, or holds the weights of ``state.epoch``. Each epoch's randomness
    depends on the seed and its number alone, so that a resumed run is the uninterrupted one.
    Raises DivergenceError when a loss is not finite.
    """
    student.eval().requires_grad_(True)
    named = dict(student.named_parameters())
    optimizer = torch.optim.SGD(
        named.values(),
        settings.learning_rate,
        settings.momentum,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    for name, buffer in state.momentum.items():
        optimizer.state[named[name]]["momentum_buffer"] = buffer.to(named[name].device)
    if state.epoch == 0:
        state.history = [
            {"epoch": 0, "held_out": held_out_loss(teacher, student, images, settings)}
        ]
        yield state
    with Objective(teacher, student, settings, images.shape) as objective:
        for epoch in range(state.epoch + 1, settings.epochs + 1):
            passed = sum(epoch > milestone for milestone in settings.lr_milestones)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * settings.lr_decay**passed
            record = _epoch(objective, optimizer, images, settings, seed, epoch)
            record["held_out"] = held_out_loss(teacher, student, images, settings)
            momentum = {
                name: optimizer.state[parameter]["momentum_buffer"].clone()
                for name, parameter in named.items()
                if optimizer.state[parameter].get("momentum_buffer") is not None
            }
            state = Progress(epoch, [*state.history, record], momentum)
            yield state


def _epoch(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    images: Images,
    settings: Finetune,
    seed: int,
    epoch: int,
) -> dict[str, float]:
    """One pass; the mean of each loss."""
    generator = generator_for(seed, "finetune", epoch)
    order = images.train[torch.randperm(len(images.train), generator=generator)]
    batches = order.split(settings.batch_size)
    sums = torch.zeros(len(Terms._fields) + 1)
    for step, indices in enumerate(progress(batches, f"epoch {epoch}/{settings.epochs}")):
        batch, labels = images.batch(indices, generator)
        optimizer.zero_grad(set_to_none=True)
        terms = objective.backward(batch, labels)
        values = torch.stack([*terms, objective.total(terms)]).cpu()
        if not torch.isfinite(values[-1]):
            raise DivergenceError(
                f"the fine-tuning loss is {float(values[-1])} at step {step + 1} of epoch {epoch}; "
                "lower finetune.learning_rate or finetune.cam_weight"
            )
        optimizer.step()
        sums += values * len(indices)
    means = (sums / len(images.train)).tolist()
    return {"epoch": epoch, **dict(zip((*Terms._fields, "total"), means, strict=True))}
