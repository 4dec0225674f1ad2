"""One shard of another network's images, for a network that none can be synthesized from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from synq.data.refit import refitted
from synq.errors import ConfigError
from synq.io.hdf5 import refusing
from synq.io.shards import REMEDY, ShardSet, open_shard, write_shard
from synq.models.judgement import Synthesized, judged, together
from synq.models.teacher import Teacher, check_classes, read_teacher
from synq.runtime.process import prepare, versions

BATCH = 64


def borrow_shard(*, teacher: Path, lent: Path, output: Path, device: str, threads: int) -> None:
    """Write the images of the shard ``lent`` as ``teacher`` takes them: size and normalisation.

    ConfigError where they have classes or channels that it has not.
    """
    network = read_teacher(teacher, prepare(device, threads))
    with open_shard(lent) as file, refusing(lent, REMEDY):
        about = {key: file.attrs[key] for key in ("classes", "model", "seed", "settings")}
        origin = str(file.attrs["teacher_sha256"])
        mean, std = (file.attrs[key].tolist() for key in ("mean", "std"))
    classes = [int(number) for number in about["classes"]]
    check_classes(classes, network)
    shard = ShardSet([lent], origin)
    images = shard.images(torch.arange(len(shard)))
    made = borrowed(network, images, shard.labels, mean, std)
    record = {
        "classes": classes,
        "model": network.name,
        "teacher_sha256": network.sha256,
        "mean": network.mean,
        "std": network.std,
        "seed": int(about["seed"]),
        "settings": str(about["settings"]),
        "lent_by": str(about["model"]),
        "lent_checksum": shard.checksums[0],
        "versions": versions(),
    }
    write_shard(output, *made, record)
    print(
        f"{network.name} gives the class that {about['model']} gave these images a probability of "
        f"{made.confidence.mean():.3f} on average; by chance it were {1 / network.classes:.3f}"
    )


def borrowed(
    network: Teacher, images: Tensor, labels: Tensor, mean: Sequence[float], std: Sequence[float]
) -> Synthesized:
    """Images ``[N, C, H, W]``, normalised by ``mean`` and ``std``, as ``network`` takes them.

    ConfigError where it takes other channels.
    """
    channels, size, _ = network.image_shape
    if images.shape[1] != channels:
        raise ConfigError(
            f"the images have {images.shape[1]} channels, {network.name} takes {channels}; borrow "
            "them of a network of the same channels"
        )
    parts = []
    for rows in torch.arange(len(images)).split(BATCH):
        own = refitted(images[rows], mean, std, network.mean, network.std, size)
        parts.append(judged(network.model, own, labels[rows]))
    return together(parts)
