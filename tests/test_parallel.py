"""Several processes that train one student: on the CPU, by torchrun and gloo."""

import os
import subprocess
import sys

import pytest
import torch

from synq.artifacts import file_sha256, read_checkpoint
from synq.cli import main
from synq.config import Model, Synthesis
from synq.models import build
from synq.networks import Teacher, shard_record, write_teacher
from synq.parallel import Team
from synq.shards import write_shard

SETTINGS = ["--epochs", "2", "--learning-rate", "1e-6", "--holdout", "0.25"]
# 15 images to train on: batches of 4, 4, 4 and 3, of which one process takes 1 and the other 2.
SETTINGS += ["--batch-size", "4", "--feature-weight", "10"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parallel")
    torch.manual_seed(0)
    network = build("resnet20_cifar10", 10, 3, 32)
    model = Model(source="train", architecture="resnet20_cifar10", classes=10, image_size=32)
    path = folder / "teacher.safetensors"
    words = {"name": "net", "mean": [0.5] * 3, "std": [0.25] * 3, "origin": "random"}
    write_teacher(path, network.state_dict(), model, **words)
    teacher = Teacher(network, file_sha256(path), "net", 10, (3, 32, 32), [0.5] * 3, [0.25] * 3)
    labels = torch.arange(20) % 5
    record = shard_record(teacher, list(range(5)), 0, Synthesis())
    write_shard(folder / "s.h5", torch.randn(20, 3, 32, 32), labels, torch.rand(20), record)
    return folder


def words(made, output, *more):
    files = ["--teacher", made / "teacher.safetensors", "--shards", made / "s.h5"]
    files += ["--output", output / "student.safetensors", "--snapshots", output / "snapshots.h5"]
    named = ["--bits", "w4a4", "--method", "synq", "--image-set", "hard", "--seed", "3"]
    place = ["--device", "cpu", "--threads", "1"]
    return [str(word) for word in ["finetune", *files, *named, *SETTINGS, *place, *more]]


def students(output):
    tensors, record = read_checkpoint(output / "student.safetensors", "student")
    return tensors, record["history"]


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


def moved(made, output):
    """How far each parameter went from the teacher's, in one vector."""
    start, _ = read_checkpoint(made / "teacher.safetensors", "teacher")
    end, _ = students(output)
    names = [name for name in start if name.split(".")[-1] in ("weight", "bias")]
    return torch.cat([(end[name] - start[name]).flatten() for name in names])


# Rounding to few levels and the sign of a gradient turn the last digit of a sum into a step.
@pytest.mark.parametrize(
    ("more", "tolerance"),
    [
        (["--bits", "w8a8"], 1e-3),
        (["--bits", "w4a4", "--perturbation", "0.01"], 0.1),
    ],
    ids=["smooth", "whole"],
)
def test_two_processes_take_the_steps_of_one(made, tmp_path, more, tolerance):
    more += ["--learning-rate", "1e-7"]
    assert main(words(made, tmp_path / "one", *more)) == 0
    ran = torchrun(made, tmp_path / "two", *more)
    assert ran.returncode == 0, ran.stdout
    one, two = moved(made, tmp_path / "one"), moved(made, tmp_path / "two")
    assert 0 < float((one - two).norm()) < tolerance * float(one.norm())
    histories = [students(tmp_path / folder)[1] for folder in ("one", "two")]
    assert len(histories[0]) == len(histories[1]) == 3
    for entry, other in zip(*histories, strict=True):
        assert other == pytest.approx(entry, rel=3 * tolerance)
    # One process alone reported it.
    assert ran.stdout.count("epoch 2/2: distillation") == 1


def test_the_processes_stay_identical(made, tmp_path):
    """Each writes what it holds after the last step, by a hook of this test alone."""
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(
        "import os\n"
        "if 'RANK' in os.environ:\n"
        "    import synq.training as training, safetensors.torch as st\n"
        "    plain = training.finetune\n"
        "    def finetune(teacher, student, *rest):\n"
        "        yield from plain(teacher, student, *rest)\n"
        f"        st.save_file(student.state_dict(), {str(spy)!r} + '/' + os.environ['RANK'])\n"
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
    assert (spy / "0").read_bytes() == (spy / "1").read_bytes()


def test_a_number_of_processes_that_was_not_started_is_told(made, tmp_path, capsys):
    assert main(words(made, tmp_path, "--processes", "2")) == 2
    line = capsys.readouterr().err
    assert "finetune.processes is 2, but this is one of 1" in line
    assert "torchrun --nproc-per-node 2" in line


@pytest.mark.parametrize("count", [0, 1, 2, 5, 64])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_shares_are_near_equal_and_make_up_the_batch(count, size):
    rows = list(range(count))
    shares = [rows[Team(rank, size).share(count)] for rank in range(size)]
    assert [row for share in shares for row in share] == rows
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
