"""Synthetic images on disk: their layout, and that nothing but what was written is ever read."""

import time
from pathlib import Path

import h5py
import numpy
import pytest
import torch

from synq.errors import ArtifactError
from synq.shards import ShardSet, write_shard

TEACHER = "0123456789abcdef" * 4
RECORD = {
    "teacher_sha256": TEACHER,
    "classes": [3, 7],
    "mean": [0.1, 0.2, 0.3],
    "seed": 5,
    "versions": {"torch": "2", "h5py": "3"},
}
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([3, 7, 3, 7, 3, 7])
CONFIDENCE = torch.linspace(0, 1, 6)


def write(path, images=IMAGES, labels=LABELS, confidence=CONFIDENCE, **record):
    write_shard(path, images, labels, confidence, RECORD | record)
    return path


@pytest.fixture
def shard(tmp_path):
    return write(tmp_path / "class-0003.h5")


def refusal(*paths, named=-1):
    """The message of the refusal, which is one line with the path and leaves no file open."""
    with pytest.raises(ArtifactError) as caught:
        ShardSet(paths, TEACHER)
    assert open_files() == 0
    assert str(paths[named]) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def open_files():
    return h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)


def test_what_was_written_is_read(shard):
    with ShardSet([shard], TEACHER) as shards:
        assert len(shards) == 6
        assert shards.labels.dtype == torch.int64
        assert torch.equal(shards.labels, LABELS)
        order = torch.tensor([4, 0, 0, 5])
        images = shards.images(order)
        assert images.dtype == torch.float32
        assert torch.equal(images, IMAGES[order])


def test_files_are_open_as_long_as_the_set(shard):
    with ShardSet([shard], TEACHER):
        assert open_files() == 1
    assert open_files() == 0


def test_several_files_are_one_set_in_their_order(tmp_path, shard):
    one = write(tmp_path / "one.h5", IMAGES[:1] + 1, torch.tensor([0]), CONFIDENCE[:1])
    with ShardSet([one, shard], TEACHER) as shards:
        assert shards.labels.tolist() == [0, *LABELS.tolist()]
        images = shards.images(torch.tensor([6, 0, 1]))
    assert torch.equal(images, torch.stack([IMAGES[5], IMAGES[0] + 1, IMAGES[0]]))


def test_the_layout_is_the_documented_one(shard):
    with h5py.File(shard, "r") as file:
        assert set(file) == {"images", "labels", "confidence"}
        images, labels, confidence = file["images"], file["labels"], file["confidence"]
        assert (images.dtype, labels.dtype, confidence.dtype) == ("<f4", "<i8", "<f4")
        assert images.chunks == (1, 3, 8, 8)
        for data in (images, labels, confidence):
            assert (data.compression, data.compression_opts, data.shuffle) == ("gzip", 4, True)
        numpy.testing.assert_array_equal(images[:], IMAGES.numpy())
        numpy.testing.assert_array_equal(labels[:], LABELS.numpy())
        numpy.testing.assert_array_equal(confidence[:], CONFIDENCE.numpy())
        attributes = dict(file.attrs)
    assert (attributes["kind"], attributes["format"]) == ("shard", 1)
    assert attributes["teacher_sha256"] == TEACHER
    assert attributes["classes"].tolist() == [3, 7]
    assert attributes["mean"].tolist() == [0.1, 0.2, 0.3]
    assert attributes["seed"] == 5
    assert attributes["versions"] == '{"h5py": "3", "torch": "2"}'
    assert len(attributes["checksum"]) == 64


def test_the_same_content_gives_the_same_bytes_at_another_time_and_place(tmp_path, shard):
    time.sleep(1.1)  # HDF5 counts its times in seconds
    view = IMAGES.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2).requires_grad_()
    again = write(tmp_path / "elsewhere" / "again.h5", images=view)
    assert again.read_bytes() == shard.read_bytes()


def test_other_content_gives_another_checksum(tmp_path, shard):
    changed = CONFIDENCE.clone()
    changed[0] = 1e-30
    others = [
        write(tmp_path / "images.h5", images=IMAGES.flip(0)),
        write(tmp_path / "labels.h5", labels=LABELS.flip(0)),
        write(tmp_path / "confidence.h5", confidence=changed),
    ]
    sums = set()
    for path in (shard, *others):
        with h5py.File(path, "r") as file:
            sums.add(file.attrs["checksum"])
    assert len(sums) == 4


def test_no_shard_at_all_is_refused():
    with pytest.raises(ArtifactError, match="no shard was given"):
        ShardSet([], TEACHER)


def test_a_missing_shard_is_refused(tmp_path, shard):
    assert "does not exist" in refusal(shard, tmp_path / "none.h5")
    assert "does not exist" in refusal(tmp_path)


@pytest.mark.parametrize("share", [0, 0.001, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_shard_is_refused(shard, share):
    content = shard.read_bytes()
    shard.write_bytes(content[: int(len(content) * share)])
    assert "truncated or not HDF5" in refusal(shard)


def test_the_first_shard_is_named_where_the_second_is_right(tmp_path, shard):
    broken = tmp_path / "broken.h5"
    broken.write_bytes(b"nothing of the kind")
    refusal(broken, shard, named=0)


@pytest.mark.parametrize("name", ["images", "labels", "confidence"])
@pytest.mark.parametrize("share", [0, 0.3, 0.9])
def test_one_flipped_bit_in_the_stored_data_is_refused(shard, name, share):
    with h5py.File(shard, "r") as file:
        data = file[name]
        chunk = data.id.get_chunk_info(data.id.get_num_chunks() - 1)
    content = bytearray(shard.read_bytes())
    content[chunk.byte_offset + int(share * chunk.size)] ^= 0x10
    shard.write_bytes(content)
    assert "damaged" in refusal(shard) or "checksum" in refusal(shard)


@pytest.mark.parametrize(("name", "value"), [("images", 0.5), ("labels", 1), ("confidence", 0.25)])
def test_data_changed_by_another_program_are_refused(shard, name, value):
    with h5py.File(shard, "r+") as file:
        file[name][0] = value
    assert "does not match its checksum" in refusal(shard)


@pytest.mark.parametrize("name", ["images", "labels", "confidence"])
def test_a_shard_without_one_of_its_arrays_is_refused(shard, name):
    with h5py.File(shard, "r+") as file:
        del file[name]
    assert "is damaged" in refusal(shard)


@pytest.mark.parametrize("name", ["format", "teacher_sha256", "checksum"])
def test_a_shard_without_one_of_its_attributes_is_refused(shard, name):
    with h5py.File(shard, "r+") as file:
        del file.attrs[name]
    assert "is damaged" in refusal(shard)


def test_another_format_version_is_refused(shard):
    with h5py.File(shard, "r+") as file:
        file.attrs["format"] = 2
    assert "has format 2, this program reads 1" in refusal(shard)


def test_the_images_of_another_teacher_are_refused(tmp_path, shard):
    other = write(tmp_path / "other.h5", teacher_sha256="f" * 64)
    text = refusal(shard, other)
    assert "made from another model" in text
    assert "ffffffffffff" in text


def test_a_shard_of_no_image_or_unequal_lengths_is_refused(tmp_path):
    def with_lengths(*lengths):
        path = Path(tmp_path, "file.h5")
        with h5py.File(path, "w") as file:
            file.attrs.update(kind="shard", format=1, teacher_sha256=TEACHER, checksum="")
            for name, length in zip(("images", "labels", "confidence"), lengths, strict=True):
                file[name] = numpy.zeros((length, 3, 8, 8) if name == "images" else length)
        return path

    assert "holds no images" in refusal(with_lengths(0, 0, 0))
    assert "not one label an image" in refusal(with_lengths(2, 1, 2))


def test_an_hdf5_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["images"] = numpy.zeros(3)
    assert "is HDF5 but no shard" in refusal(path)


def test_a_shard_that_cannot_be_written_leaves_the_old_one(shard):
    before = shard.read_bytes()
    with pytest.raises(TypeError):
        write(shard, versions={"torch": object()})
    assert shard.read_bytes() == before
    assert list(shard.parent.iterdir()) == [shard]
    assert open_files() == 0
