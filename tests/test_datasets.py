import numpy
import pytest
import torch
from PIL import Image

from synq.datasets import digits, folder
from synq.errors import DataError


def test_digits_are_split_once_and_for_all():
    train, test = digits("train", 3, 32), digits("test", 3, 32)
    assert (len(train), len(test)) == (1198, 599)
    assert torch.equal(test.labels, digits("test", 3, 32).labels)
    counts = test.labels.bincount()
    assert len(counts) == 10
    assert counts.min() > 50
    images = test.read(torch.arange(len(test)))
    assert images.shape == (599, 3, 32, 32)
    assert 0 <= images.min() < images.max() <= 1
    seen = {image.numpy().tobytes() for image in train.read(torch.arange(1198))}
    assert not seen & {image.numpy().tobytes() for image in images}


def save(path, colour, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_folder_numbers_classes_by_name(tmp_path):
    save(tmp_path / "b" / "1.png", (255, 0, 0))
    save(tmp_path / "a" / "2.png", (0, 0, 255))
    images = folder(str(tmp_path), 3, 8)
    assert images.classes == 2
    assert images.labels.tolist() == [0, 1]
    pixels = images.read(torch.tensor([0, 1]))
    assert pixels[0, :, 0, 0].tolist() == [0, 0, 1]
    assert pixels[1, :, 0, 0].tolist() == [1, 0, 0]


def test_other_sizes_are_resized_and_cropped_in_the_middle(tmp_path):
    array = numpy.zeros((40, 80, 3), "uint8")
    array[:, 20:60] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(array).save(tmp_path / "a" / "x.png")
    pixels = folder(str(tmp_path), 3, 8).read(torch.tensor([0]))
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.min() > 0.9


def test_grey_images_have_one_channel(tmp_path):
    save(tmp_path / "a" / "x.png", (255, 255, 255))
    assert folder(str(tmp_path), 1, 8).read(torch.tensor([0])).shape == (1, 1, 8, 8)


def test_batches_are_normalised_and_in_order(tmp_path):
    for name in "abc":
        save(tmp_path / name / "x.png", (255, 255, 255))
    parts = list(folder(str(tmp_path), 3, 8).batches(2, [0.5, 0.5, 0.5], [0.25, 0.25, 0.5]))
    assert [len(images) for images, _ in parts] == [2, 1]
    assert torch.cat([labels for _, labels in parts]).tolist() == [0, 1, 2]
    assert parts[0][0][0, :, 0, 0].tolist() == [2, 2, 1]


def test_missing_empty_and_broken_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        folder(str(tmp_path / "none"), 3, 8)
    with pytest.raises(DataError, match="holds no images"):
        folder(str(tmp_path), 3, 8)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"x\.png"):
        folder(str(tmp_path), 3, 8).read(torch.tensor([0]))
