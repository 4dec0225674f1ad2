"""Files between stages: whole or not at all, and refused when they are not what they should be."""

import json
import os
import pickle
import stat

import pytest
import torch
from safetensors.torch import save_file

from synq.cli import COMMANDS
from synq.errors import ArtifactError, FormatError
from synq.io.artifacts import (
    KINDS,
    atomic,
    file_sha256,
    read_checkpoint,
    read_json,
    write_checkpoint,
    write_json,
)

TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3), "empty": torch.zeros(0)}


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "student.safetensors"
    write_checkpoint(path, "student", TENSORS, {"seed": 3, "nested": {"x": [1.5, None]}})
    return path


def refusal(call, path, *more):
    with pytest.raises(ArtifactError) as caught:
        call(path, *more)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_atomic_writes_the_file_and_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "c.txt"
    with atomic(path) as temporary:
        assert temporary.parent == path.parent
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["c.txt"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_atomic_keeps_the_old_file_and_leaves_no_other_after_an_exception(tmp_path, error):
    path = tmp_path / "file"
    path.write_text("old")

    def interrupted():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file"]


def test_a_folder_in_the_place_of_a_file_and_a_file_in_that_of_a_folder_are_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")

    def written(path):
        with atomic(path) as temporary:
            temporary.write_text("new")

    for path in (tmp_path / "folder", tmp_path / "file/below"):
        assert "cannot be written: " in refusal(written, path)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_atomic_leaves_nothing_after_an_exception_before_anything_was_written(tmp_path):
    with pytest.raises(ValueError, match="early"), atomic(tmp_path / "file"):
        raise ValueError("early")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_the_mode_of_a_file_follows_the_umask(tmp_path, mask, mode):
    old = os.umask(mask)
    try:
        write_json(tmp_path / "file.json", "metrics", {})
        write_checkpoint(tmp_path / "file.safetensors", "student", TENSORS, {})
        assert os.umask(mask) == mask
    finally:
        os.umask(old)
    modes = {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {mode}


def test_file_sha256_is_that_of_the_bytes(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == expected


def test_file_sha256_of_what_cannot_be_read_is_refused(tmp_path):
    refusal(file_sha256, tmp_path / "none")
    refusal(file_sha256, tmp_path)


def test_a_checkpoint_comes_back_as_it_was(checkpoint):
    tensors, record = read_checkpoint(checkpoint, "student")
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert record == {"kind": "student", "format": 2, "seed": 3, "nested": {"x": [1.5, None]}}


def test_tensors_that_are_views_or_need_gradients_can_be_written(tmp_path):
    path = tmp_path / "file"
    weight = torch.randn(3, 4, requires_grad=True)
    write_checkpoint(path, "student", {"transposed": weight.t()}, {})
    assert torch.equal(read_checkpoint(path, "student")[0]["transposed"], weight.detach().t())


def test_a_tensor_under_two_names_is_written_under_both(tmp_path):
    path = tmp_path / "file"
    weight = torch.randn(3, 4)
    write_checkpoint(path, "student", {"a": weight, "b": weight}, {})
    tensors, _ = read_checkpoint(path, "student")
    assert torch.equal(tensors["a"], weight)
    assert torch.equal(tensors["b"], weight)


def test_the_same_checkpoint_has_the_same_bytes(tmp_path, checkpoint):
    again = tmp_path / "again"
    write_checkpoint(again, "student", TENSORS, {"nested": {"x": [1.5, None]}, "seed": 3})
    assert again.read_bytes() == checkpoint.read_bytes()


def test_a_missing_checkpoint_is_refused(tmp_path):
    assert "does not exist" in refusal(read_checkpoint, tmp_path / "none", "student")
    assert "does not exist" in refusal(read_checkpoint, tmp_path, "student")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(checkpoint, share):
    content = checkpoint.read_bytes()
    checkpoint.write_bytes(content[: int(len(content) * share)])
    assert "is damaged" in refusal(read_checkpoint, checkpoint, "student")


@pytest.mark.parametrize("content", [b"text", pickle.dumps({"a": 1}), bytes(1000)])
def test_what_is_no_safetensors_is_refused(tmp_path, content):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert "is damaged" in refusal(read_checkpoint, path, "student")


def test_a_checkpoint_of_another_kind_is_refused(checkpoint):
    text = refusal(read_checkpoint, checkpoint, "teacher")
    assert text.endswith(
        "is not a teacher file of this program; delete it and run fetch, fetch-zoo or train again"
    )


@pytest.mark.parametrize(
    "metadata",
    [None, {"other": "x"}, {"synq": "{}"}, {"synq": "[]"}, {"synq": '{"kind": ["student"]}'}],
)
def test_a_checkpoint_of_another_program_is_refused(tmp_path, metadata):
    path = tmp_path / "file"
    save_file(TENSORS, path, metadata)
    assert "is not a student file of this program" in refusal(read_checkpoint, path, "student")


def test_a_packed_student_in_place_of_a_student_is_to_be_unpacked(tmp_path):
    path = tmp_path / "file"
    write_checkpoint(path, "packed", TENSORS, {})
    told = refusal(read_checkpoint, path, "student")
    assert told.endswith("is not a student file of this program; make one of it with synq unpack")


def test_a_checkpoint_whose_record_is_no_json_is_refused(tmp_path):
    path = tmp_path / "file"
    save_file(TENSORS, path, {"synq": "{"})
    assert "is damaged" in refusal(read_checkpoint, path, "student")


def test_json_comes_back_as_it_was_and_is_readable(tmp_path):
    path = tmp_path / "file.json"
    content = {"name": "größer", "values": [0.1, 1e-300]}
    write_json(path, "metrics", content)
    about = {"kind": "metrics", "format": KINDS["metrics"].format}
    assert read_json(path, "metrics") == {**about, **content}
    assert path.read_text("utf-8").startswith('{\n  "checksum": "')
    assert path.read_text("utf-8").endswith("}\n")


def test_json_that_cannot_be_written_keeps_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")
    with pytest.raises(TypeError):
        write_json(path, "metrics", {"a": {1, 2}})
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_missing_json_is_refused(tmp_path):
    assert "does not exist" in refusal(read_json, tmp_path / "none", "metrics")


@pytest.mark.parametrize("content", [b"", b'{"kind": "metrics", "form', b"\xff\xfe", b"text"])
def test_truncated_json_and_other_bytes_are_refused(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    assert "cannot be read as JSON" in refusal(read_json, path, "metrics")


@pytest.mark.parametrize(
    "content",
    [b"[]", b"null", b"{}", b'{"kind": "other", "format": 3}', b'{"kind": {}, "format": 3}'],
)
def test_json_of_another_kind_is_refused(tmp_path, content):
    path = tmp_path / "file.json"
    path.write_bytes(content)
    assert "is not a metrics file of this program" in refusal(read_json, path, "metrics")


OTHER_FORMATS = [1, 99, 0, None, "3", True, 3.0]


@pytest.mark.parametrize("number", OTHER_FORMATS)
@pytest.mark.parametrize("kind", ["teacher", "student"])
def test_a_checkpoint_of_another_format_is_refused_before_it_is_read(tmp_path, number, kind):
    path = tmp_path / "file"
    save_file(TENSORS, path, {"synq": json.dumps({"kind": kind, "format": number})})
    with pytest.raises(FormatError) as caught:
        read_checkpoint(path, kind)
    assert str(caught.value) == (
        f"{path} is a {kind} file of format {number}, this program reads {KINDS[kind].format}; "
        f"delete it and run {KINDS[kind].command} again"
    )


@pytest.mark.parametrize("number", OTHER_FORMATS)
def test_json_of_another_format_is_refused(tmp_path, number):
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"kind": "metrics", "format": number}))
    with pytest.raises(FormatError, match="delete it and run evaluate again"):
        read_json(path, "metrics")


def test_every_kind_is_made_by_a_command():
    for kind in KINDS.values():
        words = kind.command.replace(" or ", ", ").split(", ")
        assert set(words) <= set(COMMANDS)
