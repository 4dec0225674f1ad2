"""One shard of real images, in the format of the synthetic ones (few-shot fine-tuning)."""

from collections.abc import Sequence
from pathlib import Path

import torch

from synq.config.images import RealImages
from synq.data.datasets import Images, normalise, read
from synq.errors import ConfigError, DataError
from synq.io.shards import write_shard
from synq.models.judgement import Synthesized, judged
from synq.models.teacher import Teacher, check_classes, read_teacher, shard_record
from synq.runtime.process import generator_for, prepare


def collect_shard(
    *,
    teacher: Path,
    output: Path,
    classes: list[int],
    seed: int,
    settings: RealImages,
    device: str,
    threads: int,
) -> None:
    """Draw ``images_per_class`` real images of each of ``classes`` by the seed and write them."""
    network = read_teacher(teacher, prepare(device, threads))
    check_classes(classes, network)
    result = drawn(network, real_images(network, settings), classes, seed, settings)
    write_shard(output, *result, shard_record(network, classes, seed, settings))


def real_images(network: Teacher, settings: RealImages) -> Images:
    """All real images that ``settings`` name, checked against the network's input and classes."""
    if settings.dataset == "none":
        raise ConfigError("dataset is none; real images need dataset: digits or folder")
    return read(
        settings.dataset,
        settings,
        "train",
        classes=network.classes,
        image_shape=network.image_shape,
        name=network.name,
    )


def drawn(
    network: Teacher, images: Images, classes: Sequence[int], seed: int, settings: RealImages
) -> Synthesized:
    """``images_per_class`` of each of ``classes``, drawn by the seed, as one shard has them."""
    chosen = []
    for number in classes:
        own = (images.labels == number).nonzero().squeeze(1)
        if len(own) < settings.images_per_class:
            raise DataError(
                f"class {number} has {len(own)} images, fewer than images_per_class "
                f"({settings.images_per_class}); give more or ask for fewer"
            )
        # The draw of a class does not depend on how classes are grouped in shards.
        order = torch.randperm(len(own), generator=generator_for(seed, "real", number))
        chosen.append(own[order[: settings.images_per_class]])
    indices = torch.cat(chosen)
    pixels = normalise(images.read(indices), network.mean, network.std)
    return judged(network.model, pixels, images.labels[indices])
