"""How long a job took: the tables that Snakemake writes. By the standard library alone."""

import csv
import math
from pathlib import Path


def read_seconds(path: Path) -> float:
    """Seconds of a job; nan where they are not known."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            row = next(csv.DictReader(file, delimiter="\t"))
            return float(row["s"])
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return math.nan
