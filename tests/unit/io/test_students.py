"""The students of a run on disk."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from synq.errors import ArtifactError
from synq.io.artifacts import write_checkpoint
from synq.io.students import Students, write_students

RECORD = {"model": "m", "history": [{"epoch": 0, "held_out": 1.5}]}
STATES = {
    epoch: {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(epoch)),
        "bn.num_batches_tracked": torch.tensor(epoch),
    }
    for epoch in (0, 2)
}


@pytest.fixture
def path(tmp_path):
    write_students(tmp_path / "students.safetensors", RECORD, STATES.items())
    return tmp_path / "students.safetensors"


def read(path):
    students = Students(path)
    return {epoch: students.student(epoch) for epoch in students.epochs}


def refusal(path, call=Students):
    with pytest.raises(ArtifactError) as caught:
        call(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_read(path):
    students = Students(path)
    assert RECORD.items() <= students.record.items()
    assert students.epochs == [0, 2]
    for epoch, state in STATES.items():
        found = students.student(epoch)
        assert found.keys() == state.keys()
        assert all(torch.equal(found[name], state[name]) for name in state)


def test_the_file_is_safetensors_for_every_program(path):
    assert sorted(load_file(path)) == sorted(
        f"epoch-{epoch:04d}/{name}" for epoch, state in STATES.items() for name in state
    )


def test_only_the_student_that_is_asked_for_is_read(path):
    content = path.read_bytes()
    with safe_open(path, "pt") as file:
        damaged = file.get_tensor("epoch-0002/conv.weight").numpy().tobytes()
    path.write_bytes(content.replace(damaged, bytes(len(damaged))))
    students = Students(path)
    assert torch.equal(students.student(0)["conv.weight"], STATES[0]["conv.weight"])
    with pytest.raises(ArtifactError, match="does not match its checksum in epoch 2"):
        students.student(2)


def test_the_checksum_is_of_all_students(tmp_path, path):
    again, other = tmp_path / "again.safetensors", tmp_path / "other.safetensors"
    write_students(again, RECORD, STATES.items())
    assert again.read_bytes() == path.read_bytes()
    assert Students(again).checksum == Students(path).checksum
    changed = {**STATES[2], "conv.weight": STATES[2]["conv.weight"] + 1}
    write_students(other, RECORD, [(0, STATES[0]), (2, changed)])
    assert Students(other).checksum != Students(path).checksum


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_or_a_flipped_bit_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "is damaged" in refusal(path)
    content = bytearray(whole)
    content[int(share * len(content))] ^= 1
    path.write_bytes(content)
    refusal(path, read)


def test_what_is_not_there_or_no_file_of_students_is_refused(tmp_path, path):
    assert "does not exist" in refusal(tmp_path / "none")
    assert "does not exist" in refusal(tmp_path)
    write_checkpoint(path, "student", STATES[0], RECORD)
    assert "is not a students file of this program" in refusal(path)
    write_checkpoint(path, "students", {}, {})
    assert "holds no students" in refusal(path)


@pytest.mark.parametrize("change", ["another name", "no name", "of no student", "more"])
def test_other_tensors_under_the_same_record_are_refused(path, change):
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    moved = tensors.pop("epoch-0002/conv.weight")
    names = {
        "another name": "epoch-0002/conv.bias",
        "of no student": "epoch-0001/conv.weight",
        "more": "epoch-0002/conv.weight",
    }
    if change in names:
        tensors[names[change]] = moved
    if change == "more":
        tensors["epoch-0000/more"] = torch.zeros(2)
    save_file(tensors, path, metadata)
    refusal(path, read)


def test_a_record_that_was_changed_is_refused(path):
    with safe_open(path, "pt") as file:
        record = json.loads(file.metadata()["synq"])
    tensors = load_file(path)
    save_file(tensors, path, {"synq": json.dumps({**record, "model": "other"})})
    assert "does not match its checksum" in refusal(path)
