"""One shard of real images, in the format of the synthetic ones (few-shot fine-tuning)."""

from collections.abc import Sequence
from pathlib import Path

import torch

from synq.config.images import RealImages
from synq.data.datasets import Images, normalise
from synq.errors import DataError
from synq.io.shards import write_shard
from synq.models.judgement import Synthesized, judged, together
from synq.models.teacher import Teacher, check_classes, read_teacher, shard_record
from synq.runtime.process import generator_for, prepare
from synq.stages.real_images import training_set

BATCH = 64  # images that the network is asked about at once


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
    result = drawn(network, training_set(network, settings), classes, seed, settings)
    write_shard(output, *result, shard_record(network, classes, seed, settings))


def drawn(
    network: Teacher, images: Images, classes: Sequence[int], seed: int, settings: RealImages
) -> Synthesized:
    """``images_per_class`` of each of ``classes``, drawn by the seed, as one shard has them.

    Of unlabelled images at most so many are drawn, of each class that the network sees in them.
    """
    chosen = []
    for number in classes:
        own = (images.labels == number).nonzero().squeeze(1)
        if images.labelled and len(own) < settings.images_per_class:
            raise DataError(
                f"class {number} has {len(own)} images, fewer than images_per_class "
                f"({settings.images_per_class}); give more or ask for fewer"
            )
        # The draw of a class does not depend on how classes are grouped in shards.
        order = torch.randperm(len(own), generator=generator_for(seed, "real", number))
        chosen.append(own[order[: settings.images_per_class]])
    indices = torch.cat(chosen)
    if not len(indices):
        raise DataError(
            f"the network sees none of the classes {min(classes)} to {max(classes)} in the "
            f"{len(images)} unlabelled images; raise real.classes_per_shard, or give more"
        )
    pixels = normalise(images.read(indices), network.mean, network.std)
    labels = images.labels[indices]
    batches = zip(pixels.split(BATCH), labels.split(BATCH), strict=True)
    parts = [judged(network.model, *batch) for batch in batches]
    return together(parts)
