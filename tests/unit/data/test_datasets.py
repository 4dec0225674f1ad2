import hashlib
import pickle
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy
import pytest
import torch
from PIL import Image

from synq.config.images import Data
from synq.data.datasets import Images, _brought, arrays, cifar, digits, folder, half_of, read
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


def test_digits_are_those_of_scikit_learn():
    known = pytest.importorskip("sklearn.datasets").load_digits()
    split = pytest.importorskip("sklearn.model_selection").train_test_split
    positions = range(len(known.target))
    _, test = split(positions, test_size=1 / 3, stratify=known.target, random_state=0)
    ours, chosen = digits("test", 1, 8), sorted(test)
    pixels = ours.read(torch.arange(len(ours)))[:, 0] * 16
    assert numpy.array_equal(pixels.numpy(), known.images[chosen])
    assert numpy.array_equal(ours.labels.numpy(), known.target[chosen])


def test_digits_are_enlarged_without_a_shift():
    """Twice the size: each pixel becomes four, of which none has more than 9/16 of it."""
    small, large = (digits("test", 1, size).read(torch.arange(599)) for size in (8, 16))
    assert large.shape == (599, 1, 16, 16)
    corner = torch.stack([small[..., 0, 0], large[..., 0, 0]])
    assert torch.equal(corner[0], corner[1])
    row = small[..., 3, :] * 0.75 + small[..., 4, :] * 0.25
    wanted = row[..., 2] * 0.75 + row[..., 3] * 0.25
    torch.testing.assert_close(large[..., 7, 5], wanted)
    assert torch.equal(digits("test", 3, 16).read(torch.tensor([5]))[0, 2], large[5, 0])


def save(path, colour, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_folder_numbers_classes_by_name(tmp_path):
    save(tmp_path / "b" / "1.png", (255, 0, 0))
    save(tmp_path / "a" / "2.png", (0, 0, 255))
    images = folder(Data(path=str(tmp_path)), 3, 8)
    assert images.classes == 2
    assert images.labels.tolist() == [0, 1]
    pixels = images.read(torch.tensor([0, 1]))
    assert pixels[0, :, 0, 0].tolist() == [0, 0, 1]
    assert pixels[1, :, 0, 0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (("b", "a"), {"a": 1, "b": 0}),
        (("names.txt",), {"a": 1, "b": 0}),
        # Readable names of folders that are called otherwise.
        (("dog", "cat"), {"a": 0, "b": 1}),
    ],
)
def test_names_that_are_the_folders_number_them_in_their_order(
    tmp_path, monkeypatch, names, numbers
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "names.txt").write_text("b\na\n", "utf-8")
    save(tmp_path / "set/a/1.png", (0, 0, 255))
    save(tmp_path / "set/b/2.png", (255, 0, 0))
    images = folder(Data(path="set", names=names), 3, 8)
    blue = images.read(torch.arange(2))[:, 2, 0, 0] == 1
    assert images.labels[blue].tolist() == [numbers["a"]]
    assert images.labels[~blue].tolist() == [numbers["b"]]


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (("b", "a", "c"), "c is no folder; write"),
        (("b", "b"), "a is not among the names of the classes; write"),
        (("b", "A"), "a is not among the names of the classes, and A is no folder; write"),
    ],
)
def test_names_of_which_some_are_folders_are_refused(tmp_path, names, text):
    for name in "ab":
        save(tmp_path / name / "1.png", (0, 0, 255))
    with pytest.raises(DataError) as caught:
        folder(Data(path=str(tmp_path), names=names), 3, 8)
    assert text in str(caught.value)


def test_other_sizes_are_resized_and_cropped_in_the_middle(tmp_path):
    array = numpy.zeros((40, 80, 3), "uint8")
    array[:, 20:60] = 255
    (tmp_path / "a").mkdir()
    Image.fromarray(array).save(tmp_path / "a" / "x.png")
    pixels = folder(Data(path=str(tmp_path)), 3, 8).read(torch.tensor([0]))
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.min() > 0.9


@pytest.mark.parametrize("crop", [0.875, 1.0])
@pytest.mark.parametrize(
    "size",
    [(50, 37), (50, 33), (33, 50), (64, 42), (50, 28), (28, 50), (31, 31), (24, 25), (10, 60)],
)
def test_crops_are_torchvisions(torchvision_datasets, tmp_path, size, crop):
    from torchvision.transforms import CenterCrop, Compose, PILToTensor, Resize

    noise = numpy.random.default_rng(3).integers(0, 256, (size[1], size[0], 3), "uint8")
    (tmp_path / "a").mkdir()
    Image.fromarray(noise).save(tmp_path / "a" / "x.png")
    found = folder(Data(path=str(tmp_path), resized_crop=crop), 3, 21).read(torch.tensor([0]))
    theirs = Compose([Resize(round(21 / crop)), CenterCrop(21), PILToTensor()])
    assert torch.equal((found[0] * 255).round().byte(), theirs(Image.fromarray(noise)))


def test_grey_images_have_one_channel(tmp_path):
    save(tmp_path / "a" / "x.png", (255, 255, 255))
    assert folder(Data(path=str(tmp_path)), 1, 8).read(torch.tensor([0])).shape == (1, 1, 8, 8)


def test_batches_are_normalised_and_in_order(tmp_path):
    for name in "abc":
        save(tmp_path / name / "x.png", (255, 255, 255))
    parts = list(
        folder(Data(path=str(tmp_path)), 3, 8).batches(2, [0.5, 0.5, 0.5], [0.25, 0.25, 0.5])
    )
    assert [len(images) for images, _ in parts] == [2, 1]
    assert torch.cat([labels for _, labels in parts]).tolist() == [0, 1, 2]
    assert parts[0][0][0, :, 0, 0].tolist() == [2, 2, 1]


def test_missing_empty_and_broken_folders_are_refused(tmp_path):
    with pytest.raises(DataError, match="not a folder"):
        folder(Data(path=str(tmp_path / "none")), 3, 8)
    with pytest.raises(DataError, match="holds no images"):
        folder(Data(path=str(tmp_path)), 3, 8)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match="or images alone, without labels"):
        folder(Data(path=str(tmp_path)), 3, 8)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"x\.png"):
        folder(Data(path=str(tmp_path)), 3, 8).read(torch.tensor([0]))


def test_an_empty_class_is_refused_and_hidden_folders_are_none(tmp_path):
    for name in ("a", "c", ".ipynb_checkpoints", "a/.thumbnails"):
        save(tmp_path / name / "x.png", (255, 0, 0))
    save(tmp_path / "a/._x.png", (255, 0, 0))
    (tmp_path / "notes.txt").touch()
    images = folder(Data(path=str(tmp_path)), 3, 8)
    assert (images.classes, images.labels.tolist()) == (2, [0, 1])
    (tmp_path / "b").mkdir()
    (tmp_path / "b/x.txt").touch()
    with pytest.raises(DataError) as caught:
        folder(Data(path=str(tmp_path)), 3, 8)
    assert str(caught.value) == f"{tmp_path}/b holds no image; fill or remove this class"


@pytest.mark.parametrize("threads", [1, 2])
def test_a_damaged_image_is_one_line_from_a_worker_too(tmp_path, threads):
    for number in range(5):
        save(tmp_path / "a" / f"{number}.png", (number, 0, 0), (64, 64))
    images = folder(Data(path=str(tmp_path)), 3, 64)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = [part for part, _ in images.batches(2, [0.0] * 3, [1.0] * 3)]
        assert (torch.cat(parts)[:, 0, 0, 0] * 255).round().tolist() == [0, 1, 2, 3, 4]
        whole = (tmp_path / "a/3.png").read_bytes()
        (tmp_path / "a/3.png").write_bytes(whole[:45])
        with pytest.raises(DataError) as caught:
            list(images.batches(2, [0.0] * 3, [1.0] * 3))
    finally:
        torch.set_num_threads(before)
    assert str(caught.value).startswith(f"{tmp_path}/a/3.png cannot be read as an image (")
    assert len(str(caught.value).splitlines()) == 1


RAMP = numpy.arange(64, dtype="uint8").reshape(8, 8) * 4


def modes():
    grey = Image.fromarray(RAMP)
    colour = Image.merge("RGB", [grey] * 3)
    half = Image.new("L", (8, 8), 128)
    palette = grey.convert("P")
    palette.info["transparency"] = bytes(range(256))
    return {
        "L": (grey, "png"),
        "RGB": (colour, "png"),
        "LA": (Image.merge("LA", [grey, half]), "png"),
        "RGBA": (Image.merge("RGBA", [*colour.split(), half]), "png"),
        "P": (palette, "png"),
        "I;16": (Image.fromarray(RAMP.astype("uint16") * 257), "png"),
        "I": (Image.fromarray(RAMP.astype("int32") * 257), "tiff"),
    }


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mode", modes())
def test_images_of_every_mode_are_the_same_image(tmp_path, recwarn, mode, channels):
    image, suffix = modes()[mode]
    (tmp_path / "a").mkdir()
    image.save(tmp_path / "a" / f"x.{suffix}")
    pixels = folder(Data(path=str(tmp_path)), channels, 8).read(torch.tensor([0]))[0]
    wanted = torch.from_numpy(RAMP).float().expand(channels, 8, 8) / 255
    torch.testing.assert_close(pixels, wanted, atol=1 / 255, rtol=0)
    assert not recwarn.list


@pytest.mark.parametrize("values", [RAMP.astype("float32"), RAMP.astype("int32") * 1_000_000])
def test_images_whose_range_is_not_known_are_refused(tmp_path, values):
    (tmp_path / "a").mkdir()
    Image.fromarray(values).save(tmp_path / "a" / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff cannot be read as an image \(its pixels"):
        folder(Data(path=str(tmp_path)), 3, 8).read(torch.tensor([0]))


def test_the_crop_and_the_interpolation_are_settings(tmp_path):
    noise = numpy.random.default_rng(0).integers(0, 256, (40, 40, 3), "uint8")
    (tmp_path / "a").mkdir()
    Image.fromarray(noise).save(tmp_path / "a" / "x.png")

    def pixels(**settings):
        return folder(Data(path=str(tmp_path), **settings), 3, 8).read(torch.tensor([0]))

    whole = pixels(resized_crop=1.0)
    by_hand = numpy.asarray(Image.fromarray(noise).resize((8, 8), Image.Resampling.BILINEAR))
    assert torch.equal(whole[0].permute(1, 2, 0) * 255, torch.tensor(by_hand).float())
    assert not torch.equal(whole, pixels())
    assert not torch.equal(whole, pixels(resized_crop=1.0, interpolation="bicubic"))


def write(path, images, labels, names=("images", "labels")):
    content = dict(zip(names, (images, labels), strict=True))
    if path.suffix == ".npz":
        numpy.savez(path, **content)
    else:
        with h5py.File(path, "w") as file:
            for name, array in content.items():
                file[name] = array
    return Data(path=str(path))


GREY = numpy.random.default_rng(1).integers(0, 256, (6, 28, 28), "uint8")
LABELS = numpy.array([3, 1, 0, 2, 1, 6])


@pytest.mark.parametrize("name", ["set.npz", "set.h5"])
@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        (GREY, LABELS, ("images", "labels")),
        (GREY[..., None], LABELS[:, None], ("test_images", "test_labels")),
        (GREY[:, None], LABELS.astype("uint8"), ("x_test", "y_test")),
        (GREY.astype("float32") / 255, LABELS, ("images", "labels")),
        (GREY.astype("uint16") * 257, LABELS, ("images", "labels")),
    ],
    ids=["grey", "channels last", "channels first", "floats", "16 bits"],
)
def test_arrays_of_every_layout_are_the_same_images(tmp_path, name, images, labels, names):
    settings = write(tmp_path / name, images, labels, names)
    data = read("arrays", settings, "test", classes=7, image_shape=(1, 28, 28), name="net")
    assert data.labels.tolist() == LABELS.tolist()
    order = torch.tensor([4, 0, 5])
    wanted = torch.from_numpy(GREY[order.numpy()]).float()[:, None] / 255
    torch.testing.assert_close(data.read(order), wanted)


@pytest.mark.parametrize("part", ["all", "report"])
@pytest.mark.parametrize("kind", ["folder", "arrays"])
def test_images_that_nobody_has_sorted_have_no_labels(tmp_path, kind, part):
    shape = {"classes": 7, "image_shape": (1, 28, 28), "name": "net"}
    for number, grey in enumerate(GREY):
        Image.fromarray(grey).save(tmp_path / f"{number}.png")
    save(tmp_path / ".hidden" / "x.png", (255, 0, 0))
    numpy.savez(tmp_path / "set.npz", images=GREY)
    path = tmp_path if kind == "folder" else tmp_path / "set.npz"
    data = read(kind, Data(path=str(path), part=part), "test", **shape)
    wanted = torch.from_numpy(GREY).float()[:, None] / 255
    assert not data.labelled
    found = torch.cat([images for images, _ in data.batches(2, [0.0], [1.0])])
    if part == "all":
        assert torch.equal(found, wanted)
    else:
        assert len(found) == 3
        assert all((image == wanted).flatten(1).all(1).any() for image in found)


def test_what_may_be_labels_is_not_taken_for_none(tmp_path):
    settings = write(tmp_path / "set.npz", GREY, LABELS, ("images", "targets"))
    with pytest.raises(DataError, match=r"has images, targets; it needs .*without labels, the"):
        arrays(settings, "test", 1, 28, 7)


def test_the_split_s_own_arrays_come_first(tmp_path):
    path = tmp_path / "set.npz"
    numpy.savez(path, train_images=GREY[:2], train_labels=LABELS[:2], images=GREY, labels=LABELS)
    settings = Data(path=str(path))
    assert len(arrays(settings, "train", 1, 28, 7)) == 2
    assert len(arrays(settings, "test", 1, 28, 7)) == 6


def test_arrays_of_another_size_are_resized_and_cropped(tmp_path):
    step = numpy.zeros((1, 40, 80, 3), "uint8")
    step[:, :, 20:60] = 255
    data = arrays(write(tmp_path / "set.npz", step, numpy.array([0])), "test", 3, 8, 2)
    pixels = data.read(torch.tensor([0]))
    assert pixels.shape == (1, 3, 8, 8)
    assert pixels.min() > 0.9


@pytest.mark.parametrize(
    ("images", "labels", "text"),
    [
        (GREY, LABELS[:5], "6 images and 5 labels"),
        (GREY, LABELS + 1, "label 7, but the network has classes 0 to 6"),
        (GREY, LABELS - 1, "no class numbers"),
        (GREY, LABELS.astype(float), "no class numbers"),
        (GREY.astype("int32"), LABELS, "of type int32"),
        (GREY.astype("uint32"), LABELS, "of type uint32"),
        (GREY.astype("uint16"), LABELS, "is uint16, and no value is above 255; write uint8"),
        (GREY.reshape(6, 4, 7, 28), LABELS, "the shape [6, 4, 7, 28]"),
        (GREY[:0], LABELS[:0], "0 images and 0 labels"),
        (GREY.astype(float), LABELS, "values outside [0, 1]"),
        (GREY.astype(float) * numpy.nan, LABELS, "values outside [0, 1]"),
    ],
)
def test_arrays_that_are_no_test_set_are_refused(tmp_path, images, labels, text):
    with pytest.raises(DataError) as caught:
        arrays(write(tmp_path / "set.npz", images, labels), "test", 1, 28, 7).read(
            torch.tensor([0])
        )
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        *("none.npz", "none.h5", "text.npz", "text.h5", "other.npz", "empty.npz", "cut.npz"),
        "group.h5",
    ],
)
def test_a_file_that_is_no_data_set_is_refused(tmp_path, name):
    if name.startswith("empty"):
        (tmp_path / name).touch()
    if name.startswith("cut"):
        numpy.savez(tmp_path / name, images=GREY, labels=LABELS)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:200])
    if name.startswith("group"):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_group("images")
            file["labels"] = LABELS
    if name.startswith("text"):
        (tmp_path / name).write_text("no arrays")
    if name.startswith("other"):
        numpy.savez(tmp_path / name, pictures=GREY)
    with pytest.raises(DataError, match=name):
        arrays(Data(path=str(tmp_path / name)), "test", 1, 28, 7)


def test_code_in_a_file_of_arrays_is_not_run(tmp_path):
    numpy.savez(tmp_path / "set.npz", images=numpy.array([{}], object), labels=LABELS)
    with pytest.raises(DataError, match="allow_pickle"):
        arrays(Data(path=str(tmp_path / "set.npz")), "test", 1, 28, 7)


@pytest.fixture
def torchvision_datasets():
    """torchvision's data sets, where it fits torch."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported here: {error}")
    return datasets


def cifar_files(monkeypatch, source, root, classes, key):
    """A small CIFAR in its own format, which torchvision takes for the real one by its MD5."""
    folder_ = root / source.base_folder
    folder_.mkdir()
    pixels = numpy.random.default_rng(2).integers(0, 256, (4, 3072), "uint8")
    batch = pickle.dumps({"data": pixels, key: [0, 1, 2, classes - 1]})
    meta = pickle.dumps({source.meta["key"]: [str(number) for number in range(classes)]})
    (folder_ / "test").write_bytes(batch)
    (folder_ / source.meta["filename"]).write_bytes(meta)
    monkeypatch.setattr(source, "train_list", [])
    monkeypatch.setattr(source, "test_list", [["test", hashlib.md5(batch).hexdigest()]])
    monkeypatch.setattr(source, "meta", source.meta | {"md5": hashlib.md5(meta).hexdigest()})
    return torch.from_numpy(pixels).view(4, 3, 32, 32).float() / 255


@pytest.mark.parametrize(
    ("name", "classes", "key"), [("cifar10", 10, "labels"), ("cifar100", 100, "fine_labels")]
)
def test_cifar_is_read_through_torchvision(
    torchvision_datasets, monkeypatch, tmp_path, name, classes, key
):
    source = {"cifar10": torchvision_datasets.CIFAR10, "cifar100": torchvision_datasets.CIFAR100}
    wanted = cifar_files(monkeypatch, source[name], tmp_path, classes, key)
    data = read(
        name,
        Data(path=str(tmp_path)),
        "test",
        classes=classes,
        image_shape=(3, 32, 32),
        name="net",
    )
    assert data.labels.tolist() == [0, 1, 2, classes - 1]
    assert torch.equal(data.read(torch.arange(4)), wanted)
    with pytest.raises(DataError, match="images of 3x32x32"):
        cifar(name, Data(path=str(tmp_path)), "test", 1, 28)


def test_of_jobs_that_begin_together_one_downloads(tmp_path):
    whole, downloads = threading.Event(), []

    def source(download):
        if not whole.is_set():
            if not download:
                raise RuntimeError("Dataset not found or corrupted.")
            downloads.append(1)
            assert len(downloads) == 1
            time.sleep(0.2)  # another one comes meanwhile
            whole.set()
        return "images"

    folder_ = str(tmp_path / "new" / "data")
    with ThreadPoolExecutor(4) as jobs:
        found = [job.result() for job in [jobs.submit(_brought, source, folder_) for _ in "1234"]]
    assert found == ["images"] * 4
    assert len(downloads) == 1


def test_a_whole_folder_is_read_without_writing_there(tmp_path):
    assert _brought(lambda download: not download, str(tmp_path))
    assert not [*tmp_path.iterdir()]


def test_cifar_that_cannot_be_had_names_the_file_and_the_folder(
    torchvision_datasets, monkeypatch, tmp_path
):
    monkeypatch.setattr(torchvision_datasets.CIFAR10, "url", "http://127.0.0.1:9/cifar.tar.gz")
    with pytest.raises(DataError) as caught:
        cifar("cifar10", Data(path=str(tmp_path)), "test", 3, 32)
    assert "put the extracted cifar-10-batches-py of http://127.0.0.1:9" in str(caught.value)


def test_a_test_set_of_other_classes_is_refused(tmp_path):
    save(tmp_path / "a" / "1.png", (255, 0, 0))
    with pytest.raises(DataError, match="have 1 classes, but net has 10"):
        read(
            "folder",
            Data(path=str(tmp_path)),
            "test",
            classes=10,
            image_shape=(3, 8, 8),
            name="net",
        )


def test_halves_are_disjoint_and_the_same_every_time():
    whole = Images(torch.arange(11), lambda rows: rows.float()[:, None], 11)
    halves = [half_of(whole, part) for part in ("development", "report")]
    assert [len(half) for half in halves] == [6, 5]
    assert torch.equal(torch.cat([half.labels for half in halves]).sort().values, whole.labels)
    for half in halves:
        rows = torch.tensor([2, 0])
        assert torch.equal(half.read(rows)[:, 0].long(), half.labels[rows])
    assert torch.equal(half_of(whole, "report").labels, halves[1].labels)


@pytest.mark.parametrize("part", ["development", "report"])
def test_one_image_has_no_halves(tmp_path, part):
    save(tmp_path / "a" / "1.png", (255, 0, 0))
    data = Data(path=str(tmp_path), part=part)
    with pytest.raises(DataError, match=f"one image has no {part} half; write part: all"):
        read("folder", data, "test", classes=1, image_shape=(3, 8, 8), name="net")


def digest_of(path, **changes):
    settings = Data(path=str(path), **changes)
    found = read("folder", settings, "test", classes=2, image_shape=(3, 8, 8), name="net")
    return found.digest


def test_a_folder_has_another_digest_with_other_files(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(3):
            picture = Image.new("RGB", (8, 8), (40 * number, 9, 9))
            picture.save(tmp_path / name / f"{number}.png")
    before = digest_of(tmp_path)
    assert digest_of(tmp_path) == before
    assert digest_of(tmp_path, part="report") != before
    shutil.copy(tmp_path / "a" / "0.png", tmp_path / "a" / "3.png")
    assert digest_of(tmp_path) != before
    (tmp_path / "a" / "3.png").unlink()
    assert digest_of(tmp_path) == before
    Image.new("RGB", (90, 80), (1, 2, 3)).save(tmp_path / "a" / "0.png")
    assert digest_of(tmp_path) != before


def test_arrays_have_another_digest_with_other_pixels_or_labels(tmp_path):
    def found(pixels, labels):
        numpy.savez(tmp_path / "own.npz", images=pixels, labels=labels)
        settings = Data(path=str(tmp_path / "own.npz"))
        return read("arrays", settings, "test", classes=2, image_shape=(3, 8, 8), name="n").digest

    pixels = numpy.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), "uint8")
    labels = numpy.arange(6) % 2
    before = found(pixels, labels)
    assert found(pixels, labels) == before
    assert len({before, found(255 - pixels, labels), found(pixels, 1 - labels)}) == 3
