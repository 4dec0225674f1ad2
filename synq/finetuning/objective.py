"""The objective of fine-tuning: weighted terms and their gradient, from few forwards (alg. 1)."""

import contextlib
from collections.abc import Callable, Mapping
from functools import partial
from typing import Self

import torch
from torch import Tensor, nn

from synq.config.finetune import Finetune
from synq.errors import ConfigError
from synq.finetuning.losses import ROUNDED, TERMS, View
from synq.finetuning.saliency import activation_map
from synq.models.features import cam_layer, feature_blocks, residual_units
from synq.models.hooks import recorded
from synq.models.judgement import difficulty
from synq.quantization.convert import activation_quantizers, observing
from synq.quantization.student import opened
from synq.runtime.process import autocast
from synq.runtime.team import ALONE, Team

Shape = tuple[int, int, int]
# What a term may read -> the layers that are recorded for it.
LAYERS: Mapping[str, Callable[[nn.Module, Shape], list[str]]] = {
    "branches": feature_blocks,
    "blocks": residual_units,
    "map": lambda model, shape: [cam_layer(model, shape)],
}
Features = dict[str, dict[str, Tensor]]


def weights_of(settings: Finetune) -> dict[str, float]:
    """Name -> weight of every term that counts, in the order of ``TERMS``."""
    weights = {name: float(getattr(settings, term.weight)) for name, term in TERMS.items()}
    if settings.cam == "off":
        weights["cam"] = 0.0
    return {name: weight for name, weight in weights.items() if weight > 0}


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
        image_shape: Shape,
        team: Team = ALONE,
        unit: Tensor | None = None,
    ) -> None:
        self.teacher, self.student, self.settings = teacher, student, settings
        self.size, self.team = image_shape[1:], team
        self.weights = weights_of(settings)
        device = next(teacher.parameters()).device
        self.unit = torch.ones(1, 1, 1) if unit is None else unit
        self.unit = self.unit.to(device)
        self.autocast = partial(autocast, device, settings.precision)
        read = dict.fromkeys(TERMS[name].reads for name in self.weights if TERMS[name].reads)
        self.layers = {key: LAYERS[key](teacher, image_shape) for key in read if key != ROUNDED}
        self.rounded: list[str] = []
        if ROUNDED in read:
            # Activations that are functions have a name in a network with quantizers alone.
            self.teacher = opened(teacher, image_shape)
            # Of the student's some may be kept in full precision, and others may be sums.
            own = activation_quantizers(student)
            called = _called(self.teacher, image_shape)
            self.rounded = [name for name in called if name in own]
            if not self.rounded and settings.epochs > 0:
                raise ConfigError(
                    "finetune.activation_weight is above 0, and every activation is kept in full "
                    "precision; set it to 0"
                )
        self._stack = contextlib.ExitStack()
        self._of_teacher: Features = {}
        self._of_student: Features = {}

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._of_teacher = self._record(stack, self.teacher)
            self._of_student = self._record(stack, self.student)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _record(self, stack: contextlib.ExitStack, model: nn.Module) -> Features:
        features = {
            key: stack.enter_context(
                recorded(
                    {name: model.get_submodule(name) for name in names},
                    # Without a perturbation nothing before the map has a gradient in the teacher,
                    # so the graph of its map begins there.
                    transform=_with_gradient if key == "map" else None,
                    apart=True,
                )
            )
            for key, names in self.layers.items()
        }
        given: dict[str, Tensor] = {}
        keep = {name: partial(given.__setitem__, name) for name in self.rounded}
        stack.enter_context(observing(model, keep))
        return {**features, ROUNDED: given}

    def backward(
        self, images: Tensor, labels: Tensor, count: int | None = None
    ) -> dict[str, Tensor]:
        """Add the gradient of the objective to the student's parameters.

        ``images`` ``[N, C, H, W]`` are augmented and filtered, ``labels`` ``[N]``. What is given
        are the weighted terms, detached, ``perturbed`` (those at x') and their sum as ``total``.
        Of a team's batch of ``count`` images these are the process's own, and the terms are means
        over them; a process that has none says so by ``absent``.
        """
        s = self.settings
        whole = partial(self._whole, len(images) / (count or len(images)))
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        images = images.detach().requires_grad_(s.perturbation > 0)
        with self.autocast():
            teacher = self.teacher(images).float()
            student = self.student(images).float()
        easy = self._easy(teacher.detach(), labels)
        view = View(student, teacher, labels, easy, self._features, self._maps, whole)
        terms = self._terms(view)
        gradient = None
        if s.perturbation > 0:
            again = self._counted_again(terms)
            (gradient,) = torch.autograd.grad(again, images, retain_graph=True)
        _sum(terms).backward(inputs=parameters)
        if gradient is not None:
            moved = perturbed_images(images.detach(), gradient, s.perturbation * self.unit)
            with self.autocast():
                with torch.no_grad():
                    teacher = self.teacher(moved).float()
                student = self.student(moved).float()
            view = View(student, teacher, labels, easy, self._features, self._maps, whole)
            skipped = () if s.perturbed_features else ("features",)
            again = self._counted_again(self._terms(view, perturbed=True, skipped=skipped))
            terms["perturbed"] = s.perturbation_weight * again
            terms["perturbed"].backward(inputs=parameters)
        found = {name: term.detach() for name, term in terms.items()}
        return {**found, "total": _sum(found)}

    def absent(self) -> None:
        """Take part in what the others add up, of a batch without an image of this process."""
        device = next(self.student.parameters()).device
        for _ in range(2 if self.settings.perturbation > 0 else 1):
            for term in (TERMS[name] for name in self.weights):
                if term.relative:
                    self.team.add([torch.zeros(len(self._names(term.reads)), device=device)])

    def _whole(self, share: float, means: Tensor) -> Tensor:
        """Means over the team's batch, of which the process's own images are that share."""
        if self.team.size == 1:
            return means
        own = share * means
        total = own.detach().clone()
        self.team.add([total])
        return own + (total - own.detach())

    def names(self) -> list[str]:
        """The keys of what ``backward`` gives."""
        perturbed = ["perturbed"] if self.settings.perturbation > 0 else []
        return [*self.weights, *perturbed, "total"]

    def _terms(
        self, view: View, *, perturbed: bool = False, skipped: tuple[str, ...] = ()
    ) -> dict[str, Tensor]:
        return {
            name: weight * TERMS[name].loss(view, self.settings)
            for name, weight in self.weights.items()
            if name not in skipped and (TERMS[name].perturbed or not perturbed)
        }

    def _counted_again(self, terms: Mapping[str, Tensor]) -> Tensor:
        return _sum({name: term for name, term in terms.items() if TERMS[name].perturbed})

    def _easy(self, teacher: Tensor, labels: Tensor) -> Tensor:
        if self.settings.hard_labels == "easy":
            return difficulty(teacher, labels) < self.settings.difficulty_threshold
        return torch.full_like(labels, self.settings.hard_labels == "all", dtype=torch.bool)

    def _names(self, key: str) -> list[str]:
        return self.rounded if key == ROUNDED else self.layers[key]

    def _features(self, key: str) -> tuple[list[Tensor], list[Tensor]]:
        names = self._names(key)
        return (
            [self._of_student[key][name].float() for name in names],
            [self._of_teacher[key][name].float() for name in names],
        )

    def _maps(self, view: View) -> tuple[Tensor, Tensor]:
        """Saliency maps of the student and, as constants, of the teacher."""
        if self.settings.cam_class == "label":
            wanted_class = own_class = view.labels
        else:
            wanted_class = view.teacher.argmax(1)
            own = self.settings.cam_class == "own"
            own_class = view.student.argmax(1) if own else wanted_class
        wanted = self._map(view.teacher, wanted_class, self._of_teacher)
        return self._map(view.student, own_class, self._of_student), wanted.detach()

    def _map(self, logits: Tensor, classes: Tensor, record: Features) -> Tensor:
        scores = logits.gather(1, classes[:, None]).squeeze(1)
        (activations,) = record["map"].values()
        return activation_map(scores, activations, self.size, self.settings.cam)


def perturbed_images(images: Tensor, gradient: Tensor, epsilon: float | Tensor) -> Tensor:
    """x' = x + epsilon sign(dL/dx): a step towards what is harder to agree on (HAST, eq. 5).

    ``epsilon`` is a number, or one for each channel, ``[C, 1, 1]``.
    """
    return images + epsilon * gradient.sign()


def _sum(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([*terms.values()]).sum()


def _with_gradient(output: Tensor) -> Tensor:
    if output.requires_grad or not torch.is_grad_enabled():
        return output
    return output.detach().requires_grad_()


def _called(network: nn.Module, image_shape: Shape) -> list[str]:
    """The activations that a forward calls: a network may have modules for its training alone."""
    seen: dict[str, Tensor] = {}
    names = activation_quantizers(network)
    image = torch.zeros(1, *image_shape, device=next(network.parameters()).device)
    with torch.no_grad(), observing(network, {n: partial(seen.__setitem__, n) for n in names}):
        network(image)
    return [name for name in names if name in seen]
