"""What is measured: the same functions that the stages call, on a network with random weights."""

import copy
import dataclasses
import functools
import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from synq.config.calibration import Calibration
from synq.config.finetune import Finetune
from synq.config.synthesis import Synthesis
from synq.data import datasets
from synq.finetuning.batches import Images
from synq.finetuning.objective import Objective
from synq.finetuning.training import STEPS_UNSEEN, Epochs
from synq.models.build import build, frozen
from synq.quantization.calibration import calibrate
from synq.quantization.convert import quantize
from synq.quantization.quantizers import Recipe
from synq.reporting.accuracy import answers
from synq.runtime.process import generator_for
from synq.runtime.team import Team
from synq.synthesis.prior import batchnorm_prior
from synq.synthesis.synthesize import synthesize


def untrained(architecture: str, classes: int, images: Tensor) -> nn.Module:
    """A network with random weights and the running statistics of ``images``.

    With them its activations have the size that training gives them.
    """
    torch.manual_seed(0)
    model = build(architecture, classes, 3, images.shape[-1])
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.momentum = 1.0
        model.train()(images)
    return model


class Called(nn.Module):
    """An activation whose own forward calls a function."""

    def __init__(self, *, inplace: bool) -> None:
        super().__init__()
        self.inplace = inplace

    def forward(self, values: Tensor) -> Tensor:
        return nn.functional.relu(values, inplace=self.inplace)


# How the activations of a network are called -> what makes one, to stand where each was.
SPELLINGS: dict[str, Callable[[], nn.Module]] = {
    "modules": lambda: nn.ReLU(inplace=True),
    "functions": lambda: Called(inplace=False),
    "functions in place": lambda: Called(inplace=True),
    "one module": functools.cache(lambda: nn.ReLU(inplace=True)),
}


def spelled(model: nn.Module, spelling: str) -> nn.Module:
    """The model with its ReLU modules in another spelling, in place."""
    for module in [*model.modules()]:
        for place, child in module.named_children():
            if type(child) is nn.ReLU:
                setattr(module, place, SPELLINGS[spelling]())
    return model


@dataclasses.dataclass
class Subject:
    """A network, its quantized copy, and a batch."""

    architecture: str
    size: int
    batch: int
    device: torch.device
    bits: tuple[int, int] = (3, 3)
    spelling: str = "modules"

    def __post_init__(self) -> None:
        self.classes = 10 if "cifar10" in self.architecture else 1000
        self.shape = (3, self.size, self.size)
        self.images = torch.randn(self.batch, *self.shape, generator=generator_for(0))
        model = untrained(self.architecture, self.classes, self.images)
        model = spelled(model, self.spelling)
        # The unit is the network as torch makes it; the stages' networks are channels last.
        self.plain = frozen(model).to(self.device)
        self.teacher: nn.Module = copy.deepcopy(self.plain)
        self.teacher.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.images = self.images.to(self.device)
        self.labels = torch.arange(self.batch, device=self.device) % self.classes
        self.student = quantize(copy.deepcopy(self.teacher), Recipe(*self.bits), self.shape).eval()
        calibrate(self.student, [self.images], Calibration(range_estimator="minmax"))

    def forward(self) -> Tensor:
        """The unit, F."""
        with torch.inference_mode():
            return self.plain(self.images)

    def teacher_forward(self) -> Tensor:
        with torch.inference_mode():
            return self.teacher(self.images)

    def student_forward(self) -> Tensor:
        with torch.inference_mode():
            return self.student(self.images)

    def iterations(self, count: int) -> Callable[[], object]:
        """``count`` iterations of the synthesis."""
        settings = Synthesis(iterations=count)
        return lambda: synthesize(
            self.teacher, self.labels.cpu(), self.shape, settings, generator_for(0)
        )

    def prior(self, mode: str) -> Callable[[], object]:
        """The BatchNorm alignment of the batch and its gradient, as the synthesis takes them."""
        settings = Synthesis(compile=mode)
        prior = batchnorm_prior(self.teacher, self.shape, settings, None)
        images = self.images.clone().requires_grad_()
        return lambda: torch.autograd.grad(prior(images)[1], images)

    def step(self, settings: Finetune) -> "Step":
        return Step(self, settings)

    def evaluation(self, count: int) -> Callable[[], object]:
        """The evaluation of ``count`` images in memory."""
        pool = self.images.cpu()

        def read(rows: Tensor) -> Tensor:
            return pool[rows % len(pool)]

        images = datasets.Images(torch.zeros(count, dtype=torch.long), read, self.classes)
        zero, one = [0.0] * 3, [1.0] * 3
        return lambda: answers([self.teacher], images.batches(self.batch, zero, one))


class Step:
    """Fine-tuning steps as the training takes them: augmentation, filter, objective, update."""

    def __init__(self, subject: Subject, settings: Finetune) -> None:
        student = copy.deepcopy(subject.student).requires_grad_(True)
        optimizer = torch.optim.SGD(
            student.parameters(), 1e-8, momentum=0.9, weight_decay=1e-4, nesterov=True
        )
        objective = Objective(subject.teacher, student, settings, subject.shape)
        objective.__enter__()
        settings = dataclasses.replace(settings, holdout=0.0)
        images = Images(InMemory(subject), settings, subject.device)  # type: ignore[arg-type]
        self.epochs = Epochs(objective, optimizer, images, 0, Team(), lambda: False)
        rows = [torch.arange(subject.batch)] * STEPS_UNSEEN
        generator = generator_for(1)
        endless = (images.batches(rows, generator) for _ in itertools.count())
        self.batches = itertools.chain.from_iterable(endless)
        self.steps = 0
        self.sums = torch.zeros((), device=subject.device)

    def __call__(self) -> None:
        images, labels = next(self.batches)
        self.sums = self.sums + self.epochs.step(images, labels, len(labels))[-1]
        self.steps += 1
        if self.steps % STEPS_UNSEEN == 0 and not torch.isfinite(self.sums):
            raise FloatingPointError("the loss of the benchmark's network is not finite")


class InMemory:
    """A subject's batch in the place of a shard set."""

    def __init__(self, subject: Subject) -> None:
        self.pool, self.labels = subject.images.cpu(), subject.labels.cpu()
        self.image_shape = subject.shape

    def images(self, indices: Tensor) -> Tensor:
        return self.pool[indices]
