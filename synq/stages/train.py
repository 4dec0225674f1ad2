"""Training of the embedded default's network, whose weights are a file of this package.

No part of the workflow: ``docs/embedded-default.md`` has the command that made the file.
"""

from pathlib import Path

import torch
from safetensors.torch import save
from torch import nn
from torch.nn import functional

from synq.config.train import Train
from synq.data.augment import crop_and_flip
from synq.data.datasets import Images, digits, normalise
from synq.io.artifacts import atomic, file_sha256
from synq.models.digits import resnet20
from synq.runtime.process import generator_for, prepare
from synq.runtime.progress import progress


def train(*, settings: Train, output: Path, device: str, threads: int) -> None:
    """Train on the digits with SGD on a one-cycle schedule, and write a state dict.

    Weights and statistics are rounded to what float16 holds, and stored so.
    """
    target = prepare(device, threads)
    # Layers draw their initial weights from the global generator, and offer no other.
    torch.manual_seed(settings.seed)
    network = resnet20().to(device=target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    data = digits("train", 1, 16)
    pixels = data.read(torch.arange(len(data)))
    mean, std = [round(pixels.mean().item(), 4)], [round(pixels.std().item(), 4)]
    generator = generator_for(settings.seed, "train")
    _fit(network, data, mean, std, generator, settings, target)
    _measure_statistics(network, data, mean, std, target)
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    with atomic(output) as temporary:
        temporary.write_bytes(save(tensors))
    print(f"mean: {mean}, std: {std}, sha256: {file_sha256(output)}")


def _fit(
    network: nn.Module,
    data: Images,
    mean: list[float],
    std: list[float],
    generator: torch.Generator,
    settings: Train,
    device: torch.device,
) -> None:
    network.train()
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
    for _ in progress(range(settings.epochs), "training, epochs"):
        order = torch.randperm(len(data), generator=generator)
        for indices in order.split(settings.batch_size)[:steps_an_epoch]:
            images = normalise(data.read(indices), mean, std)
            images = crop_and_flip(images, generator, crop_min=settings.crop_min, flip=0)
            # Each image has its own strength, so that the network knows clean ones too.
            strength = settings.noise * torch.rand(len(images), 1, 1, 1, generator=generator)
            images = images + strength * torch.randn(images.shape, generator=generator)
            logits = network(images.to(device))
            loss = functional.cross_entropy(logits, data.labels[indices].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def _measure_statistics(
    network: nn.Module, data: Images, mean: list[float], std: list[float], device: torch.device
) -> None:
    """BatchNorm statistics of the images as they are, neither cropped nor noisy.

    Of what the synthesis aligns images with, those of the training would be the statistics of
    noise in part.
    """
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # the mean of all batches
    images = normalise(data.read(torch.arange(len(data))), mean, std).to(device)
    network(images)
    network.eval()
