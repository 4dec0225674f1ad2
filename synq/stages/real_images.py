"""The real images that a config names, checked against the network that will see them."""

from synq.config.images import Data, RealImages, TestSet
from synq.data.datasets import Images, read
from synq.errors import ConfigError
from synq.models.teacher import Teacher


def test_images(network: Teacher, test: TestSet) -> Images:
    """The whole test set."""
    return _of(network, test.dataset, test, "test")


def training_set(network: Teacher, settings: RealImages) -> Images:
    """All that few-shot and the ceiling may draw from; ConfigError where none are named."""
    if settings.dataset == "none":
        raise ConfigError("dataset is none; real images need dataset: digits or folder")
    return _of(network, settings.dataset, settings, "train")


def _of(network: Teacher, dataset: str, settings: Data, split: str) -> Images:
    return read(
        dataset,
        settings,
        split,
        classes=network.classes,
        image_shape=network.image_shape,
        name=network.name,
    )
