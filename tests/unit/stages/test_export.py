"""The stage that writes a student for a runtime: what it compares, and what it refuses."""

import json
from pathlib import Path

import numpy
import onnx
import onnx_ir
import pytest
import torch
from small_results import RUN, SHARDS, TEACHER, teacher

from synq import cli
from synq.config.export import Export
from synq.config.images import TestSet
from synq.data.datasets import digits
from synq.data.names import class_names
from synq.errors import ArtifactError, DataError, ModelError
from synq.io.artifacts import file_sha256, read_checkpoint, read_json, write_checkpoint
from synq.io.shards import ShardSet
from synq.models.teacher import read_teacher
from synq.quantization.runtime import Compared
from synq.quantization.student import read_student
from synq.stages import export

pytestmark = pytest.mark.xdist_group("small results")  # which one process makes, once


def test_the_record_says_what_the_file_is_and_how_far_it_agrees(made):
    record = read_json(made / RUN / "export.json", "export")
    assert record["onnx_bytes"] == (made / RUN / "student.onnx").stat().st_size
    # No more than a third of the weights in float32, and more than their 4 bits alone.
    assert 272_186 / 2 < record["onnx_bytes"] < 272_186 * 4 / 3
    assert (record["images"], record["opset"], record["batch"]) == (6, 21, "any")
    assert 0 <= record["agreement"] <= 100
    (metadata,) = onnx.load(made / RUN / "student.onnx").metadata_props
    about = json.loads(metadata.value)
    assert about["mean"] == [0.5]
    assert about["std"] == [0.3]
    assert about["bits"] == "w4a4"
    assert about["student_sha256"] == record["student_sha256"]
    assert about["names"] == record["names"] == [str(number) for number in range(10)]
    assert (about["channels"], about["image_size"]) == (1, 16)
    assert (about["resized_crop"], about["interpolation"]) == (0.875, "bilinear")


@pytest.fixture
def already(made, monkeypatch):
    """What was exported before stands for a new export, which takes long."""
    model = made / RUN / "student.onnx"
    monkeypatch.setattr(export, "to_onnx", lambda *_, **__: onnx_ir.load(model))


def test_at_most_the_images_that_are_asked_for_are_compared(made, already, tmp_path, monkeypatch):
    seen = []

    def compared(run, model, batches):
        seen.extend(images for images, _ in batches)
        return found(100.0)

    monkeypatch.setattr(export, "compared", compared)
    written(made, tmp_path, images=3)
    network = read_teacher(made / TEACHER, torch.device("cpu"))
    shards = ShardSet([made / path for path in SHARDS], network.sha256)
    assert torch.equal(torch.cat(seen), shards.images(torch.tensor([0, 2, 5])))


def found(agreement):
    return Compared(6, agreement, 1.0, 50.0, 50.0, None)


def test_test_images_are_classified_by_both(made, already, tmp_path):
    written(made, tmp_path, test=TestSet(dataset="digits"), test_images=7, least_agreement=0.0)
    record = read_json(tmp_path / "export.json", "export")
    assert record["test_images"] == 7
    for key in ("test_agreement", "runtime_top1", "torch_top1"):
        assert 0 <= record[key] <= 100
    if record["agreement"] == record["test_agreement"] == 100:
        assert record["first_difference"] is None
    written(made, tmp_path, test=TestSet(dataset="digits"), test_images=0, least_agreement=0.0)
    record = read_json(tmp_path / "export.json", "export")
    assert (record["test_images"], record["test_agreement"]) == (0, None)


def test_of_images_without_labels_the_agreement_alone_is_measured(made, already, tmp_path):
    test = without_labels(tmp_path)
    written(made, tmp_path, test=test, test_images=7, least_agreement=0.0)
    record = read_json(tmp_path / "export.json", "export")
    assert record["test_images"] == 7
    assert 0 <= record["test_agreement"] <= 100
    assert (record["runtime_top1"], record["torch_top1"]) == (None, None)


def without_labels(folder):
    """The digits of the test set in one file, without their labels, as settings."""
    data = digits("test", 1, 16)
    numpy.savez(folder / "images.npz", images=data.read(torch.arange(90)).numpy())
    return TestSet(dataset="arrays", path=str(folder / "images.npz"))


def written(made, folder, student=None, test=None, **changes):
    export.export_student(
        teacher=made / TEACHER,
        student=student or made / RUN / "student.safetensors",
        shards=[made / path for path in SHARDS],
        shard_folder=Path(),
        settings=Export(**changes),
        test=test or TestSet(),
        output=folder / "student.onnx",
        packed=folder / "student.packed.safetensors",
        record=folder / "export.json",
        threads=1,
    )


def test_a_file_that_computes_something_else_is_not_written(made, already, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "compared", lambda *_: found(62.5))
    with pytest.raises(ModelError, match=r"agrees with the student on 62\.50 % of 6 images"):
        written(made, tmp_path)
    assert not list(tmp_path.iterdir())
    written(made, tmp_path, least_agreement=60.0)
    assert read_json(tmp_path / "export.json", "export")["agreement"] == 62.5


def test_a_file_for_openvino_is_compared_there_too(made, already, tmp_path):
    pytest.importorskip("openvino")
    written(made, tmp_path, target="openvino", least_agreement=0.0)
    record = read_json(tmp_path / "export.json", "export")
    assert record["target"] == "openvino"
    assert 0 <= record["openvino_agreement"] <= 100
    assert record["openvino_test_agreement"] is None
    assert "openvino" in record["versions"]
    other = read_json(made / RUN / "export.json", "export")
    assert (other["target"], other["openvino_agreement"]) == ("onnxruntime", None)


def test_a_file_that_tensorrt_does_not_take_is_not_written(made, already, tmp_path):
    with pytest.raises(ModelError, match=r"does not take student\.onnx: .* has codes of UINT4"):
        written(made, tmp_path, target="tensorrt")
    assert not list(tmp_path.iterdir())


def test_a_student_of_another_teacher_is_refused(made, tmp_path):
    teacher(tmp_path / TEACHER, 1)
    student = (made / RUN / "student.safetensors").read_bytes()
    (tmp_path / "student.safetensors").write_bytes(student)
    with pytest.raises(ArtifactError, match="was made from another model"):
        export.export_student(
            teacher=tmp_path / TEACHER,
            student=tmp_path / "student.safetensors",
            shards=[made / path for path in SHARDS],
            shard_folder=Path(),
            settings=Export(),
            test=TestSet(),
            output=tmp_path / "student.onnx",
            packed=tmp_path / "student.packed.safetensors",
            record=tmp_path / "export.json",
            threads=1,
        )


def test_the_command_writes_the_same_bytes_again(made, tmp_path, capsys):
    words = ["export", "--teacher", made / TEACHER, "--student", made / RUN / "student.safetensors"]
    words += ["--shards", *(made / path for path in SHARDS), "--least-agreement", "0"]
    words += ["--output", tmp_path / "s.onnx", "--record", tmp_path / "e.json"]
    words += ["--packed", tmp_path / "p", "--dataset", "digits"]
    assert cli.main([str(word) for word in words]) == 0
    assert "% of 6 images" in capsys.readouterr().out
    for name, path in (("s.onnx", "student.onnx"), ("p", "student.packed.safetensors")):
        assert (tmp_path / name).read_bytes() == (made / RUN / path).read_bytes()


def test_exporting_nothing_is_told(made, capsys):
    words = ["export", "--teacher", "t", "--student", "s", "--shards", "h", "--format", "none"]
    assert cli.main([*words, "--output", "o", "--packed", "p", "--record", "r"]) == 2
    assert "export.format is none" in capsys.readouterr().err


PACKED = f"{RUN}/student.packed.safetensors"


def test_the_packed_file_is_of_four_bits_a_weight(made):
    record = read_json(made / RUN / "export.json", "export")
    assert record["packed_bytes"] == (made / PACKED).stat().st_size
    assert record["packed_sha256"] == file_sha256(made / PACKED)
    assert 272_186 / 2 < record["packed_bytes"] < record["onnx_bytes"]
    tensors, about = read_checkpoint(made / PACKED, "packed")
    stored = sum(len(values) for name, values in tensors.items() if name.endswith(".codes"))
    assert stored == 270_608 / 2
    assert about["student_sha256"] == file_sha256(made / RUN / "student.safetensors")
    assert (about["bits"], about["recipe"]["weight_bits"]) == ("w4a4", 4)
    assert about["weights"]["output.weight"] == {"bits": 4, "shape": [10, 64]}


def unpacked(made, folder, packed=None):
    words = ["unpack", "--teacher", made / TEACHER, "--packed", packed or made / PACKED]
    return cli.main([str(word) for word in (*words, "--output", folder / "student.safetensors")])


def test_an_unpacked_student_is_the_one_that_was_packed(made, tmp_path, capsys):
    assert unpacked(made, tmp_path) == 0
    assert "net at w4a4" in capsys.readouterr().out
    teacher = read_teacher(made / TEACHER, torch.device("cpu"))
    networks = [
        read_student(folder / "student.safetensors", teacher) for folder in (made / RUN, tmp_path)
    ]
    images = torch.randn(32, 1, 16, 16)
    with torch.inference_mode():
        wanted, found = (network(images).view(torch.int32) for network, _ in networks)
    assert torch.equal(wanted, found)
    for key in ("model", "bits", "method", "seed", "epoch", "recipe", "teacher_sha256"):
        assert networks[0][1][key] == networks[1][1][key]
    # To the same file for a runtime.
    written(made, tmp_path, tmp_path / "student.safetensors", least_agreement=0.0)
    first, second = (
        {t.name: t.raw_data for t in onnx.load(folder / "student.onnx").graph.initializer}
        for folder in (made / RUN, tmp_path)
    )
    assert first == second


def test_a_packed_file_that_cannot_be_a_student_is_refused_in_one_line(made, tmp_path, capsys):
    tensors, record = read_checkpoint(made / PACKED, "packed")
    wrong = {**tensors, "output.weight.codes": tensors["output.weight.codes"][:-1]}
    recipe = {**record, "recipe": {"width": 3}}
    other = {**record, "teacher_sha256": "0" * 64}
    for name, content, about, text in (
        ("short", wrong, record, "are not what its record says"),
        ("recipe", tensors, recipe, "does not say how it was quantized"),
        ("other", tensors, other, "was made from another model"),
    ):
        write_checkpoint(tmp_path / name, "packed", content, about)
        assert unpacked(made, tmp_path, tmp_path / name) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    (tmp_path / "cut").write_bytes((made / PACKED).read_bytes()[:-9])
    student = made / RUN / "student.safetensors"
    (tmp_path / "empty").write_bytes(b"")
    for path, text in (
        (tmp_path / "cut", "is damaged"),
        (tmp_path / "empty", "empty"),
        (student, "is not a packed file"),
        (made / RUN / "student.onnx", "student.onnx"),
        (tmp_path, str(tmp_path)),
        (tmp_path / "none", "none"),
    ):
        assert unpacked(made, tmp_path, path) == 2
        error = capsys.readouterr().err
        assert text in error
        assert error.count("\n") == 1
    assert not (tmp_path / "student.safetensors").exists()


def test_the_names_of_the_classes_are_given_or_the_test_folders_or_numbers(tmp_path):
    for name in ("cat", "dog", ".hidden"):
        (tmp_path / "test" / name).mkdir(parents=True)
    file = tmp_path / "names.txt"
    file.write_text("a\nb b\n\n", "utf-8")

    def folder(*names):
        return TestSet(dataset="folder", path=str(tmp_path / "test"), names=names)

    assert class_names(folder(), 2) == ["cat", "dog"]
    assert class_names(folder("x", "y"), 2) == ["x", "y"]
    assert class_names(folder("dog", "cat"), 2) == ["dog", "cat"]
    assert class_names(folder(str(file)), 2) == ["a", "b b"]
    assert class_names(TestSet(), 3) == ["0", "1", "2"]
    assert class_names(TestSet(dataset="folder", path="gone"), 2) == ["0", "1"]
    for given, text in (
        (("x", "y", "z"), "names has 3 names of classes, the network 2"),
        ((str(file), "y", "z"), "3 names"),
        ((str(tmp_path / "none"),), "cannot be read as the file"),
    ):
        with pytest.raises(DataError, match=text):
            class_names(folder(*given), 2)
    with pytest.raises(DataError, match="has 2 names of classes, the network 3"):
        class_names(folder(), 3)
