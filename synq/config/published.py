"""Published top-1 accuracies in percent, shown beside ours where model, data and widths are theirs.

The numbers are in ``published.csv``: each method at W3A3 and W4A4, from the SynQ paper (ICLR 2025),
the rows from ``none`` to ``cam-soft`` from its ablation, and HAST from its own paper. All are the
best test accuracy over the epochs, so that ``best_on_test`` is what to compare with. The
``resnet18-imagenet`` is the older file of pytorchcv (0.0.58 and before); the newer one has 73.06.
"""

import csv
import functools
from pathlib import Path

FILE = Path(__file__).with_name("published.csv")

# Methods of the config whose published counterpart has another name.
SAME_AS = {"synq-paper": "synq", "synq-released": "synq", "texq-like": "texq"}


@functools.cache
def numbers() -> dict[tuple[str, str, str], float]:
    """(benchmark, method, bits) -> top-1 in percent."""
    with open(FILE, newline="", encoding="utf-8") as file:
        return {
            (row["benchmark"], row["method"], row["bits"]): float(row["top1"])
            for row in csv.DictReader(file)
        }


def benchmarks() -> tuple[str, ...]:
    """Names of the benchmarks that have numbers, in the order of the file."""
    return tuple(dict.fromkeys(benchmark for benchmark, _, _ in numbers()))


def published(benchmark: str, method: str, bits: str) -> float | None:
    """The published accuracy of a run, or None where there is none."""
    return numbers().get((benchmark, SAME_AS.get(method, method), bits))
