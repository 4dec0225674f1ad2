"""What needs a real GPU: `pytest -m gpu -n 0 tests/gpu`, on a machine that has one.

Not part of the usual run, and never run by the project itself, which had no GPU: a failure here may
be the test's own. Each test says on a card what others say on the CPU or with pretended GPUs.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from embedded import embedded_teacher

from synq.config.finetune import Finetune
from synq.finetuning.batches import Images
from synq.io.artifacts import file_sha256, read_checkpoint
from synq.io.shards import ShardSet
from synq.models.teacher import read_teacher

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here"),
]
LIMIT = 600  # seconds for one process
TWO_CARDS = pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="torch sees fewer than two GPUs here"
)


def started(*words: object, start: tuple[str, ...] = ("-m", "synq")) -> subprocess.Popen[str]:
    """A command of its own: CUDA's settings are those of a process."""
    return subprocess.Popen(
        [sys.executable, *start, *map(str, words)],
        env=dict(os.environ),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def ended(process: subprocess.Popen[str]) -> str:
    try:
        text, _ = process.communicate(timeout=LIMIT)
    finally:
        process.kill()
    assert process.returncode == 0, text
    return text


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return embedded_teacher(tmp_path_factory.mktemp("teacher"))


def synthesis(teacher: Path, output: Path, *more: object) -> list[object]:
    words = ["synthesize", "--teacher", teacher, "--output", output, "--classes", *range(10)]
    return [*words, "--seed", 0, "--images-per-class", 4, "--iterations", 5, *more]


@pytest.fixture(scope="module")
def shard(teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("shards") / "classes-0000-0009.h5"
    ended(started(*synthesis(teacher, output, "--device", "cpu")))
    return output


def finetuning(teacher: Path, shard: Path, folder: Path, *more: object) -> list[object]:
    folder.mkdir(exist_ok=True)
    files = ["--teacher", teacher, "--shards", shard, "--output", folder / "student.safetensors"]
    files += ["--snapshots", folder / "snapshots"]
    named = ["--bits", "w4a4", "--method", "synq", "--image-set", "hard", "--seed", 0]
    budget = ["--epochs", 2, "--batch-size", 8, "--learning-rate", "1e-6", "--holdout", 0.25]
    return ["finetune", *files, *named, *budget, *more]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "student.safetensors", "student")[0]


def images_of(path: Path, teacher: Path) -> torch.Tensor:
    shards = ShardSet([path], file_sha256(teacher))
    return shards.images(torch.arange(len(shards)))


def flat(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([value.double().flatten() for value in tensors.values()])


def near(one: torch.Tensor, other: torch.Tensor, tolerance: float) -> None:
    """Equal but for that share of the size: sums in another order, then steps of an optimizer."""
    assert one.shape == other.shape
    assert float((one - other).norm()) < tolerance * float(one.norm())


def test_a_teacher_has_its_channels_last_and_answers_as_on_the_cpu(teacher: Path) -> None:
    card, cpu = (read_teacher(teacher, torch.device(kind)) for kind in ("cuda", "cpu"))
    kernels = [weight for weight in card.model.parameters() if weight.dim() == 4]
    assert kernels
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)
    images = torch.randn(64, *card.image_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found, wanted = card.model(images.cuda()).cpu(), cpu.model(images)
    # TF32, where torch allows it, keeps ten bits of a product's factors.
    near(wanted, found, 1e-2)


def test_synthesis_makes_the_same_images_as_on_the_cpu(
    teacher: Path, shard: Path, tmp_path: Path
) -> None:
    ended(started(*synthesis(teacher, tmp_path / "card.h5", "--device", "cuda")))
    near(images_of(shard, teacher), images_of(tmp_path / "card.h5", teacher), 0.05)


def test_the_same_seed_gives_the_same_bytes(teacher: Path, shard: Path, tmp_path: Path) -> None:
    for name in ("one", "other"):
        shards = synthesis(teacher, tmp_path / f"{name}.h5", "--device", "cuda")
        ended(started(*shards))
        ended(started(*finetuning(teacher, shard, tmp_path / name, "--device", "cuda")))
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "other.h5").read_bytes()
    one, other = (weights(tmp_path / name) for name in ("one", "other"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_a_compiled_synthesis_makes_the_same_images(
    teacher: Path, tmp_path: Path, mode: str
) -> None:
    plain = synthesis(teacher, tmp_path / "plain.h5", "--device", "cuda")
    faster = synthesis(teacher, tmp_path / "compiled.h5", "--device", "cuda")
    ended(started(*plain))
    ended(started(*faster, "--compile", mode))
    one, other = (images_of(tmp_path / f"{name}.h5", teacher) for name in ("plain", "compiled"))
    near(one, other, 0.05)


def test_batches_are_read_into_pinned_memory_and_are_those_of_the_cpu(
    teacher: Path, shard: Path
) -> None:
    shards = ShardSet([shard], file_sha256(teacher))
    rows = [torch.tensor([3, 1, 2]), torch.tensor([7]), torch.tensor([], dtype=torch.long)]
    both = {}
    for kind in ("cuda", "cpu"):
        images = Images(shards, Finetune(), torch.device(kind))
        assert images._read(rows[0]).is_pinned() == (kind == "cuda")
        both[kind] = list(images.batches(rows, torch.Generator().manual_seed(0)))
    for (card, labels), (cpu, wanted) in zip(both["cuda"], both["cpu"], strict=True):
        assert card.device.type == labels.device.type == "cuda" or not len(card)
        assert torch.equal(labels.cpu(), wanted)
        torch.testing.assert_close(card.cpu(), cpu, rtol=1e-4, atol=1e-4)


def test_fine_tuning_makes_the_student_of_the_cpu(
    teacher: Path, shard: Path, tmp_path: Path
) -> None:
    for kind in ("cuda", "cpu"):
        ended(started(*finetuning(teacher, shard, tmp_path / kind, "--device", kind)))
    near(flat(weights(tmp_path / "cpu")), flat(weights(tmp_path / "cuda")), 1e-2)


def test_a_step_in_bfloat16_keeps_parameters_in_float32(
    teacher: Path, shard: Path, tmp_path: Path
) -> None:
    for precision in ("float32", "bfloat16"):
        more = ("--device", "cuda", "--precision", precision)
        text = ended(started(*finetuning(teacher, shard, tmp_path / precision, *more)))
        assert "nan" not in text
    plain, half = (weights(tmp_path / name) for name in ("float32", "bfloat16"))
    assert {value.dtype for value in half.values() if value.is_floating_point()} == {torch.float32}
    near(flat(plain), flat(half), 1e-2)
    assert any(not torch.equal(plain[name], half[name]) for name in plain)


def test_two_jobs_on_one_card_end_as_one_alone(teacher: Path, shard: Path, tmp_path: Path) -> None:
    more = ("--device", "cuda:0")
    ended(started(*finetuning(teacher, shard, tmp_path / "alone", *more)))
    folders = [tmp_path / name for name in ("left", "right")]
    for process in [started(*finetuning(teacher, shard, folder, *more)) for folder in folders]:
        ended(process)
    alone = weights(tmp_path / "alone")
    for folder in folders:
        other = weights(folder)
        assert all(torch.equal(alone[name], other[name]) for name in alone)


@TWO_CARDS
def test_two_processes_on_two_cards_make_the_student_of_one(
    teacher: Path, shard: Path, tmp_path: Path
) -> None:
    """NCCL, where the tests on the CPU have gloo."""
    ended(started(*finetuning(teacher, shard, tmp_path / "one", "--device", "cuda")))
    two = finetuning(teacher, shard, tmp_path / "two", "--device", "cuda", "--processes", 2)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "synq")
    text = ended(started(*two, start=torchrun))
    assert text.count("epoch 2/2: ") == 1  # one process alone reports
    near(flat(weights(tmp_path / "one")), flat(weights(tmp_path / "two")), 1e-2)


@TWO_CARDS
def test_two_jobs_take_a_card_each(teacher: Path, shard: Path, tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("left", "right")]
    running = [started(*finetuning(teacher, shard, folder)) for folder in folders]
    texts = [ended(process) for process in running]
    if all("device: cuda:" in text for text in texts):  # no scheduler has chosen for them
        chosen = {text.partition("device: ")[2].splitlines()[0] for text in texts}
        assert len(chosen) == 2
