"""Synthetic images on disk: their layout, and that nothing but what was written is ever read."""

import contextlib
import time

import h5py
import numpy
import pytest
import torch

from synq.errors import ArtifactError
from synq.io.hdf5 import seal, written
from synq.io.shards import ShardSet, split, write_shard

TEACHER = "0123456789abcdef" * 4
RECORD = {
    "teacher_sha256": TEACHER,
    "classes": [3, 7],
    "mean": [0.1, 0.2, 0.3],
    "seed": 5,
    "versions": {"torch": "2", "h5py": "3"},
}
IMAGES = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0)).half().float()
HALF = IMAGES.half().numpy()
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


@contextlib.contextmanager
def resealed(path):
    """Change a shard as somebody would who knows the format."""
    with h5py.File(path, "r+") as file:
        yield file
    seal(path)


def open_files():
    return h5py.h5f.get_obj_count(h5py.h5f.OBJ_ALL, h5py.h5f.OBJ_FILE)


def test_what_was_written_is_read(shard):
    shards = ShardSet([shard], TEACHER)
    assert len(shards) == 6
    assert shards.labels.dtype == torch.int64
    assert torch.equal(shards.labels, LABELS)
    order = torch.tensor([4, 0, 0, 5])
    images = shards.images(order)
    assert images.dtype == torch.float32
    assert torch.equal(images, IMAGES[order])
    assert shards.images(torch.tensor([], dtype=torch.long)).shape == (0, 3, 8, 8)


def test_images_are_rounded_to_half_precision(tmp_path):
    third = torch.full_like(IMAGES, 1 / 3)
    images = ShardSet([write(tmp_path / "third.h5", third)], TEACHER).images(torch.tensor([2]))
    assert torch.equal(images, third[:1].half().float())
    assert 0 < float((images - third[:1]).abs().max()) < 1 / 3 * 2**-11


def test_no_file_stays_open(shard):
    shards = ShardSet([shard], TEACHER)
    assert open_files() == 0
    shards.images(torch.arange(6))
    assert open_files() == 0


def test_images_of_two_sizes_are_no_set(tmp_path, shard):
    other = write(tmp_path / "small.h5", IMAGES[..., :4])
    text = refusal(shard, other)
    assert "images of (3, 8, 8)" in text
    assert "of (3, 8, 4)" in text


def test_several_files_are_one_set_in_their_order(tmp_path, shard):
    one = write(tmp_path / "one.h5", IMAGES[:1] + 1, torch.tensor([0]), CONFIDENCE[:1])
    shards = ShardSet([one, shard], TEACHER)
    assert shards.labels.tolist() == [0, *LABELS.tolist()]
    images = shards.images(torch.tensor([6, 0, 1]))
    first = (IMAGES[0] + 1).half().float()
    assert torch.equal(images, torch.stack([IMAGES[5], first, IMAGES[0]]))


def test_the_layout_is_the_documented_one(shard):
    with h5py.File(shard, "r") as file:
        assert set(file) == {"images", "labels", "confidence"}
        images, labels, confidence = file["images"], file["labels"], file["confidence"]
        assert (images.dtype, labels.dtype, confidence.dtype) == ("<f2", "<i8", "<f4")
        for data in (images, labels, confidence):
            assert (data.chunks, data.compression) == (None, None)
        numpy.testing.assert_array_equal(images[:], IMAGES.numpy())
        numpy.testing.assert_array_equal(labels[:], LABELS.numpy())
        numpy.testing.assert_array_equal(confidence[:], CONFIDENCE.numpy())
        attributes = dict(file.attrs)
    assert (attributes["kind"], attributes["format"]) == ("shard", 2)
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
    assert "is truncated or " in refusal(shard)


def test_the_first_shard_is_named_where_the_second_is_right(tmp_path, shard):
    broken = tmp_path / "broken.h5"
    broken.write_bytes(b"nothing of the kind")
    refusal(broken, shard, named=0)


@pytest.mark.parametrize("share", [0, 0.001, 0.02, 0.03, 0.1, 0.3, 0.6, 0.9, 0.9999])
def test_one_flipped_bit_anywhere_is_refused(shard, share):
    content = bytearray(shard.read_bytes())
    content[int(share * len(content))] ^= 0x10
    shard.write_bytes(content)
    assert "is truncated or " in refusal(shard)


@pytest.mark.parametrize(("name", "value"), [("images", 0.5), ("labels", 1), ("confidence", 0.25)])
def test_data_changed_by_another_program_are_refused(shard, name, value):
    with h5py.File(shard, "r+") as file:
        file[name][0] = value
    assert "does not match its checksum" in refusal(shard)
    seal(shard)
    assert "does not match its checksum" in refusal(shard)


@pytest.mark.parametrize("name", ["images", "labels", "confidence"])
def test_a_shard_without_one_of_its_arrays_is_refused(shard, name):
    with resealed(shard) as file:
        del file[name]
    assert f"is damaged ({name} is missing or a link)" in refusal(shard)


@pytest.mark.parametrize("name", ["teacher_sha256", "checksum"])
def test_a_shard_without_one_of_its_attributes_is_refused(shard, name):
    with resealed(shard) as file:
        del file.attrs[name]
    assert "is damaged" in refusal(shard)


@pytest.mark.parametrize("version", [1, None])
def test_another_format_version_is_refused(shard, version):
    with resealed(shard) as file:
        del file.attrs["format"]
        if version:
            file.attrs["format"] = version
    assert f"is a shard file of format {version}, this program reads 2" in refusal(shard)


def test_the_images_of_another_teacher_are_refused(tmp_path, shard):
    other = write(tmp_path / "other.h5", teacher_sha256="f" * 64)
    text = refusal(shard, other)
    assert "made from another model" in text
    assert "ffffffffffff" in text


def replace(file, name, **options):
    del file[name]
    file.create_dataset(name, **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"shape": (0, 3, 8, 8), "dtype": "<f2"}, "it holds no images"),
        ({"shape": (6, 3, 0, 8), "dtype": "<f2"}, "its images have no pixels"),
        ({"data": HALF[:5]}, "not one label an image"),
        ({"data": HALF[0]}, "not <f2 of 4 dimensions"),
        ({"data": HALF, "dtype": "<f4"}, "not <f2 of 4 dimensions"),
        ({"data": HALF, "dtype": ">f2"}, "not <f2 of 4 dimensions"),
        ({"data": h5py.Empty("<f2")}, "not <f2 of 4 dimensions"),
        ({"shape": (6, 3, 1 << 20, 1 << 20), "dtype": "<f2"}, "which the file does not hold"),
        ({"shape": (1 << 40, 3, 8, 8), "dtype": "<f2", "chunks": (1, 3, 8, 8)}, "in one piece"),
        ({"data": HALF, "chunks": (1, 3, 8, 8)}, "in one piece"),
        ({"data": HALF, "compression": "gzip"}, "in one piece"),
        ({"shape": (6, 3, 8, 8), "dtype": "<f2", "external": "/etc/passwd"}, "in another file"),
    ],
    ids=str,
)
def test_images_that_are_not_what_they_should_be_are_refused_unread(shard, options, reason):
    with resealed(shard) as file:
        replace(file, "images", **options)
    assert reason in refusal(shard)


@pytest.mark.parametrize("value", [numpy.nan, numpy.inf, -numpy.inf])
def test_images_that_are_not_finite_are_refused(tmp_path, value):
    images = IMAGES.clone()
    images[4, 2, 7, 7] = value
    path = write(tmp_path / "nan.h5", images=images)
    assert "images has a value that is not finite" in refusal(path)


def test_links_are_not_followed(tmp_path, shard):
    secret = write(tmp_path / "elsewhere.h5")
    for link in (h5py.ExternalLink(str(secret), "/images"), h5py.SoftLink("/labels")):
        with resealed(shard) as file:
            del file["images"]
            file["images"] = link
        assert "images is missing or a link" in refusal(shard)
    with resealed(shard) as file:
        layout = h5py.VirtualLayout((6, 3, 8, 8), "<f2")
        layout[:] = h5py.VirtualSource(str(secret), "images", (6, 3, 8, 8))
        del file["images"]
        file.create_virtual_dataset("images", layout)
    assert "the values of images are in another file" in refusal(shard)
    with resealed(shard) as file:
        del file["images"]
        file.create_group("images")
    assert "images is no array" in refusal(shard)


@pytest.mark.parametrize("label", [-1, 8, 1 << 62])
def test_labels_that_are_no_class_are_refused(tmp_path, label):
    labels = LABELS.clone()
    labels[3] = label
    path = write(tmp_path / "labels.h5", labels=labels)
    with pytest.raises(ArtifactError, match="labels are not among the 8 classes"):
        ShardSet([path], TEACHER, 8)


def test_images_of_another_shape_than_the_network_takes_are_refused(shard):
    ShardSet([shard], TEACHER, 8, (3, 8, 8))
    with pytest.raises(ArtifactError, match="the network takes"):
        ShardSet([shard], TEACHER, 8, (3, 16, 16))


def test_an_hdf5_file_of_something_else_is_refused(tmp_path):
    path = tmp_path / "other.h5"
    with h5py.File(path, "w") as file:
        file["images"] = numpy.zeros(3)
    assert "is HDF5 that another program wrote" in refusal(path)
    with written(path, "student") as file:
        file["images"] = numpy.zeros(3)
    assert "is not a shard file of this program" in refusal(path)


def test_a_shard_that_cannot_be_written_leaves_the_old_one(shard):
    before = shard.read_bytes()
    with pytest.raises(TypeError):
        write(shard, versions={"torch": object()})
    assert shard.read_bytes() == before
    assert list(shard.parent.iterdir()) == [shard]
    assert open_files() == 0


def test_split_holds_out_the_last_share_of_each_class():
    labels = torch.tensor([0, 1] * 10)
    train, held = split(labels, 0.2)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(20))
    assert labels[held].tolist() == [0, 1, 0, 1]
    assert held.tolist() == [16, 17, 18, 19]
    assert len(split(labels, 0.0)[1]) == 0
