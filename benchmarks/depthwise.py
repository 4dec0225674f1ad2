"""A second network for the photographs, with depthwise layers: ``python -m benchmarks.depthwise``.

The photographs have one network of their own, and what is chosen on it may suit it alone. This one
has the inverted residual units of MobileNetV2 (Sandler et al., 2018, table 1) at 32 px. It learns
from the development half of the photographs and from what the first network says of them (Hinton
et al., 2015), so that the report half is as new to it as to the first.
``experiments/photographs-depthwise.yaml`` measures methods on it. With ``--activation`` it has
SiLU as EfficientNet has, or Hardswish as MobileNetV3, both of which fall below 0
(``experiments/photographs-signed.yaml``).
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from synq.config.images import TestSet
from synq.data.augment import crop_and_flip
from synq.data.datasets import normalise, read
from synq.finetuning.losses import distillation
from synq.io.artifacts import atomic, file_sha256
from synq.models.teacher import read_teacher
from synq.runtime.process import generator_for
from synq.runtime.progress import progress

CLASSES, SIDE = 10, 32
MEAN, STD = [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]
STEM, HEAD, EXPANSION = 24, 192, 4
STAGES = ((24, 2, 2), (40, 3, 1), (80, 3, 2))  # channels, units, stride of the first unit
BATCH, RATE, DECAY, TEMPERATURE = 64, 0.1, 5e-4, 4.0
Activation = Callable[[Tensor], Tensor]


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Module:
    """A convolution without bias, and its BatchNorm layer."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    )


class Unit(nn.Module):
    """An inverted residual unit: wider, depthwise, narrower without an activation."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: Activation) -> None:
        super().__init__()
        self.activation = activation
        inner = EXPANSION * inputs
        self.wider = convolution(inputs, inner, 1)
        self.depthwise = convolution(inner, inner, 3, stride, groups=inner)
        self.narrower = convolution(inner, outputs, 1)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """``[N, inputs, H, W]`` to ``[N, outputs, H / stride, W / stride]``."""
        y = self.activation(self.wider(x))
        y = self.narrower(self.activation(self.depthwise(y)))
        return x + y if self.residual else y


class Depthwise(nn.Module):
    """Logits ``[N, 10]`` of images ``[N, 3, 32, 32]``; 200,000 weights."""

    def __init__(self, activation: Activation = functional.relu6) -> None:
        super().__init__()
        self.activation = activation
        self.stem = convolution(3, STEM, 3)
        units, inputs = [], STEM
        for channels, count, stride in STAGES:
            for number in range(count):
                units.append(Unit(inputs, channels, 1 if number else stride, activation))
                inputs = channels
        self.units = nn.Sequential(*units)
        self.head = convolution(inputs, HEAD, 1)
        self.classifier = nn.Linear(HEAD, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of normalised images."""
        x = self.units(self.activation(self.stem(x)))
        x = self.activation(self.head(x))
        return self.classifier(x.mean((2, 3)))


def relu6() -> nn.Module:
    """Without trained weights, for ``source: python``; so are the next two."""
    return Depthwise()


def silu() -> nn.Module:
    return Depthwise(functional.silu)


def hardswish() -> nn.Module:
    return Depthwise(functional.hardswish)


NETWORKS = {factory.__name__: factory for factory in (relu6, silu, hardswish)}


def trained(
    photographs: Path,
    teacher: nn.Module,
    epochs: int,
    seed: int,
    part: str = "development",
    activation: str = "relu6",
) -> nn.Module:
    """By SGD on the labels and on the teacher's answers, of crops and of mirrored images.

    ``part`` is the half of the photographs that is learned from.
    """
    torch.manual_seed(seed)
    student = NETWORKS[activation]().to(memory_format=torch.channels_last)
    settings = TestSet(dataset="folder", path=str(photographs), part=part)
    shape = (3, SIDE, SIDE)
    data = read("folder", settings, "test", classes=CLASSES, image_shape=shape, name="depthwise")
    pixels = data.read(torch.arange(len(data)))
    generator = generator_for(seed, "train")
    optimizer = torch.optim.SGD(
        student.parameters(), RATE, momentum=0.9, weight_decay=DECAY, nesterov=True
    )
    steps = len(data) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, RATE, total_steps=epochs * steps, pct_start=0.2
    )
    for _ in progress(range(epochs), "training, epochs"):
        order = torch.randperm(len(data), generator=generator)
        for rows in order.split(BATCH)[:steps]:
            images = normalise(pixels[rows], MEAN, STD)
            images = crop_and_flip(images, generator, crop_min=0.5, flip=0.5)
            images = images.contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                wanted = teacher(images)
            logits = student(images)
            labelled = functional.cross_entropy(logits, data.labels[rows])
            optimizer.zero_grad(set_to_none=True)
            (distillation(logits, wanted, TEMPERATURE) + labelled).backward()
            optimizer.step()
            schedule.step()
    return student.eval()


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.depthwise", description=__doc__)
    parser.add_argument("--photographs", type=Path, default="data/photographs/test")
    parser.add_argument(
        "--teacher", type=Path, required=True, help="models/MODEL/teacher.safetensors"
    )
    parser.add_argument("--output", type=Path, default="data/photographs/depthwise.pth")
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--part", choices=("development", "report"), default="development")
    parser.add_argument("--activation", choices=NETWORKS, default="relu6")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    teacher = read_teacher(chosen.teacher, torch.device("cpu")).model
    student = trained(
        chosen.photographs, teacher, chosen.epochs, chosen.seed, chosen.part, chosen.activation
    )
    with atomic(chosen.output) as temporary:
        torch.save(student.state_dict(), temporary)
    print(f"sha256: {file_sha256(chosen.output)}")


if __name__ == "__main__":
    main()
