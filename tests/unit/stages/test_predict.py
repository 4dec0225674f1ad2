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


def test_another_kind_of_file_is_told_which_one_is_wanted(made, model, capsys, tmp_path):
    image = drawn(tmp_path / "a.png")
    for path in ("student.packed.safetensors", "student.safetensors", "export.json"):
        error = error_of(capsys, made / RUN / path, image)
        assert error.endswith("; name the student.onnx that export writes\n")
        assert "again" not in error
    Path(model).write_bytes(b"damaged")
    assert error_of(capsys, model, image).endswith("; export the student again\n")


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


ABOUT = {
    **{"classes": 2, "names": ["a", "b"], "channels": 1, "image_size": 4},
    **{"mean": [0.5], "std": [0.5], "resized_crop": 1.0, "interpolation": "bilinear"},
}


def small(operator="MatMul", opset=21, ir=10, domain="", input="images"):
    """A model of one layer, as somebody else might have written it."""
    kind = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", [input], ["flat"]),
            onnx.helper.make_node(operator, ["flat", "weight"], ["logits"], domain=domain),
        ],
        "graph",
        [onnx.helper.make_tensor_value_info(input, kind, ["N", 1, 4, 4])],
        [onnx.helper.make_tensor_value_info("logits", kind, ["N", 2])],
        [onnx.numpy_helper.from_array(numpy.ones((16, 2), numpy.float32), "weight")],
    )
    known = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("other", 1)]
    model = onnx.helper.make_model(graph, opset_imports=known, ir_version=ir)
    model.metadata_props.add(key="synq", value=json.dumps(ABOUT))
    return model.SerializeToString()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"opset": 99}, "is of a version of ONNX that ONNX Runtime"),
        ({"ir": 99}, "is of a version of ONNX that ONNX Runtime"),
        ({"operator": "Foo"}, "cannot be read as an ONNX model"),
        ({"operator": "Foo", "domain": "other"}, "cannot be read as an ONNX model"),
        ({"input": "x"}, "the model does not take"),
    ],
)
def test_a_model_that_the_runtime_does_not_know_is_told(capsys, tmp_path, changes, text):
    image, path = drawn(tmp_path / "a.png"), tmp_path / "m.onnx"
    path.write_bytes(small())
    assert predicted(capsys, path, image)
    path.write_bytes(small(**changes))
    error = error_of(capsys, path, image)
    assert text in error
    # Nothing of the runtime's own source.
    assert "onnxruntime_src" not in error


def test_a_file_that_ends_anywhere_or_has_a_wrong_bit_is_no_crash(capsys, tmp_path):
    image, path, whole = drawn(tmp_path / "a.png"), tmp_path / "m.onnx", small()
    for end in range(0, len(whole), 19):
        path.write_bytes(whole[:end])
        assert "m.onnx" in error_of(capsys, path, image)
    generator = numpy.random.default_rng(0)
    for _ in range(40):
        content = bytearray(whole)
        content[generator.integers(len(whole))] ^= 1 << generator.integers(8)
        path.write_bytes(content)
        # Of a bit of the weights nobody can know.
        assert cli.main(["predict", str(path), image]) in (0, 2)
        captured = capsys.readouterr()
        assert captured.err.count("\n") == (0 if captured.out else 1)


def test_images_of_any_size_and_kind_are_taken(capsys, tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(small())
    images = [drawn(tmp_path / f"{kind}.tif", kind) for kind in ("CMYK", "YCbCr", "RGBA", "LA")]
    images += [
        drawn(tmp_path / f"{w}x{h}.png", size=(w, h)) for w, h in ((1, 1), (1, 90), (300, 2))
    ]
    assert predicted(capsys, path, *images).count("%") == 2 * len(images)
    lab = tmp_path / "lab.tif"
    Image.new("LAB", (8, 8)).save(lab)
    assert "lab.tif cannot be read as an image" in error_of(capsys, path, lab)
