"""What tells good students from bad ones without a real image: ``python -m benchmarks.proxy``.

All students of a results folder are measured on the synthetic images of every set and seed that
their own training did not see, beside the accuracy that evaluation found on real ones: a table of
them, the best last. For each model and width a second table has Spearman's rank correlation of each
measure with it: 1 would choose as the test labels do, 0 chooses by chance.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas
import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional

from synq.config import layout
from synq.data.rows import evenly_spread
from synq.io.artifacts import read_json
from synq.io.shards import ShardSet
from synq.models.teacher import Teacher, read_teacher
from synq.quantization.student import read_student

CPU = torch.device("cpu")
BATCH = 64
FEWEST = 4  # students of a width, below which no correlation is told
HELD_OUT = "own held-out loss"
NAMES = ["model", "bits", "method", "seed"]


@torch.inference_mode()
def outputs(network: nn.Module, images: Tensor) -> Tensor:
    """Logits ``[N, classes]`` of normalised images ``[N, C, H, W]``."""
    return torch.cat([network(batch) for batch in images.split(BATCH)])


def measures(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Of logits ``[N, classes]``, the larger the better: agreement, and less of the divergence."""
    found, wanted = (functional.log_softmax(logits, 1) for logits in (student, teacher))
    divergence = functional.kl_div(found, wanted, log_target=True, reduction="batchmean")
    agreement = (student.argmax(1) == teacher.argmax(1)).double().mean()
    return {"agreement": agreement.item(), "-KL": -divergence.item()}


def image_sets(
    results: Path, model: str, network: Teacher, count: int
) -> dict[tuple[str, int], Tensor]:
    """Set and seed -> at most ``count`` of its images, evenly spread over the classes."""
    paths: dict[tuple[str, int], list[Path]] = {}
    for path, names in layout.found(results, layout.SHARD):
        if names["model"] == model:
            paths.setdefault((names["image_set"], int(names["seed"])), []).append(path)
    sets = {key: ShardSet(own, network.sha256) for key, own in paths.items()}
    return {key: own.images(evenly_spread(len(own), count)) for key, own in sets.items()}


def students(results: Path, model: str, count: int) -> Iterator[dict[str, Any]]:
    """For each measured run of a model its width, its accuracy, and what each measure says."""
    network = read_teacher(results / layout.TEACHER.format(model=model), CPU)
    images = image_sets(results, model, network, count)
    answers = {key: outputs(network.model, batch) for key, batch in images.items()}
    for path, names in layout.found(results, layout.METRICS):
        if names["model"] != model:
            continue
        metrics = read_json(path, "metrics")
        student, _ = read_student(results / layout.STUDENT.format(**names), network)
        seen = metrics["image_set"], metrics["seed"]
        found: dict[str, list[float]] = {HELD_OUT: [-metrics["selected"]["held_out"]]}
        for key, batch in images.items():
            if key != seen:
                for name, value in measures(outputs(student, batch), answers[key]).items():
                    found.setdefault(f"{name} on {key[0]}", []).append(value)
        yield {
            **{key: metrics[key] for key in NAMES},
            "top1": metrics["selected"]["top1"],
            # A mean over the seeds of a set that the student did not see.
            **{name: sum(values) / len(values) for name, values in found.items()},
        }


def correlations(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each model and width the rank correlation of each measure with the accuracy."""
    found = []
    for (model, bits), group in pandas.DataFrame(rows).groupby(["model", "bits"], sort=False):
        if len(group) >= FEWEST:
            # Spearman's is Pearson's of the ranks; pandas alone would need SciPy for it.
            ranks = group.drop(columns=NAMES).rank()
            told = ranks.corr()["top1"].drop("top1").round(2).to_dict()
            found.append({"model": model, "bits": bits, "students": len(group), **told})
    return found


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.proxy", description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="folder of a finished config")
    parser.add_argument("--images", type=int, default=256, help="of each set and seed")
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    models = [names["model"] for _, names in layout.found(chosen.results, layout.TEACHER)]
    rows = [row for model in models for row in students(chosen.results, model, chosen.images)]
    table = correlations(rows)
    if not table:
        raise SystemExit(f"{chosen.results} has no width with {FEWEST} measured students or more")
    rows.sort(key=lambda row: (row["model"], row["bits"], row["top1"]))
    for found in (rows, table):
        print(tabulate(found, headers="keys", tablefmt="github", floatfmt=".4g"), end="\n\n")


if __name__ == "__main__":
    main()
