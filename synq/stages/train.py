"""The embedded default's teacher: a small network trained on a data set inside a package."""

from pathlib import Path

import torch
from torch.nn import functional

from synq.config.model import Model
from synq.config.train import Train
from synq.data.augment import crop_and_flip
from synq.data.datasets import digits, normalise
from synq.models.build import build
from synq.models.teacher import write_teacher
from synq.runtime.process import generator_for, prepare
from synq.runtime.progress import progress


def train(
    *, name: str, model: Model, settings: Train, output: Path, device: str, threads: int
) -> None:
    """Train with SGD on a one-cycle schedule and write the teacher."""
    target = prepare(device, threads)
    data = digits("train", model.channels, model.image_size)
    if model.mean and model.std:
        mean, std = list(model.mean), list(model.std)
    else:
        pixels = data.read(torch.arange(len(data))).transpose(0, 1).flatten(1)
        mean = [round(value, 4) for value in pixels.mean(1).tolist()]
        std = [round(value, 4) for value in pixels.std(1).tolist()]
    # Layers draw their initial weights from the global generator, and offer no other.
    torch.manual_seed(settings.seed)
    network = build(model.architecture, model.classes, model.channels, model.image_size)
    network.to(target).train()
    generator = generator_for(settings.seed, "train")
    steps_an_epoch = len(data) // settings.batch_size
    optimizer = torch.optim.SGD(
        network.parameters(),
        settings.learning_rate,
        momentum=0.9,
        weight_decay=settings.weight_decay,
        nesterov=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        settings.learning_rate,
        total_steps=settings.epochs * steps_an_epoch,
        pct_start=0.2,
    )
    for _ in progress(range(settings.epochs), "training the teacher, epochs"):
        order = torch.randperm(len(data), generator=generator)
        for indices in order.split(settings.batch_size)[:steps_an_epoch]:
            images = normalise(data.read(indices), mean, std)
            images = crop_and_flip(images, generator, crop_min=settings.crop_min, flip=0)
            noise = torch.randn(images.shape, generator=generator)
            images = (images + settings.noise * noise).to(target)
            loss = functional.cross_entropy(network(images), data.labels[indices].to(target))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    write_teacher(
        output,
        network.state_dict(),
        model,
        name=name,
        mean=mean,
        std=std,
        origin="trained on the embedded digits",
    )
