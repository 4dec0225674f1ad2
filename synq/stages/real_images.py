"""The real images that a config names, checked against the network that will see them."""

from dataclasses import replace

import torch

from synq.config.images import Data, RealImages, TestSet
from synq.config.model import Model
from synq.data.datasets import Images, read
from synq.errors import ConfigError, DataError
from synq.models.teacher import Teacher

BATCH = 64  # unlabelled images that the network is asked about at once


def test_images(network: Teacher, test: TestSet) -> Images:
    """The whole test set, with labels or without."""
    return _of(network, test.dataset, test, "test")


def training_set(network: Teacher, settings: RealImages) -> Images:
    """All that few-shot and the ceiling may draw from, unlabelled ones as the network answers.

    ConfigError where none are named.
    """
    if settings.dataset == "none":
        raise ConfigError("dataset is none; real images need dataset: digits or folder")
    images = _of(network, settings.dataset, settings, "train")
    return images if images.labelled else answered(network, images, BATCH)


def _of(network: Teacher, dataset: str, settings: Data, split: str) -> Images:
    return read(
        dataset,
        settings,
        split,
        classes=network.classes,
        image_shape=network.image_shape,
        name=network.name,
    )


def unreadable(section: str, settings: TestSet | RealImages, name: str, model: Model) -> str | None:
    """Why a file of arrays does not fit the network ``name``, if so, before any job reads it."""
    if settings.dataset != "arrays" or not (model.classes and model.image_size):
        return None
    shape = (model.channels, model.image_size, model.image_size)
    split = {"test": "test", "real": "train"}[section]
    try:
        read("arrays", settings, split, classes=model.classes, image_shape=shape, name=name)
    except DataError as error:
        return f"models.{name}.{section}: {error}"
    return None


def answered(network: Teacher, images: Images, size: int) -> Images:
    """The images labelled as the network answers, which is asked about ``size`` at once."""
    device = next(network.model.parameters()).device
    with torch.inference_mode():
        labels = [
            network.model(batch.to(device)).argmax(1).cpu()
            for batch, _ in images.batches(size, network.mean, network.std)
        ]
    return replace(images, labels=torch.cat(labels), classes=network.classes)
