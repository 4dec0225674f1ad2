"""The stage that writes a student for a runtime: what it compares, and what it refuses."""

import json
from pathlib import Path

import onnx
import onnx_ir
import pytest
from small_results import RUN, SHARDS, TEACHER, teacher

from synq import cli
from synq.config.export import Export
from synq.errors import ArtifactError, ModelError
from synq.io.artifacts import read_json
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


@pytest.fixture
def already(made, monkeypatch):
    """What was exported before stands for a new export, which takes long."""
    model = made / RUN / "student.onnx"
    monkeypatch.setattr(export, "to_onnx", lambda *_: onnx_ir.load(model))


def test_at_most_the_images_that_are_asked_for_are_compared(made, already, tmp_path, monkeypatch):
    seen = []

    def compared(path, model, shards, batches, threads):
        seen.extend(row for batch in batches for row in batch.tolist())
        return 100.0, 0.0

    monkeypatch.setattr(export, "_compared", compared)
    written(made, tmp_path, images=3)
    assert seen == [0, 2, 5]


def written(made, folder, student=None, **changes):
    export.export_student(
        teacher=made / TEACHER,
        student=student or made / RUN / "student.safetensors",
        shards=[made / path for path in SHARDS],
        shard_folder=Path(),
        settings=Export(**changes),
        output=folder / "student.onnx",
        record=folder / "export.json",
        threads=1,
    )


def test_a_file_that_computes_something_else_is_not_written(made, already, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_compared", lambda *_: (62.5, 1.0))
    with pytest.raises(ModelError, match=r"agrees with the student on 62\.50 % of 6 images"):
        written(made, tmp_path)
    assert not list(tmp_path.iterdir())
    written(made, tmp_path, least_agreement=60.0)
    assert read_json(tmp_path / "export.json", "export")["agreement"] == 62.5


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
            output=tmp_path / "student.onnx",
            record=tmp_path / "export.json",
            threads=1,
        )


def test_the_command_writes_the_same_bytes_again(made, tmp_path, capsys):
    words = ["export", "--teacher", made / TEACHER, "--student", made / RUN / "student.safetensors"]
    words += ["--shards", *(made / path for path in SHARDS), "--least-agreement", "0"]
    words += ["--output", tmp_path / "s.onnx", "--record", tmp_path / "e.json"]
    assert cli.main([str(word) for word in words]) == 0
    assert "% of 6 images" in capsys.readouterr().out
    assert (tmp_path / "s.onnx").read_bytes() == (made / RUN / "student.onnx").read_bytes()


def test_exporting_nothing_is_told(made, capsys):
    words = ["export", "--teacher", "t", "--student", "s", "--shards", "h", "--format", "none"]
    assert cli.main([*words, "--output", "o", "--record", "r"]) == 2
    assert "export.format is none" in capsys.readouterr().err
