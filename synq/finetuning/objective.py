"""The objective of fine-tuning: all its terms and their gradient, from few forwards (alg. 1)."""

import contextlib
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from synq.config.finetune import Finetune
from synq.finetuning import losses
from synq.finetuning.saliency import activation_map
from synq.models.features import cam_layer, feature_blocks
from synq.models.hooks import recorded
from synq.models.judgement import difficulty
from synq.runtime.process import autocast


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
        device = next(teacher.parameters()).device
        self.autocast = partial(autocast, device, settings.precision)
        self.blocks = feature_blocks(teacher, image_shape) if settings.feature_weight > 0 else []
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
            stack.enter_context(recorded(blocks, apart=True)),
            # Without a perturbation nothing before the map has a gradient in the teacher, so the
            # graph of its map begins there.
            stack.enter_context(recorded(maps, transform=_with_gradient, apart=True)),
        )

    def backward(self, images: Tensor, labels: Tensor) -> Terms:
        """Add the gradient of the objective to the student's parameters; the losses, detached.

        ``images`` ``[N, C, H, W]`` are augmented and filtered, ``labels`` ``[N]``.
        """
        s = self.settings
        parameters = [p for p in self.student.parameters() if p.requires_grad]
        images = images.detach().requires_grad_(s.perturbation > 0)
        with self.autocast():
            teacher, student = self.teacher(images).float(), self.student(images).float()
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
            with self.autocast():
                with torch.no_grad():
                    teacher = self.teacher(moved).float()
                student = self.student(moved).float()
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
            return difficulty(teacher, labels) < self.settings.difficulty_threshold
        return torch.full_like(labels, self.settings.hard_labels == "all", dtype=torch.bool)

    def _main_terms(
        self, teacher: Tensor, student: Tensor, labels: Tensor, easy: Tensor, features: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        s = self.settings
        distilled = s.distillation_weight * losses.distillation(student, teacher, s.temperature)
        entropy = losses.masked_cross_entropy(student, labels, easy)
        aligned = entropy.new_zeros(())
        if features:
            own = [self._of_student.features[name].float() for name in self.blocks]
            wanted = [self._of_teacher.features[name].float() for name in self.blocks]
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
