"""Files of the user's that are not there: which are looked for, and what is said."""

import hashlib
import os
from pathlib import Path

import pytest
import yaml

from synq.config.places import _sha256, lacking
from synq.config.reading import plan

CONFIG = yaml.safe_load((Path(__file__).parents[3] / "config.yaml").read_text("utf-8"))
OWN = {
    **{"source": "python", "factory": "own_nets.small:build", "weights": "nets/w.pth"},
    **{"sha256": hashlib.sha256(b"").hexdigest(), "classes": 2, "channels": 1, "image_size": 8},
    **{"mean": [0.5], "std": [0.2], "test": {"dataset": "folder", "path": "data/val"}},
    "real": {"dataset": "arrays", "path": "data/few.npz"},
}


@pytest.fixture
def told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def tell(section, image_set="", **changes):
        whole = plan({**CONFIG, "models": {**CONFIG["models"], "own": {**OWN, **changes}}})
        return lacking(whole, section, "own", image_set)

    return tell


def test_what_is_not_there_is_told_with_its_setting(told, tmp_path):
    assert told("model") == [
        "models.own.weights is nets/w.pth, and there is no such file",
        "models.own.factory is own_nets.small:build, and own_nets is neither installed nor in "
        f"{tmp_path}",
    ]
    assert told("test") == ["models.own.test.path is data/val, and there is no such folder"]
    assert told("real", "few-shot") == [
        "models.own.real.path is data/few.npz, and there is no such file"
    ]


def test_what_is_there_is_not(told, tmp_path):
    for folder in ("nets", "own_nets", "data/val/a", "data/val/b", "data/val/.hidden"):
        (tmp_path / folder).mkdir(parents=True)
    for file in ("nets/w.pth", "data/few.npz"):
        (tmp_path / file).touch()
    assert told("model") == told("test") == told("real", "few-shot") == []
    # A file is no folder.
    assert told("test", test={"dataset": "folder", "path": "nets/w.pth"})


def test_weights_of_another_sum_are_told_with_both(told, tmp_path):
    for folder in ("nets", "own_nets"):
        (tmp_path / folder).mkdir()
    (tmp_path / "nets/w.pth").write_bytes(b"weights")
    found = hashlib.sha256(b"weights").hexdigest()
    assert told("model") == [
        f"models.own.weights is nets/w.pth, whose SHA-256 is {found[:12]}..., and sha256 says "
        "e3b0c44298fc...; bring the right file, or write what `sha256sum nets/w.pth` prints"
    ]
    assert told("model", sha256=found.upper()) == []


def test_weights_are_read_once_until_they_change(told, tmp_path):
    _sha256.cache_clear()
    for folder in ("nets", "own_nets"):
        (tmp_path / folder).mkdir()
    (tmp_path / "nets/w.pth").touch()
    assert told("model") == told("model") == []
    assert _sha256.cache_info().misses == 1
    (tmp_path / "nets/w.pth").write_bytes(b"other")
    os.utime(tmp_path / "nets/w.pth", (1, 1))
    assert told("model")


def test_what_is_elsewhere_is_not_looked_for(told):
    more = {"factory": "synq.models.digits:resnet20"}
    for weights in ("https://example.org/w.pth", "package:synq/models/w.safetensors"):
        assert told("model", weights=weights, **more) == []
    assert told("test", test={"dataset": "cifar10", "path": "data"}) == []
    assert told("test", test={}) == []


@pytest.mark.parametrize("section", ["test", "real"])
@pytest.mark.parametrize(
    ("made", "more", "said"),
    [
        ("ab", {}, "has 2 folders, and the network has 3 classes; it needs one a class"),
        ("abcd", {}, "has 4 folders, and the network has 3 classes; it needs one a class"),
        ("", {}, "has 0 folders, and the network has 3 classes"),
        ("ab", {"names": ["c", "b", "a"]}, "has 3 classes; there is none for c"),
        ("ab", {"names": "names.txt"}, "has 3 classes; there is none for c"),
        ("", {"names": ["c", "b", "a"]}, "has 3 classes; there is none for a, b, c"),
        ("abcd", {"names": ["c", "b", "a"]}, "d is not among the names of the classes"),
        # Names that are not the folders' say of none of them that it is missing.
        ("ab", {"names": ["x", "y", "z"]}, "has 3 classes; it needs one a class"),
        ("abc", {"names": ["x", "y", "z"]}, None),
        ("abc", {"names": ["c", "b", "aa"]}, "a is not among the names of the classes, and aa"),
        ("abc", {}, None),
    ],
)
def test_a_folder_has_one_directory_a_class(told, tmp_path, section, made, more, said):
    (tmp_path / "names.txt").write_text("c\nb\na\n", "utf-8")
    for name in (".hidden", *made):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/notes.txt").touch()
    images = {"dataset": "folder", "path": "data"}
    lines = told(section, "few-shot", classes=3, **{section: images}, **more)
    assert len(lines) == (said is not None)
    assert all(line.startswith(f"models.own.{section}.path is data, wh") for line in lines)
    assert all(str(said) in line for line in lines)


@pytest.mark.parametrize("section", ["test", "real"])
def test_images_without_labels_lie_in_a_folder_without_folders(told, tmp_path, section):
    (tmp_path / "data").mkdir()
    images = {section: {"dataset": "folder", "path": "data"}}
    (line,) = told(section, "few-shot", classes=3, **images)
    assert line.endswith(
        "has 0 folders, and the network has 3 classes; it needs one a class, and "
        "no other, or none and images without labels"
    )
    (tmp_path / "data/x.JPG").touch()
    assert told(section, "few-shot", classes=3, **images) == []
    (tmp_path / "data/a").mkdir()
    assert len(told(section, "few-shot", classes=3, **images)) == 1


def test_of_many_classes_the_first_are_named(told, tmp_path):
    (tmp_path / "data/a").mkdir(parents=True)
    images = {"dataset": "folder", "path": "data"}
    (line,) = told("test", classes=6, test=images, names=[*"abcdef"])
    assert line.endswith("there is none for b, c, d and 2 more")


@pytest.mark.parametrize("section", ["test", "export"])
def test_names_that_are_not_one_a_class_are_told(told, tmp_path, section):
    (tmp_path / "data/val").mkdir(parents=True)
    (tmp_path / "names.txt").write_text("a\n", "utf-8")
    for names, said in (
        (["a", "b", "c"], "models.own.names has 3 names, and the network has 2 classes"),
        ("names.txt", "models.own.names is names.txt, which has 1 names, and the network has 2"),
        ("gone.txt", "models.own.names is gone.txt, which cannot be read ([Errno 2] No such file"),
    ):
        (line,) = told(section, names=names)
        assert line.startswith(said)
    assert told("export", names=["b", "a"]) == []
