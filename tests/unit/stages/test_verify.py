"""``synq verify``: a small folder of results, and each way in which it can be wrong."""

import json
import shutil

import h5py
import pytest
import torch
from small_results import FILES, RUN, SHARDS, TEACHER, finetuned, shard, teacher

from synq import cli
from synq.io.artifacts import KINDS, file_sha256, read_checkpoint, write_checkpoint
from synq.io.hdf5 import seal

pytestmark = pytest.mark.xdist_group("small results")  # which one process makes, once


@pytest.fixture
def results(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "results"


def verified(capsys, code):
    """The findings, without the summary, of a command with this exit code."""
    capsys.readouterr()
    assert cli.main(["verify", "results/"]) == code
    captured = capsys.readouterr()
    assert not captured.err
    *findings, summary = captured.out.splitlines()
    counted = [int(part.split()[0]) for part in summary.split(", ")[1:]]
    kinds = ("damaged", "stale", "older", "left over")
    assert counted == [sum(line.startswith(f"{kind}: ") for line in findings) for kind in kinds]
    assert all("results/" in line for line in findings)
    return findings


def test_a_whole_folder_has_no_finding(results, capsys):
    assert cli.main(["verify", "results"]) == 0
    out = capsys.readouterr().out
    assert out == f"results: {FILES} files checked, 0 damaged, 0 stale, 0 older, 0 left over\n"


def test_what_is_not_there_or_no_results_is_bad_usage(tmp_path, capsys):
    for path, text in ((tmp_path / "none", "is not a folder"), (tmp_path, "holds no models")):
        assert cli.main(["verify", str(path)]) == 2
        assert text in capsys.readouterr().err


EVERY = [
    TEACHER,
    "models/net/metrics.json",
    *SHARDS,
    *(f"{RUN}/{name}" for name in ("student.safetensors", "students.safetensors", "metrics.json")),
    *(f"{RUN}/{name}" for name in ("export.json", "student.onnx", "student.packed.safetensors")),
]
OTHER_STUDENT = [
    f"stale: results/{RUN}/{name} is of another student than student.safetensors beside it"
    for name in ("export.json", "student.packed.safetensors")
]


def only_of(path, findings):
    """Whether each finding names the file, or is about what was made from it."""
    assert findings
    assert [line for line in findings if line.startswith(f"damaged: results/{path} ")]
    assert not [line for line in findings if not line.startswith("stale: ") and path not in line]


@pytest.mark.parametrize("path", EVERY)
def test_a_truncated_file_is_named(results, capsys, path):
    content = (results / path).read_bytes()
    (results / path).write_bytes(content[: len(content) // 2])
    only_of(path, verified(capsys, 1))


@pytest.mark.parametrize("share", [0.3, 0.97])
@pytest.mark.parametrize("path", EVERY)
def test_a_file_with_a_flipped_bit_is_named(results, capsys, path, share):
    content = bytearray((results / path).read_bytes())
    content[int(share * len(content))] ^= 1
    (results / path).write_bytes(content)
    only_of(path, verified(capsys, 1))


@pytest.mark.parametrize("path", EVERY)
def test_a_file_that_is_something_else_is_named(results, capsys, path):
    (results / path).write_bytes(b"something else")
    only_of(path, verified(capsys, 1))


def test_a_number_edited_by_hand_is_named(results, capsys):
    path = results / RUN / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["selected"]["top1"] = 99.9
    path.write_text(json.dumps(metrics))
    (line,) = verified(capsys, 1)
    assert line.startswith(f"damaged: results/{RUN}/metrics.json does not match its checksum")


def test_all_that_another_teacher_made_is_stale(results, capsys):
    teacher(results / TEACHER, 1)
    findings = verified(capsys, 1)
    assert len(findings) == FILES - 2  # an ONNX file is compared with export.json beside it
    end = f"was made from another teacher than {TEACHER}"
    assert all(line.startswith("stale: ") and line.endswith(end) for line in findings)


def test_all_that_a_missing_teacher_made_is_stale(results, capsys):
    (results / TEACHER).unlink()
    findings = verified(capsys, 1)
    assert len(findings) == FILES - 2
    assert all("a teacher that is not" in line for line in findings)


@pytest.mark.parametrize("gone", [True, False])
def test_students_of_other_or_missing_shards_are_stale(results, capsys, gone):
    if gone:
        (results / SHARDS[1]).unlink()
    else:
        torch.manual_seed(5)
        shard(results, "shard.h5", [5], seed=1)
        with h5py.File(results / "shard.h5", "r+") as file:
            file.attrs["seed"] = 0
        seal(results / "shard.h5")
        (results / "shard.h5").rename(results / SHARDS[1])
    findings = verified(capsys, 1)
    what = "no whole" if gone else "another"
    assert findings == [
        f"stale: results/{RUN}/{name} was made from images that are gone: "
        f"there is {what} {SHARDS[1]}"
        for name in ("students.safetensors", "student.safetensors")
    ]


def test_metrics_of_other_students_are_stale(results, capsys):
    finetuned(results, learning_rate=1e-3)
    line, *exports = verified(capsys, 1)
    assert exports == OTHER_STUDENT
    assert line == (
        f"stale: results/{RUN}/metrics.json measured other students than those in "
        "students.safetensors beside it"
    )


def test_a_student_of_another_run_than_its_snapshots_is_stale(results, capsys):
    path = results / RUN / "student.safetensors"
    tensors, record = read_checkpoint(path, "student")
    record["finetune"]["learning_rate"] = 1.0
    write_checkpoint(path, "student", tensors, record)
    line, *exports = verified(capsys, 1)
    assert line.endswith("and students.safetensors beside it are of two runs")
    assert exports == OTHER_STUDENT


@pytest.mark.parametrize("there", [True, False])
def test_a_student_of_another_rung_than_is_there_is_stale(results, capsys, there):
    path = results / RUN.replace("w4a4", "w3a3") / "student.safetensors"
    path.parent.mkdir(parents=True)
    above = results / RUN / "student.safetensors"
    tensors, record = read_checkpoint(above, "student")
    whole = {**record, "bits": "w3a3", "from_student": file_sha256(above)}
    write_checkpoint(path, "student", tensors, whole)
    assert verified(capsys, 0) == []
    if there:
        write_checkpoint(path, "student", tensors, {**whole, "from_student": "0" * 64})
    else:
        shutil.rmtree(above.parent)
    (line,) = verified(capsys, 1)
    what = "another" if there else "no"
    assert line.endswith(f"began with a student that is gone: there is {what} {RUN}/{above.name}")


def test_a_packed_file_that_was_not_exported_with_its_record_is_named(results, capsys):
    path = results / RUN / "student.packed.safetensors"
    tensors, record = read_checkpoint(path, "packed")
    write_checkpoint(path, "packed", tensors, {**record, "epoch": 7})
    (line,) = verified(capsys, 1)
    assert line == (
        f"damaged: results/{RUN}/student.packed.safetensors is not the file that export.json "
        "beside it was written for"
    )


def test_files_in_the_place_of_others_are_stale(results, capsys):
    shutil.copytree(results / RUN, results / "runs/net/w3a3/synq/seed1")
    shutil.copy(results / SHARDS[1], results / "synthetic/net/hard/seed0/class-0006.h5")
    findings = verified(capsys, 1)
    text = "\n".join(findings)
    assert "class-0006.h5 is of name 'class-0005', not 'class-0006'" in text
    files = ("student.safetensors", "students.safetensors", "metrics.json", "export.json")
    for name in (*files, "student.packed.safetensors"):
        assert f"runs/net/w3a3/synq/seed1/{name} is of bits 'w4a4', not 'w3a3'" in text
        assert f"runs/net/w3a3/synq/seed1/{name} is of seed '0', not '1'" in text


def test_a_download_that_is_not_the_teachers_is_stale(results, capsys):
    path = results / TEACHER
    tensors, record = read_checkpoint(path, "teacher")
    write_checkpoint(path, "teacher", tensors, {**record, "origin": f"a.pth sha256:{'0' * 64}"})
    (results / "models/net/download").write_bytes(b"other")
    findings = verified(capsys, 1)
    assert any("download is not the file that the teacher beside it" in line for line in findings)


def test_what_killed_jobs_left_is_named_and_is_no_failure(results, capsys):
    (results / RUN / "student.work").mkdir()
    (results / "synthetic/net/hard/seed0/.class-0006.h5.tmp.123").touch()
    findings = verified(capsys, 0)
    assert [line.split(" ")[2] for line in findings] == [
        "results/synthetic/net/hard/seed0/.class-0006.h5.tmp.123",
        f"results/{RUN}/student.work",
    ]


def test_a_run_that_is_not_finished_is_no_finding(results, capsys):
    for name in ("metrics.json", "student.safetensors", "students.safetensors"):
        (results / RUN / name).unlink()
        assert verified(capsys, 0) == []


def test_files_of_an_older_layout_are_named_and_not_opened(results, capsys):
    (results / RUN / "snapshots.h5").write_bytes(b"of before")
    (line,) = verified(capsys, 1)
    assert line == (
        f"older: results/{RUN}/snapshots.h5 is of an older layout; "
        "delete it, students.safetensors takes its place"
    )


def test_what_a_teacher_of_an_older_format_made_is_not_stale(results, capsys):
    path = results / TEACHER
    tensors, record = read_checkpoint(path, "teacher")
    write_checkpoint(path, "teacher", tensors, {**record, "format": 2})
    shards = {"teacher_sha256": file_sha256(path)}
    for shard_path in SHARDS:
        with h5py.File(results / shard_path, "r+") as file:
            file.attrs.update(shards)
        seal(results / shard_path)
    findings = verified(capsys, 1)
    assert [line for line in findings if line.startswith("older: ")] == [
        f"older: results/{TEACHER} is a teacher file of format 2, this program reads 3; "
        "delete it and run fetch, fetch-zoo or train again"
    ]
    assert not [line for line in findings if "synthetic/" in line]


def test_files_of_another_format_are_named(results, capsys):
    metrics = results / RUN / "metrics.json"
    metrics.write_text(json.dumps({**json.loads(metrics.read_text()), "format": 2}))
    with h5py.File(results / SHARDS[1], "r+") as file:
        file.attrs["format"] = 1
    seal(results / SHARDS[1])
    older = [line for line in verified(capsys, 1) if line.startswith("older: ")]
    assert older == [
        f"older: results/{SHARDS[1]} is a shard file of format 1, this program reads 2; "
        "delete it and run synthesize, borrow or collect again",
        f"older: results/{RUN}/metrics.json is a metrics file of format 2, this program reads "
        f"{KINDS['metrics'].format}; delete it and run evaluate again",
    ]
