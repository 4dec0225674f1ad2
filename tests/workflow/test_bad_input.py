"""Each mistake through the command line: one line, exit code 2, and nothing left behind."""

import itertools

import h5py
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from synq.cli import main
from synq.config.model import Model
from synq.errors import DivergenceError
from synq.finetuning.training import Epochs
from synq.io.artifacts import file_sha256, read_json
from synq.models import build as models
from synq.models.teacher import write_teacher

MODEL = Model(source="pytorchcv", architecture="resnet20_cifar10", classes=10, image_size=32)
SHAPE = ["--architecture", "resnet20_cifar10", "--classes", "10", "--image-size", "32"]
NORMAL = ["--mean", "0.5", "0.5", "0.5", "--std", "0.25", "0.25", "0.25"]


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A teacher, and a shard of each of two teachers."""
    root = tmp_path_factory.mktemp("made")
    for seed, name in enumerate(("one", "other")):
        torch.manual_seed(seed)
        state = models.build("resnet20_cifar10", 10, 3, 32).state_dict()
        path = root / f"{name}.safetensors"
        write_teacher(path, state, MODEL, name=name, mean=[0.5] * 3, std=[0.25] * 3, origin="test")
        words = ["synthesize", "--teacher", str(path), "--output", str(root / f"{name}.h5")]
        words += ["--classes", "0", "1", "--seed", "0", "--images-per-class", "4"]
        assert main([*words, "--iterations", "1", "--device", "cpu"]) == 0
    return root


def refused(capsys, tmp_path, *words):
    """The one line of a command that is refused; it leaves no file in ``tmp_path``."""
    before = sorted(tmp_path.rglob("*"))
    capsys.readouterr()
    assert main([str(word) for word in words]) == 2
    assert sorted(tmp_path.rglob("*")) == before
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("synq: error")]
    assert len(told) == 1
    return told[0]


def finetune(made, tmp_path, shard, *more):
    return [
        *("finetune", "--teacher", made / "one.safetensors", "--shards", shard),
        *("--bits", "w4a4", "--method", "m", "--image-set", "i", "--seed", "0"),
        *(
            "--output",
            tmp_path / "student.safetensors",
            "--snapshots",
            tmp_path / "students.safetensors",
        ),
        *("--epochs", "1", "--batch-size", "4", "--device", "cpu", *more),
    ]


def test_the_right_input_is_taken(made, tmp_path):
    assert main([str(word) for word in finetune(made, tmp_path, made / "one.h5")]) == 0
    assert (tmp_path / "student.safetensors").is_file()


def test_a_missing_shard(made, tmp_path, capsys):
    line = refused(capsys, tmp_path, *finetune(made, tmp_path, made / "none.h5"))
    assert "none.h5 does not exist; run the synthesis" in line


def test_a_truncated_shard(made, tmp_path, capsys):
    shard = tmp_path / "cut.h5"
    shard.write_bytes((made / "one.h5").read_bytes()[:-1000])
    line = refused(capsys, tmp_path, *finetune(made, tmp_path, shard))
    assert "cut.h5" in line
    assert "delete it and run the synthesis again" in line


def test_a_shard_of_another_model(made, tmp_path, capsys):
    line = refused(capsys, tmp_path, *finetune(made, tmp_path, made / "other.h5"))
    assert "other.h5 was made from another model" in line


def test_an_hdf5_file_that_is_no_shard(made, tmp_path, capsys):
    with h5py.File(tmp_path / "data.h5", "w") as file:
        file["images"] = [0.0]
    line = refused(capsys, tmp_path, *finetune(made, tmp_path, tmp_path / "data.h5"))
    assert "data.h5 is HDF5 that another program wrote" in line


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (["--bits", "w1a4"], "weights of 1 bit"),
        (["--bits", "4"], "'4'"),
        (["--learning-rate", "0"], "learning_rate is 0.0; it must be above 0"),
        (["--holdout", "0.95"], "holdout is 0.95; it must be at most 0.9"),
    ],
)
def test_a_setting_out_of_range(made, tmp_path, capsys, flags, text):
    line = refused(capsys, tmp_path, *finetune(made, tmp_path, made / "one.h5", *flags))
    assert text in line


def test_a_fine_tuning_that_diverges(made, tmp_path, capsys):
    words = finetune(made, tmp_path, made / "one.h5", "--learning-rate", "1e30", "--epochs", "3")
    assert main([str(word) for word in words]) == 2
    assert "lower finetune.learning_rate" in capsys.readouterr().err
    # The whole epochs before it are kept, to go on with; no result is.
    assert [path.name for path in tmp_path.iterdir()] == ["student.work"]


def measured(made, tmp_path):
    """The metrics of the students that a fine-tuning of the first teacher left."""
    common = ["--teacher", made / "one.safetensors", "--device", "cpu", "--dataset", "digits"]
    reference, output = tmp_path / "teacher.json", tmp_path / "metrics.json"
    words = ["evaluate-teacher", *common, "--output", reference]
    assert main([str(word) for word in words]) == 0
    words = ["evaluate", *common, "--teacher-metrics", reference, "--output", output]
    words += ["--snapshots", tmp_path / "students.safetensors"]
    assert main([str(word) for word in words]) == 0
    return read_json(output, "metrics")


def test_a_fine_tuning_that_only_hurts_is_remarked(made, tmp_path, capsys, monkeypatch):
    # Whether it hurts a toy depends on the machine: here the loss grows with every epoch.
    losses = itertools.count(1.0)
    monkeypatch.setattr("synq.finetuning.training.held_out_loss", lambda *_: next(losses))
    words = finetune(made, tmp_path, made / "one.h5", "--learning-rate", "1e-6", "--holdout", "0.5")
    assert main([str(word) for word in words]) == 0
    metrics = measured(made, tmp_path)
    assert metrics["selected"]["epoch"] == 0
    # A network of random weights is at chance, which is told too.
    assert "do test set, mean and std belong to this network?" in metrics["remark"]
    assert "lower finetune.learning_rate" in metrics["remark"]


def test_a_fine_tuning_that_diverges_once_is_trained_anew_and_remarked(
    made, tmp_path, capsys, monkeypatch
):
    plain, numbers = Epochs.run, []

    def run(self, number, part):
        numbers.append(number)
        if numbers == [1, 2]:
            raise DivergenceError("lower finetune.learning_rate")
        if numbers == [1, 2, 1, 2]:
            raise KeyboardInterrupt
        return plain(self, number, part)

    monkeypatch.setattr(Epochs, "run", run)
    words = finetune(made, tmp_path, made / "one.h5", "--learning-rate", "1e-6", "--epochs", "2")
    assert main([str(word) for word in words]) == 130
    assert main([str(word) for word in words]) == 0
    assert numbers == [1, 2, 1, 2, 2]
    told = capsys.readouterr().out
    assert "the calibrated student is trained anew, at 0.1 of its learning rates" in told
    assert "going on after epoch 1" in told
    remark = measured(made, tmp_path)["remark"]
    assert "diverged at finetune.learning_rate 1e-06 and began anew at a tenth of it" in remark


def test_a_synthesis_that_diverges(made, tmp_path, capsys):
    words = ["synthesize", "--teacher", made / "one.safetensors", "--output", tmp_path / "s.h5"]
    words += ["--classes", "0", "--seed", "0", "--images-per-class", "2", "--iterations", "9"]
    line = refused(capsys, tmp_path, *words, "--pixel-learning-rate", "1e30", "--device", "cpu")
    assert "lower synthesis.pixel_learning_rate" in line


def test_fewer_images_than_none(made, tmp_path, capsys):
    words = ["synthesize", "--teacher", made / "one.safetensors", "--output", tmp_path / "s.h5"]
    words += ["--classes", "0", "--seed", "0", "--images-per-class", "-1"]
    assert "images_per_class is -1; it must be at least 0" in refused(capsys, tmp_path, *words)


def test_a_class_that_does_not_exist(made, tmp_path, capsys):
    words = ["synthesize", "--teacher", made / "one.safetensors", "--output", tmp_path / "s.h5"]
    words += ["--classes", "10", "--seed", "0", "--device", "cpu"]
    assert "class 10 does not exist; one has 0 to 9" in refused(capsys, tmp_path, *words)


def fetch(tmp_path, weights, sha256):
    return [
        *("fetch", "--name", "net", "--source", "file", "--weights", weights, "--sha256", sha256),
        *(*SHAPE, *NORMAL, "--download", tmp_path / "d", "--output", tmp_path / "t.safetensors"),
    ]


def test_weights_of_another_hash(tmp_path, capsys):
    weights = tmp_path / "w.safetensors"
    save_file({"a": torch.zeros(1)}, weights)
    line = refused(capsys, tmp_path, *fetch(tmp_path, weights, "0" * 64))
    assert f"has SHA-256 {file_sha256(weights)}, expected {'0' * 64}" in line


def test_weights_with_other_keys(tmp_path, capsys):
    weights = tmp_path / "w.pth"
    state = models.build("resnet20_cifar10", 10, 3, 32).state_dict()
    state["head.weight"] = state.pop("output.weight")
    torch.save(state, weights)
    words = [str(word) for word in fetch(tmp_path, weights, file_sha256(weights))]
    assert main(words) == 2
    assert "lacks: output.weight" in capsys.readouterr().err
    assert not (tmp_path / "t.safetensors").exists()


class Plain(nn.Module):
    """A classifier without BatchNorm, or without anything to quantize."""

    def __init__(self, *layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, images):
        return self.layers(images)


@pytest.mark.parametrize(
    ("layers", "command", "text"),
    [
        (
            (nn.Conv2d(3, 10, 32), nn.ReLU(), nn.Flatten()),
            "synthesize",
            "no BatchNorm layer with running statistics",
        ),
        (
            (
                nn.ConstantPad3d((0, 0, 0, 0, 0, 7), 0.0),
                nn.BatchNorm2d(10),
                nn.ReLU(),
                nn.AvgPool2d(32),
                nn.Flatten(),
            ),
            "finetune",
            "no convolution or linear layer to quantize",
        ),
    ],
    ids=["no BatchNorm", "nothing to quantize"],
)
def test_a_model_that_does_not_fit(made, tmp_path, capsys, monkeypatch, layers, command, text):
    teacher = tmp_path / "plain.safetensors"
    model = Plain(*layers)
    state = model.state_dict()
    write_teacher(
        teacher, state, MODEL, name="plain", mean=[0.5] * 3, std=[0.25] * 3, origin="test"
    )
    monkeypatch.setattr("synq.models.sources.build", lambda *_: model)
    words = ["synthesize", "--teacher", teacher, "--output", tmp_path / "s.h5"]
    words += ["--classes", "0", "--seed", "0", "--images-per-class", "4", "--iterations", "1"]
    words += ["--device", "cpu"]
    if command == "finetune":
        assert main([str(word) for word in words]) == 0
        words = finetune(made, tmp_path, tmp_path / "s.h5")
        words[words.index("--teacher") + 1] = teacher
    assert text in refused(capsys, tmp_path, *words)
