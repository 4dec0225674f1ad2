"""Tables of results over seeds."""

import math
from collections.abc import Sequence
from typing import Any

import pandas

KEYS = ["model", "bits", "method"]
ACCURACIES = ["calibrated", "last", "selected", "best_on_test"]


def accuracy_table(metrics: Sequence[dict[str, Any]]) -> pandas.DataFrame:
    """One row a model, width and method: top-1 in percent, mean and standard deviation over seeds.

    ``metrics`` are the contents of metrics.json with a mapping ``seconds`` of stage to seconds
    added. The standard deviation is the sample's, and missing for one seed.
    """
    rows = [
        {
            **{key: entry[key] for key in (*KEYS, "seed", "images", "weight_bytes")},
            "full_precision": entry["teacher"]["top1"],
            "float_bytes": entry["teacher"]["weight_bytes"],
            **{name: entry[name]["top1"] for name in ACCURACIES},
            **{f"{stage}_seconds": seconds for stage, seconds in entry["seconds"].items()},
        }
        for entry in metrics
    ]
    frame = pandas.DataFrame(rows)
    groups = frame.groupby(KEYS, sort=False)
    seconds = [name for name in frame if name.endswith("_seconds")]
    table = groups.size().rename("seeds").to_frame()
    table["full_precision"] = groups["full_precision"].first()
    for name in ACCURACIES:
        table[f"{name}_mean"] = groups[name].mean()
        table[f"{name}_std"] = groups[name].std()
    for name in ("images", "weight_bytes", "float_bytes"):
        table[name] = groups[name].first()
    for name in seconds:
        table[name] = groups[name].mean()
    return table.reset_index()


def readable(table: pandas.DataFrame) -> pandas.DataFrame:
    """The same table for people: mean ± std in one cell, sizes in kB, seconds rounded."""
    shown = table[[*KEYS, "seeds"]].copy()
    shown["full precision"] = table["full_precision"].map("{:.2f}".format)
    for name in ACCURACIES:
        pairs = zip(table[f"{name}_mean"], table[f"{name}_std"], strict=True)
        shown[name.replace("_", " ")] = [_mean_std(mean, std) for mean, std in pairs]
    shown["images"] = table["images"]
    shown["kB"] = (table["weight_bytes"] / 1000).map("{:.1f}".format)
    shown["float kB"] = (table["float_bytes"] / 1000).map("{:.1f}".format)
    for name in table.columns:
        if name.endswith("_seconds"):
            label = name.removesuffix("_seconds") + " s"
            shown[label] = table[name].map("{:.0f}".format).replace("nan", "")
    return shown


def _mean_std(mean: float, std: float) -> str:
    return f"{mean:.2f}" if math.isnan(std) else f"{mean:.2f} ± {std:.2f}"
