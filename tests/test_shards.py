import h5py
import numpy
import pytest
import torch

from synq.errors import ArtifactError
from synq.shards import ShardSet, write_shard

TEACHER = "a" * 64
RECORD = {"teacher_sha256": TEACHER, "classes": [0, 1], "seed": 3, "versions": {"torch": "2"}}


def content(count=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    return images, torch.arange(count) % 2, torch.rand(count, generator=generator)


@pytest.fixture
def shard(tmp_path):
    path = tmp_path / "class-0000.h5"
    write_shard(path, *content(), RECORD)
    return path


def refusal(path):
    with pytest.raises(ArtifactError) as caught:
        ShardSet([path], TEACHER)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE) == 0
    return str(caught.value)


def test_same_content_gives_the_same_bytes(tmp_path):
    for name in ("one.h5", "other.h5"):
        write_shard(tmp_path / name, *content(), RECORD)
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "other.h5").read_bytes()


def test_layout_is_plain_hdf5(shard):
    images, labels, confidence = content()
    with h5py.File(shard) as file:
        assert file["images"].chunks == (1, 3, 8, 8)
        assert file["images"].compression == "gzip"
        numpy.testing.assert_array_equal(file["images"], images)
        numpy.testing.assert_array_equal(file["labels"], labels)
        numpy.testing.assert_array_equal(file["confidence"], confidence)
        assert file.attrs["format"] == 1
        assert file.attrs["classes"].tolist() == [0, 1]
        assert file.attrs["versions"] == '{"torch": "2"}'


def test_several_files_are_one_set(tmp_path, shard):
    second = tmp_path / "class-0001.h5"
    write_shard(second, *content(3, seed=1), RECORD)
    with ShardSet([shard, second], TEACHER) as both:
        assert len(both) == 7
        expected = torch.stack([content(3, seed=1)[0][2], content()[0][1]])
        assert torch.equal(both.images(torch.tensor([6, 1])), expected)
        assert both.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_truncated_file_is_refused(shard, share):
    data = shard.read_bytes()
    shard.write_bytes(data[: int(len(data) * share)])
    assert "delete it" in refusal(shard)


def test_flipped_bit_in_the_images_is_refused(shard):
    with h5py.File(shard, "r+") as file:
        file["images"][2, 0, 0, 0] += 1e-6
    assert "checksum" in refusal(shard)


@pytest.mark.parametrize(
    ("attribute", "value", "reason"),
    [
        ("format", 2, "format 2"),
        ("teacher_sha256", "b" * 64, "another model"),
        ("kind", "x", "no shard"),
    ],
)
def test_foreign_file_is_refused(shard, attribute, value, reason):
    with h5py.File(shard, "r+") as file:
        file.attrs[attribute] = value
    assert reason in refusal(shard)


def test_missing_and_unrelated_files_are_refused(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = 1
    assert "no shard" in refusal(tmp_path / "other.h5")
    with pytest.raises(ArtifactError, match="no shard was given"):
        ShardSet([], TEACHER)


def test_labels_that_do_not_match_the_images_are_refused(shard):
    with h5py.File(shard, "r+") as file:
        del file["labels"]
        file["labels"] = [0, 1]
    assert "one label an image" in refusal(shard)
