"""Real images in place of synthetic ones, through the stage."""

import numpy
import pytest
import torch
from embedded import embedded_model

from synq.config.images import RealImages
from synq.data.datasets import digits
from synq.errors import ConfigError, DataError
from synq.io.shards import ShardSet
from synq.models.digits import resnet20
from synq.models.judgement import judged
from synq.models.teacher import read_teacher, write_teacher
from synq.stages import collect as stage
from synq.stages.collect import collect_shard

SETTINGS = RealImages(dataset="digits", images_per_class=3)


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    state = resnet20().state_dict()
    write_teacher(path, state, embedded_model(), name="net", mean=[0.5], std=[0.25], origin="test")
    return path


def collect(teacher, name="shard.h5", classes=(0, 1), seed=0, settings=SETTINGS):
    output = teacher.parent / name
    collect_shard(
        teacher=teacher,
        output=output,
        classes=list(classes),
        seed=seed,
        settings=settings,
        device="cpu",
        threads=1,
    )
    return output


def images_of(path, teacher):
    network = read_teacher(teacher, torch.device("cpu"))
    shards = ShardSet([path], network.sha256)
    return shards.images(torch.arange(len(shards))), shards.labels


def test_the_shard_holds_normalised_training_images_of_its_classes(teacher):
    images, labels = images_of(collect(teacher), teacher)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    data = digits("train", 1, 16)
    pixels = data.read(torch.arange(len(data))).flatten(1)
    for image, label in zip(images * 0.25 + 0.5, labels, strict=True):
        same = ((pixels - image.flatten()).abs().amax(1) < 1e-5).nonzero().squeeze(1)
        assert label in data.labels[same]


def test_the_network_is_asked_about_a_batch_at_a_time(teacher, monkeypatch):
    asked = []

    def counted(model, images, labels):
        asked.append(len(images))
        return judged(model, images, labels)

    monkeypatch.setattr(stage, "judged", counted)
    settings = RealImages(dataset="digits", images_per_class=90)
    images, labels = images_of(collect(teacher, settings=settings), teacher)
    assert asked == [64, 64, 52]
    assert len(images) == len(labels) == sum(asked)


def test_no_image_of_the_test_set_is_drawn(teacher):
    settings = RealImages(dataset="digits", images_per_class=100)
    images, _ = images_of(collect(teacher, settings=settings), teacher)
    test = digits("test", 1, 16)
    pixels = test.read(torch.arange(len(test))).flatten(1)
    drawn = (images * 0.25 + 0.5).flatten(1)
    assert torch.cdist(drawn, pixels).min() > 1e-3


def test_the_seed_decides_the_draw_and_the_grouping_does_not(teacher):
    together, _ = images_of(collect(teacher), teacher)
    alone, _ = images_of(collect(teacher, "alone.h5", classes=(1,)), teacher)
    other, _ = images_of(collect(teacher, "other.h5", seed=1), teacher)
    assert torch.equal(together[3:], alone)
    assert not torch.equal(together, other)
    assert collect(teacher, "again.h5").read_bytes() == (teacher.parent / "shard.h5").read_bytes()


@pytest.fixture
def unlabelled(tmp_path):
    """Digits in one file without their labels, as settings."""
    data = digits("train", 1, 16)
    images = data.read(torch.arange(40)).numpy()
    numpy.savez(tmp_path / "images.npz", images=images)
    return RealImages(dataset="arrays", path=str(tmp_path / "images.npz"), images_per_class=6)


def test_unlabelled_images_are_of_the_class_that_the_network_names(teacher, unlabelled):
    network = read_teacher(teacher, torch.device("cpu"))
    images, labels = images_of(collect(teacher, classes=range(10), settings=unlabelled), teacher)
    with torch.no_grad():
        assert torch.equal(network.model(images).argmax(1), labels)
        pixels = digits("train", 1, 16).read(torch.arange(40))
        answers = network.model((pixels - 0.5) / 0.25).argmax(1)
    # A class that is rare lends what it has.
    wanted = answers.bincount(minlength=10).clamp_max(6)
    assert torch.equal(labels.bincount(minlength=10), wanted)
    apart = torch.cdist(images.flatten(1), images.flatten(1)).fill_diagonal_(1)
    assert apart.min() > 1e-3


def test_a_shard_of_classes_that_the_network_does_not_see_is_refused(teacher, unlabelled):
    network = read_teacher(teacher, torch.device("cpu"))
    pixels = digits("train", 1, 16).read(torch.arange(40))
    with torch.no_grad():
        answers = network.model((pixels - 0.5) / 0.25).argmax(1)
    numpy.savez(unlabelled.path, images=pixels[answers == answers[0]].numpy())
    other = (int(answers[0]) + 1) % 10
    with pytest.raises(DataError, match=f"sees none of the classes {other} to {other} in the"):
        collect(teacher, classes=[other], settings=unlabelled)


@pytest.mark.parametrize(
    ("settings", "classes", "error", "text"),
    [
        (RealImages(), [0], ConfigError, "dataset is none"),
        (SETTINGS, [10], ConfigError, "class 10 does not exist"),
        (
            RealImages(dataset="digits", images_per_class=500),
            [0],
            DataError,
            "class 0 has 119 images, fewer than images_per_class",
        ),
        (RealImages(dataset="folder", path="nowhere"), [0], DataError, "nowhere is not a folder"),
    ],
)
def test_what_cannot_be_drawn_is_refused_without_a_file(teacher, settings, classes, error, text):
    with pytest.raises(error, match=text):
        collect(teacher, settings=settings, classes=classes)
    assert not (teacher.parent / "shard.h5").exists()
