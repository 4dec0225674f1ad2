"""``synq predict``: the classes that evaluation would name, and what is no model or no image."""

import json
import shutil
from pathlib import Path

import numpy
import onnx
import pytest
import torch
from PIL import Image
from small_results import RUN, TEACHER
from torch import nn

from synq import cli
from synq.config.images import TestSet
from synq.data.datasets import normalise
from synq.data.pictures import picture
from synq.models.teacher import read_teacher
from synq.quantization.student import read_student

pytestmark = pytest.mark.xdist_group("small results")  # which one process makes, once


@pytest.fixture
def model(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copy(made / RUN / "student.onnx", tmp_path / "student.onnx")


def drawn(path, mode="RGB", size=(40, 31), seed=0):
    noise = numpy.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), numpy.uint8)
    image = Image.fromarray(noise)
    if mode == "I;16":
        image = Image.fromarray(numpy.asarray(image.convert("L")).astype(numpy.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(numpy.asarray(image.convert("L")).astype(numpy.float32))
    else:
        image = image.convert(mode)
    image.save(path)
    return str(path)


def predicted(capsys, *words):
    assert cli.main(["predict", *map(str, words)]) == 0
    return capsys.readouterr().out


def error_of(capsys, *words):
    assert cli.main(["predict", *map(str, words)]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert captured.err.count("\n") == 1
    return captured.err


def changed(model, **changes):
    """The same file with other metadata; without a key where that is None."""
    content = onnx.load(model)
    about = json.loads(content.metadata_props[0].value)
    about |= changes
    about = {key: value for key, value in about.items() if value is not None}
    content.metadata_props[0].value = json.dumps(about)
    onnx.save(content, model)
    return model


def test_images_are_prepared_as_an_evaluation_does_it(made, model, capsys, tmp_path):
    settings = TestSet(resized_crop=0.6, interpolation="bicubic")
    changed(model, resized_crop=0.6, interpolation="bicubic")
    teacher = read_teacher(made / TEACHER, torch.device("cpu"))
    student, _ = read_student(made / RUN / "student.safetensors", teacher)
    modes = ["RGB", "L", "RGBA", "P", "LA", "1", "I;16"]
    paths = [drawn(tmp_path / f"{mode[0]}{len(mode)}.png", mode) for mode in modes]
    paths.append(drawn(tmp_path / "right-size.png", size=(16, 16)))
    found = json.loads(predicted(capsys, model, *paths, "--json", "--top", 10))
    assert [entry["image"] for entry in found] == paths
    for path, entry in zip(paths, found, strict=True):
        pixels = picture(path, 1, 16, settings)
        with torch.inference_mode():
            logits = student(normalise(pixels[None], teacher.mean, teacher.std))
        wanted = nn.functional.softmax(logits, 1)[0].tolist()
        assert sorted(one["class"] for one in entry["top"]) == list(range(10))
        shares = [one["probability"] for one in entry["top"]]
        assert shares == sorted(shares, reverse=True)
        # An activation at the border of two codes may fall to either side.
        assert shares == pytest.approx([wanted[one["class"]] for one in entry["top"]], abs=0.05)


def test_the_lines_have_the_names_of_the_classes(model, capsys, tmp_path):
    path = drawn(tmp_path / "a.png")
    changed(model, names=[f"digit {number}" for number in range(10)])
    first, *others = predicted(capsys, model, path, "--top", 3).splitlines()
    assert first == path
    assert [line.split("%  ")[1][:6] for line in others] == ["digit "] * 3
    assert len(predicted(capsys, model, path, path).splitlines()) == 12


def test_what_is_no_model_is_told_in_one_line(model, capsys, tmp_path):
    image = drawn(tmp_path / "a.png")
    whole = Path(model).read_bytes()
    for name, content in (
        ("half.onnx", whole[: len(whole) // 2]),
        ("empty.onnx", b""),
        ("foreign.onnx", b"something else"),
        ("image.onnx", Path(image).read_bytes()),
    ):
        (tmp_path / name).write_bytes(content)
        assert f"{name} " in error_of(capsys, name, image)
    assert "does not exist" in error_of(capsys, "none.onnx", image)
    assert "does not exist" in error_of(capsys, tmp_path, image)
    assert "top is 0" in error_of(capsys, model, image, "--top", "0")


def test_a_model_of_an_opset_to_come_is_told(model, capsys, tmp_path):
    content = onnx.load(model)
    content.opset_import[0].version = 99
    onnx.save(content, model)
    error = error_of(capsys, model, drawn(tmp_path / "a.png"))
    assert "is of a version of ONNX that ONNX Runtime" in error
    content.ir_version = 99
    onnx.save(content, model)
    error = error_of(capsys, model, tmp_path / "a.png")
    assert "is of a version of ONNX that ONNX Runtime" in error


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"interpolation": None}, "does not say how images are prepared for it ('interpolation')"),
        ({"names": None}, "does not say how images"),
        ({"resized_crop": 7}, "does not say how images are prepared"),
        ({"resized_crop": "x"}, "does not say how images are prepared"),
        ({"interpolation": "nearest"}, "does not say how images are prepared"),
        ({"mean": 3}, "does not say how images are prepared"),
        ({"mean": [0.5, 0.5]}, "contradict one another"),
        ({"std": [0.0]}, "contradict one another"),
        ({"std": ["a"]}, "contradict one another"),
        ({"names": ["a"]}, "contradict one another"),
        ({"classes": 11, "names": ["a"] * 11}, "gives (1, 10), not 11 logits"),
        ({"image_size": 9}, "the model does not take"),
    ],
)
def test_metadata_that_are_wrong_are_told(model, capsys, tmp_path, changes, text):
    assert text in error_of(capsys, changed(model, **changes), drawn(tmp_path / "a.png"))


def test_a_model_of_another_program_is_told(model, capsys, tmp_path):
    image = drawn(tmp_path / "a.png")
    content = onnx.load(model)
    content.metadata_props[0].value = "{"
    onnx.save(content, model)
    assert "does not say how images are prepared" in error_of(capsys, model, image)
    del content.metadata_props[:]
    onnx.save(content, model)
    assert "it has no metadata synq" in error_of(capsys, model, image)


def test_what_is_no_image_is_told_in_one_line_and_nothing_is_printed(model, capsys, tmp_path):
    good = drawn(tmp_path / "a.png")
    whole = Path(good).read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("something else")
    drawn(tmp_path / "floats.tif", "F")
    for name in ("half.png", "text.jpg", "floats.tif", "none.png", "."):
        error = error_of(capsys, model, good, name)
        assert f"{name} cannot be read as an image" in error
