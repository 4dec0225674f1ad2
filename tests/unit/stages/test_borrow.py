"""Images of another network, through the stage."""

import h5py
import pytest
import torch
from embedded import embedded_model

from synq.config.images import RealImages
from synq.errors import ConfigError
from synq.io.shards import ShardSet, write_shard
from synq.models.digits import resnet20
from synq.models.teacher import read_teacher, shard_record, write_teacher
from synq.stages.borrow import borrow_shard

MEAN, STD = [0.5], [0.25]


@pytest.fixture
def teacher(tmp_path):
    path = tmp_path / "teacher.safetensors"
    torch.manual_seed(0)
    state = resnet20().state_dict()
    write_teacher(path, state, embedded_model(), name="net", mean=MEAN, std=STD, origin="test")
    return path


def lent(folder, *, channels=1, classes=(3, 4), side=32):
    """A shard of a network of 32 px that takes images as they are."""
    labels = torch.tensor(classes).repeat(2)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, channels, side, side, generator=generator)
    relative = read_teacher(folder / "teacher.safetensors", torch.device("cpu"))
    record = shard_record(relative, list(classes), 7, RealImages())
    about = {"model": "other", "teacher_sha256": 64 * "0", "mean": channels * [0.0]}
    path = folder / "lent.h5"
    write_shard(path, images, labels, torch.ones(4), {**record, **about, "std": channels * [1.0]})
    return path


def borrow(teacher, path):
    output = teacher.parent / "shard.h5"
    borrow_shard(teacher=teacher, lent=path, output=output, device="cpu", threads=1)
    return output


def test_the_shard_is_of_this_network_and_has_the_same_images_and_labels(teacher):
    source = lent(teacher.parent, side=16)
    path = borrow(teacher, source)
    network = read_teacher(teacher, torch.device("cpu"))
    shards = ShardSet([path], network.sha256, network.classes, network.image_shape)
    assert shards.labels.tolist() == [3, 4, 3, 4]
    before = ShardSet([source], 64 * "0").images(torch.arange(4))
    made = shards.images(torch.arange(4)) * STD[0] + MEAN[0]
    torch.testing.assert_close(made, before, atol=2e-3, rtol=0)
    with h5py.File(path) as file, h5py.File(source) as former:
        assert (file.attrs["model"], file.attrs["lent_by"]) == ("net", "other")
        assert file.attrs["lent_checksum"] == former.attrs["checksum"]
        assert (int(file.attrs["seed"]), [*file.attrs["classes"]]) == (7, [3, 4])
        # What this network thinks of them, and not what the other one did.
        assert file["confidence"][:].max() < 1


def test_it_has_the_size_that_the_network_takes_and_the_same_bytes_again(teacher):
    source = lent(teacher.parent)
    first = borrow(teacher, source).read_bytes()
    network = read_teacher(teacher, torch.device("cpu"))
    shards = ShardSet([teacher.parent / "shard.h5"], network.sha256)
    assert shards.image_shape == (1, 16, 16)
    assert borrow(teacher, source).read_bytes() == first


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"classes": (3, 10)}, "class 10 does not exist; net has 0 to 9"),
        ({"channels": 3}, "the images have 3 channels, net takes 1"),
    ],
)
def test_images_of_other_classes_or_channels_are_refused(teacher, changes, text):
    source = lent(teacher.parent, **changes)
    with pytest.raises(ConfigError) as caught:
        borrow(teacher, source)
    assert text in str(caught.value)
    assert not (teacher.parent / "shard.h5").exists()
