"""What ImageNet's size costs: shards on disk, memory of reading them, the workflow's own plan."""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.timing import seconds
from synq.runtime import generator_for
from synq.shards import write_shard

ROOT = Path(__file__).parents[1]
SHAPE = (3, 224, 224)
PER_SHARD = 256
TEACHER = "0" * 64
# One epoch of batches as fine-tuning reads them, and the most memory that this process ever had.
READ = f"""
import resource, sys, time
from pathlib import Path
import torch
from synq.batches import Images
from synq.config import Finetune
from synq.runtime import generator_for
from synq.shards import ShardSet

torch.set_num_threads(1)
shards = ShardSet([Path(name) for name in sys.argv[1:]], "{TEACHER}")
images = Images(shards, Finetune(lowpass="off", crop_min=1.0, flip=0.0), torch.device("cpu"))
order = images.train[torch.randperm(len(images.train), generator=generator_for(0))]
start = time.perf_counter()
for batch, _ in images.batches(order.split(64)):
    pass
print((time.perf_counter() - start) / len(order))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)
"""
CLASSES, SEEDS, WIDTHS = 1000, 5, ("w3a3", "w4a4", "w5a5", "w8a8")
MODELS = ("resnet18", "resnet50", "mobilenet_w1", "mobilenetv2_w1")


def storage(images: int) -> dict[str, Any]:
    """Shards of ``images`` images: their bytes, and what it takes to write and to read them."""
    generator = generator_for(0)
    with tempfile.TemporaryDirectory() as folder:
        paths = []
        written = 0.0
        for number in range(images // PER_SHARD):
            paths.append(Path(folder) / f"{number}.h5")
            pixels = torch.randn(PER_SHARD, *SHAPE, generator=generator)
            labels = torch.full((PER_SHARD,), number)
            record = {"teacher_sha256": TEACHER, "classes": [number]}
            confidence = torch.rand(PER_SHARD, generator=generator)
            written += seconds(
                lambda p=paths[-1], i=pixels, n=labels, c=confidence, r=record: write_shard(
                    p, i, n, c, r
                )
            )
        half, whole = (_reading(paths[: len(paths) // 2]), _reading(paths))
        return {
            "images": images,
            "file MB": sum(path.stat().st_size for path in paths) / 1e6,
            "ms to write an image": 1000 * written / images,
            "ms to read an image in random order": 1000 * whole[0],
            "MB in memory, half of them": half[1],
            "MB in memory, all": whole[1],
        }


def _reading(paths: list[Path]) -> tuple[float, float]:
    words = [sys.executable, "-c", READ, *map(str, paths)]
    ran = subprocess.run(words, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE)
    each, memory = map(float, ran.stdout.split())
    return each, memory


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
