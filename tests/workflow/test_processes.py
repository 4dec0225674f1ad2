"""Several processes that train one student: on the CPU, by torchrun and gloo."""

import os
import subprocess
import sys

import pytest
import torch
from reference_values import Reference, teacher

from synq.cli import main
from synq.config.model import Model
from synq.config.synthesis import Synthesis
from synq.io.artifacts import file_sha256, read_checkpoint
from synq.io.shards import write_shard
from synq.io.students import Students
from synq.models.teacher import Teacher, shard_record, write_teacher

SETTINGS = ["--epochs", "2", "--learning-rate", "1e-6", "--holdout", "0.25"]
# 12 images to train on: batches of 5, 5 and 2, of which one process takes 2, 2 and 1.
SETTINGS += ["--batch-size", "5", "--feature-weight", "10"]

# Terms over means of the whole batch, of which these are to be all that counts.
RELATIVE = ["--activation-weight", "100", "--block-weight", "100", "--distillation-weight", "0.01"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    network = teacher()
    model = Model(source="pytorchcv", architecture="resnet20_cifar10", classes=10, image_size=32)
    path = folder / "teacher.safetensors"
    words = {"name": "net", "mean": [0.5] * 3, "std": [0.25] * 3, "origin": "the references"}
    write_teacher(path, network.state_dict(), model, **words)
    known = Teacher(network, file_sha256(path), "net", 10, (3, 32, 32), [0.5] * 3, [0.25] * 3)
    images = Reference("step")["images"]
    # Loud and faint ones: the shares of a batch have other means than the whole.
    images = images * torch.linspace(0.1, 3, len(images))[:, None, None, None]
    labels = torch.arange(len(images)) % 4
    record = shard_record(known, [0, 1, 2, 3], 0, Synthesis())
    write_shard(folder / "s.h5", images, labels, torch.rand(len(images)), record)
    return folder


def words(made, output, *more):
    files = ["--teacher", made / "teacher.safetensors", "--shards", made / "s.h5"]
    files += [
        "--output",
        output / "student.safetensors",
        "--snapshots",
        output / "students.safetensors",
    ]
    named = ["--bits", "w4a4", "--method", "synq", "--image-set", "hard", "--seed", "3"]
    place = ["--device", "cpu", "--threads", "1"]
    return [str(word) for word in ["finetune", *files, *named, *SETTINGS, *place, *more]]


def moved(made, output):
    """How far each parameter went from the teacher's in all epochs, in one vector; the history."""
    start, _ = read_checkpoint(made / "teacher.safetensors", "teacher")
    snapshots = Students(output / "students.safetensors")
    end, history = snapshots.student(2), snapshots.record["history"]
    names = [name for name in start if name.split(".")[-1] in ("weight", "bias")]
    return torch.cat([(end[name] - start[name]).flatten() for name in names]), history


def torchrun(made, output, *more):
    start = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "synq"]
    return subprocess.run(
        [sys.executable, *start, *words(made, output, "--processes", "2", "--threads", "2", *more)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )


# Rounding to few levels and the sign of a gradient turn the last digit of a sum into a step.
@pytest.mark.parametrize(
    ("more", "tolerance"),
    [
        (["--bits", "w8a8"], 0.01),
        # Of the second batch, a single image, the leader has none.
        (["--bits", "w8a8", *RELATIVE, "--batch-size", "11"], 0.01),
        (["--bits", "w4a4", "--perturbation", "0.01"], 0.2),
    ],
    ids=["smooth", "relative", "whole"],
)
def test_two_processes_take_the_steps_of_one(made, tmp_path, more, tolerance):
    more += ["--learning-rate", "1e-7"]
    assert main(words(made, tmp_path / "one", *more)) == 0
    ran = torchrun(made, tmp_path / "two", *more)
    assert ran.returncode == 0, ran.stdout
    (one, history), (two, shared) = (moved(made, tmp_path / folder) for folder in ("one", "two"))
    assert 0 < float((one - two).norm()) < tolerance * float(one.norm())
    assert len(history) == len(shared) == 3
    for entry, other in zip(history, shared, strict=True):
        assert other == pytest.approx(entry, rel=0.2)
    # One process alone reported it.
    assert ran.stdout.count("epoch 2/2: distillation") == 1


def test_the_processes_stay_identical(made, tmp_path):
    """Each writes what it holds after the last step, by a hook of this test alone."""
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(
        "import os\n"
        "if 'RANK' in os.environ:\n"
        "    import synq.finetuning.training as training, torch\n"
        "    plain = training.finetune\n"
        "    def finetune(teacher, student, *rest):\n"
        "        yield from plain(teacher, student, *rest)\n"
        f"        torch.save(student.state_dict(), {str(spy)!r} + '/' + os.environ['RANK'])\n"
        "    training.finetune = finetune\n"
    )
    path = os.pathsep.join([str(spy), os.environ.get("PYTHONPATH", "")])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = path
    try:
        ran = torchrun(made, tmp_path / "two")
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    assert ran.returncode == 0, ran.stdout
    one, other = torch.load(spy / "0"), torch.load(spy / "1")
    assert one
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_number_of_processes_that_was_not_started_is_told(made, tmp_path, capsys):
    assert main(words(made, tmp_path, "--processes", "2")) == 2
    line = capsys.readouterr().err
    assert "finetune.processes is 2, but this is one of 1" in line
    assert "torchrun --nproc-per-node 2" in line
