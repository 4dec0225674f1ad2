"""What is measured: the same functions that the stages call, on a network with random weights."""

import copy
import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor, nn

from synq.augment import crop_and_flip
from synq.calibration import calibrate
from synq.config import Calibration, Finetune, Synthesis
from synq.datasets import Images
from synq.evaluation import confusion
from synq.lowpass import blur_transfer, lowpass
from synq.models import build, frozen
from synq.quantization import quantize
from synq.runtime import generator_for
from synq.synthesis import synthesize
from synq.training import Objective


@dataclasses.dataclass
class Subject:
    """A network, its quantized copy, and a batch."""

    architecture: str
    size: int
    batch: int
    device: torch.device
    bits: tuple[int, int] = (3, 3)

    def __post_init__(self) -> None:
        self.classes = 10 if "cifar10" in self.architecture else 1000
        torch.manual_seed(0)
        model = build(self.architecture, self.classes, 3, self.size)
        self.shape = (3, self.size, self.size)
        self.images = torch.randn(self.batch, *self.shape, generator=generator_for(0))
        # Running statistics of noise, so that activations have the size that training gives them.
        with torch.no_grad():
            for layer in model.modules():
                if isinstance(layer, nn.BatchNorm2d):
                    layer.momentum = 1.0
            model.train()(self.images)
        self.teacher = frozen(model).to(self.device)
        self.images = self.images.to(self.device)
        self.labels = torch.arange(self.batch, device=self.device) % self.classes
        self.student = quantize(copy.deepcopy(self.teacher), *self.bits).eval()
        calibrate(self.student, [self.images], Calibration(range_estimator="minmax"))

    def forward(self) -> Tensor:
        """The unit, F."""
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

    def step(self, settings: Finetune) -> "Step":
        return Step(self, settings)

    def evaluation(self, count: int) -> Callable[[], object]:
        """The evaluation of ``count`` images in memory."""
        pool = self.images.cpu()

        def read(rows: Tensor) -> Tensor:
            return pool[rows % len(pool)]

        images = Images(torch.zeros(count, dtype=torch.long), read, self.classes)
        zero, one = [0.0] * 3, [1.0] * 3
        return lambda: confusion(self.teacher, images.batches(self.batch, zero, one), self.classes)


class Step:
    """Fine-tuning steps as the training takes them: augmentation, filter, objective, update."""

    def __init__(self, subject: Subject, settings: Finetune) -> None:
        self.subject, self.settings = subject, settings
        student = copy.deepcopy(subject.student).requires_grad_(True)
        self.optimizer = torch.optim.SGD(
            student.parameters(), 1e-8, momentum=0.9, weight_decay=1e-4, nesterov=True
        )
        self.objective = Objective(subject.teacher, student, settings, subject.shape)
        self.objective.__enter__()
        self.generator = generator_for(1)
        _, height, width = subject.shape
        self.transfer = blur_transfer(height, width, settings.lowpass_sigma).to(subject.device)

    def __call__(self) -> None:
        s = self.settings
        images = crop_and_flip(
            self.subject.images, self.generator, crop_min=s.crop_min, flip=s.flip
        )
        images = lowpass(images, self.transfer)
        self.optimizer.zero_grad(set_to_none=True)
        terms = self.objective.backward(images, self.subject.labels)
        values = torch.stack([*terms, self.objective.total(terms)]).cpu()
        if not torch.isfinite(values[-1]):
            raise FloatingPointError("the loss of the benchmark's network is not finite")
        self.optimizer.step()
