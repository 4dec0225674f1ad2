"""What ImageNet's size costs: shards, fine-tuning from them, and the workflow's own plan."""

import os
import resource
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import torch

from benchmarks.subjects import untrained
from benchmarks.timing import seconds
from synq.config.finetune import Finetune
from synq.config.model import Model
from synq.config.synthesis import Synthesis
from synq.finetuning.batches import Images
from synq.io.shards import ShardSet, write_shard
from synq.models.teacher import Teacher, read_teacher, shard_record, write_teacher
from synq.runtime.process import generator_for

ROOT = Path(__file__).parents[1]
SIDE = 224
PER_SHARD = 256
# The smallest network of that size: what fine-tuning needs for the images stands out.
ARCHITECTURE = "mobilenet_wd4"
CLASSES, SEEDS, WIDTHS = 1000, 5, ("w3a3", "w4a4", "w5a5", "w8a8")
MODELS = ("resnet18", "resnet50", "mobilenet_w1", "mobilenetv2_w1")


def storage(images: int) -> dict[str, Any]:
    """Shards of ``images`` images of noise: their bytes, the time to write and to read them."""
    with tempfile.TemporaryDirectory() as folder:
        teacher = _teacher(Path(folder))
        written = seconds(lambda: _shards(Path(folder), teacher, images))
        paths = sorted(Path(folder).glob("*.h5"))
        shards = ShardSet(paths, teacher.sha256)
        seen = Images(shards, Finetune(lowpass="off"), torch.device("cpu"))
        order = seen.train[torch.randperm(len(seen.train), generator=generator_for(0))]
        read = seconds(lambda: deque(seen.batches(order.split(64)), maxlen=0))
        half, whole = (
            _fine_tuning(Path(folder), paths[:count]) for count in (len(paths) // 2, len(paths))
        )
        return {
            "images": images,
            "file MB": sum(path.stat().st_size for path in paths) / 1e6,
            "ms to make and write an image": 1000 * written / images,
            "ms to read an image in random order": 1000 * read / len(order),
            f"MB in memory to fine-tune {ARCHITECTURE} with half of them": half,
            f"MB in memory to fine-tune {ARCHITECTURE} with all": whole,
        }


def _teacher(folder: Path) -> Teacher:
    """A network with random weights, and the running statistics of noise."""
    settings = Model(
        source="pytorchcv", architecture=ARCHITECTURE, classes=CLASSES, image_size=SIDE
    )
    noise = torch.randn(16, 3, SIDE, SIDE, generator=generator_for(0))
    model = untrained(ARCHITECTURE, CLASSES, noise)
    path = folder / "teacher.safetensors"
    half = [0.5] * 3
    write_teacher(
        path, model.state_dict(), settings, name="net", mean=half, std=half, origin="benchmark"
    )
    return read_teacher(path, torch.device("cpu"))


def _shards(folder: Path, teacher: Teacher, images: int) -> None:
    generator = generator_for(0)
    for number in range(images // PER_SHARD):
        pixels = torch.randn(PER_SHARD, 3, SIDE, SIDE, generator=generator)
        labels = torch.full((PER_SHARD,), number)
        confidence = torch.rand(PER_SHARD, generator=generator)
        record = shard_record(teacher, [number], 0, Synthesis())
        write_shard(folder / f"{number:03}.h5", pixels, labels, confidence, record)


def _fine_tuning(folder: Path, shards: list[Path]) -> float:
    """MB that the stage had in memory at most, in an epoch on these shards."""
    words = [sys.executable, "-m", "synq", "finetune", "--bits", "w4a4", "--method", "synq"]
    words += ["--teacher", str(folder / "teacher.safetensors"), "--shards", *map(str, shards)]
    words += ["--image-set", "noise", "--seed", "0", "--epochs", "1", "--batch-size", "16"]
    words += ["--output", str(folder / "student.safetensors")]
    words += ["--snapshots", str(folder / "students.safetensors"), "--device", "cpu"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return used.ru_maxrss / 1000


def planning(classes_per_shard: int) -> dict[str, Any]:
    """A dry run of 1,000 classes, 4 models, 4 widths and 5 seeds."""
    models = "\n".join(f"  {name}: {{source: pytorchcv, architecture: {name}}}" for name in MODELS)
    overlay = (
        f"grid:\n  models: [{', '.join(MODELS)}]\n  bits: [{', '.join(WIDTHS)}]\n"
        f"  methods: [synq]\n  seeds: {list(range(SEEDS))}\nmodels:\n{models}\n"
        "test: {dataset: folder, path: data}\n"
        f"synthesis: {{images_per_class: 5, classes_per_shard: {classes_per_shard}}}\n"
    )
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "imagenet.yaml"
        file.write_text(overlay, "utf-8")
        words = [sys.executable, "-m", "snakemake", "-n", "-p", "--cores", "1"]
        words += ["--config", f"results={folder}/results", "--configfile", str(file)]
        with open(Path(folder) / "printed", "w") as printed:
            time = seconds(
                lambda: subprocess.run(
                    words, cwd=ROOT, check=True, stdout=printed, stderr=subprocess.STDOUT
                )
            )
        commands = [
            line
            for line in (Path(folder) / "printed").read_text("utf-8").splitlines()
            if "-m synq" in line
        ]
    return {
        "classes per shard": classes_per_shard,
        "jobs": len(commands),
        "seconds": time,
        "MB in memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000,
        "longest command": max(map(len, commands)),
    }
