"""The caller's network as a teacher, and its images."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from synq.api.settings import described, input_size, name_of
from synq.config.images import RealImages
from synq.config.model import Model
from synq.config.synthesis import Synthesis
from synq.errors import ConfigError, DataError, ModelError, reason
from synq.io.shards import ImageSet
from synq.models.judgement import together
from synq.models.outputs import count_classes
from synq.models.structure import check_own, copied
from synq.models.teacher import Teacher, check_classes, held_teacher
from synq.models.weights import check_numbers
from synq.runtime.progress import part_of, places
from synq.stages.borrow import borrowed
from synq.stages.collect import drawn
from synq.stages.real_images import training_set
from synq.stages.synthesize import synthesized

BYTES = 2  # of a pixel, in float16


def description(
    model: Any,
    image_shape: Sequence[int],
    classes: int | None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Model:
    """The network's input as settings; ``classes`` are counted where they are not given."""
    if not isinstance(model, nn.Module):
        raise ModelError(f"model is a {type(model).__name__}, not a torch.nn.Module")
    check_own(model, name_of(model))
    settings = described(image_shape, 2 if classes is None else classes, mean, std)
    if classes is None:
        return dataclasses.replace(settings, classes=_counted(model, image_shape))
    return settings


def _counted(model: nn.Module, image_shape: Sequence[int]) -> int:
    channels, size = input_size(image_shape)
    shape = f"{channels}x{size}x{size}"
    check_numbers(model, name_of(model))  # or it would fail for a reason that misleads
    generator = torch.Generator().manual_seed(0)
    images = torch.rand((2, channels, size, size), generator=generator)
    # The caller's own network stays as it is, statistics and all.
    network = copied(model, name_of(model)).eval()
    try:
        with torch.no_grad():
            output = network(images)
    except Exception as error:  # a network's own code raises whatever it likes
        raise ModelError(
            f"{name_of(model)} fails for images of {shape} ({reason(error)}); "
            "is that the image_shape it was made for?"
        ) from None
    counts = count_classes(output, len(images))
    if not counts:
        raise ModelError(
            f"{name_of(model)} gives no logits [2, classes] for 2 images of {shape}; "
            "is it an image classifier?"
        )
    if len(counts) > 1:
        raise ModelError(
            f"{name_of(model)} gives several outputs, of {' and '.join(map(str, counts))} numbers "
            "an image, and none is called logits; give classes"
        )
    if counts[0] < 2:
        raise ModelError(
            f"{name_of(model)} gives one number an image; a classifier has a logit for each of two "
            "or more classes"
        )
    return counts[0]


def teacher_of(model: nn.Module, settings: Model, name: str, device: torch.device) -> Teacher:
    """A frozen copy of the network, checked as the workflow does."""
    return held_teacher(model, settings, name or name_of(model), device)


def image_set_of(
    network: Teacher, shards: Sequence[Sequence[int]], seed: int, settings: Synthesis | RealImages
) -> ImageSet:
    """The images of some classes, group by group, as the workflow's shards hold them."""
    _check_memory(network, shards, settings.images_per_class)
    if isinstance(settings, RealImages):
        images = training_set(network, settings)
        made = [drawn(network, images, classes, seed, settings) for classes in shards]
    else:
        made = []
        for classes, place in zip(shards, places(len(shards), "group"), strict=True):
            with part_of(place):
                made.append(synthesized(network, classes, seed, settings))
    whole = together(made)
    return ImageSet(*whole, network.mean, network.std)


def images_for(network: Teacher, images: ImageSet) -> ImageSet:
    """Images as a network takes them: those of another one with its size and normalisation.

    DataError where they do not fit and it is not known what they were normalised by.
    """
    check_classes([int(images.labels.min()), int(images.labels.max())], network)
    fit = images.image_shape == network.image_shape
    if images.mean is None or images.std is None:
        if not fit:
            raise DataError(
                f"the images are {images.image_shape}, {network.name} takes {network.image_shape}; "
                "to have them converted give mean and std, to synthesize or to ImageSet"
            )
        return images
    if fit and [*images.mean, *images.std] == [*network.mean, *network.std]:
        return images
    # As a shard would be read.
    pixels = images.pixels.float()
    made = borrowed(network, pixels, images.labels, images.mean, images.std)
    return ImageSet(*made, network.mean, network.std)


def _check_memory(network: Teacher, shards: Sequence[Sequence[int]], per_class: int) -> None:
    """ConfigError where the images alone would take half of this machine's memory."""
    channels, size, _ = network.image_shape
    count = per_class * sum(map(len, shards))
    needed = count * channels * size**2 * BYTES
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there / 2:
        raise ConfigError(
            f"images_per_class is {per_class}: {count:,} images are {needed / 1e9:.0f} GB, over "
            f"half of this machine's memory ({there / 1e9:.0f} GB); lower it, or let the workflow "
            "keep them on a disk"
        )
