"""``synq quantize``: a network from a function, without a config."""

import sys

import onnx
import pytest
import torch
from own_network import Own

import synq
from synq import cli
from synq.io.artifacts import read_checkpoint

INPUT = ["--image-size", "8", "--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]
FEW = [
    *("synthesis.images_per_class=8", "synthesis.iterations=2", "synthesis.classes_per_shard=3"),
    *("finetune.epochs=1", "finetune.holdout=0.25"),
]
WORDS = [*INPUT, "--bits", "w3a3", "--device", "cpu", "--threads", "1", "--set", *FEW]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a module of the user's own, and weights for it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "mine.py").write_text("from own_network import Own\n\ndef build(): return Own()\n")
    torch.manual_seed(0)
    torch.save(Own().state_dict(), tmp_path / "weights.pth")
    yield tmp_path
    sys.modules.pop("mine", None)


def run(*words):
    return cli.main(["quantize", "--factory", "mine:build", *map(str, words)])


def test_one_command_writes_the_student_in_all_its_forms(folder, capsys):
    assert run("--weights", "weights.pth", "--output", "out", *WORDS) == 0
    files = {path.name for path in (folder / "out").iterdir()}
    names = {"student.safetensors", "student.packed.safetensors", "student.onnx", "report.txt"}
    assert files == names
    report = (folder / "out" / "report.txt").read_text("utf-8")
    assert report.startswith("Own at w3a3 by synq-plus, seed 0\n")
    assert report in capsys.readouterr().out
    record = read_checkpoint(folder / "out" / "student.packed.safetensors", "packed")[1]
    assert {layer["bits"] for layer in record["weights"].values()} == {3}
    onnx.checker.check_model(folder / "out" / "student.onnx")
    network = Own()
    network.load_state_dict(torch.load("weights.pth"))
    student = synq.load("out/student.safetensors", network)
    assert student(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_no_onnx_file_is_written_where_none_is_wanted(folder):
    assert run("--output", "out", *WORDS, "export.format=none", "finetune.epochs=0") == 0
    assert not (folder / "out" / "student.onnx").exists()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--set", "epochs=3"], "set has 'epochs=3'; write SECTION.NAME=VALUE"),
        (["--set", "finetune.epochs"], "set has 'finetune.epochs'; write SECTION.NAME=VALUE"),
        (["--set", "finetun.epochs=3"], "of sections did you mean finetune?"),
        (["--set", "finetune.epochs=three"], "finetune.epochs is 'three'"),
        (["--set", "finetune.epochs=[3"], "whose value is no YAML"),
        (["--weights", "none.pth"], "none.pth does not exist"),
        (["--test", "no/folder"], "no/folder is not a folder"),
        (["--method", "synqplus"], "method is 'synqplus'; did you mean synq-plus?"),
        (["--factory", "mine:bild"], "mine has no bild; did you mean build?"),
        (["--output", "weights.pth"], "weights.pth is no folder"),
        (["--output", "weights.pth/out"], "weights.pth is no folder"),
        (["--image-size", "3"], "image_size is 3 px; it must be at least 8"),
    ],
)
def test_what_is_wrong_is_one_line_and_nothing_is_written(folder, capsys, words, text):
    before = sorted(folder.iterdir())
    assert run("--output", "out", *WORDS, *words) == 2
    error = capsys.readouterr().err
    assert error.startswith("synq: error: ")
    assert text in error
    assert error.count("\n") == 1
    assert [path for path in sorted(folder.iterdir()) if path.name != "__pycache__"] == before
