"""Tables of results over seeds."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas

from synq.config.grid import parse_bits
from synq.config.published import published

KEYS = ["model", "bits", "method"]


ACCURACIES = ["calibrated", "last", "selected", "best_on_test"]


EXPORTED = [
    *("packed_bytes", "onnx_bytes", "agreement", "test_agreement"),
    *("openvino_agreement", "openvino_test_agreement"),
]


# Top-1 of the file in ONNX Runtime, beside that of torch.
RUNTIME = "runtime_top1"


# What an image costs, by the widths of weights and inputs.
WORK = [
    *("layers", "layers_reading_codes", "multiply_adds", "multiply_adds_share"),
    *("bit_operations", "activation_bytes", "peak_activation_bytes"),
]


# What has bits, and the columns of the mean, the smallest and the largest of them.
BITS = {
    kind: tuple(f"{kind}_bits_{which}" for which in ("average", "least", "most"))
    for kind in ("weights", "activations")
}


# Percent of the images that the selected student names another class of than the network.
OTHER = "other_answers"


DIFFERENCE = "difference"


GAP = "image_gap"


def accuracy_table(
    metrics: Sequence[dict[str, Any]], ceilings: Mapping[str, str] | None = None
) -> pandas.DataFrame:
    """One row a model, width and method: top-1 in percent, mean and standard deviation over seeds.

    ``metrics`` are the contents of metrics.json, where a mapping ``seconds`` of stage to seconds
    may be added, and the content of export.json as ``export``, of whose agreements the smallest is
    shown, and of whose top-1 in the runtime the mean. The standard deviation is the sample's, and
    missing for one seed. ``published`` is the papers' number for the same network, data, width and
    method, missing where there is none.

    ``ceilings`` maps a method to the one that is the same but for better images: ``image_gap`` is
    what these would add, of the last epoch. There is no such column where no run has its ceiling.
    """
    rows = [
        {
            **{key: entry[key] for key in (*KEYS, "seed", "images", "weight_bytes")},
            "published": published(entry["published"], entry["method"], entry["bits"]),
            "remark": _remark(entry),
            "scope": entry.get("scope", "calls"),
            **{name: entry.get(name) for name in WORK},
            "full_precision": entry["teacher"]["top1"],
            "float_bytes": entry["teacher"]["weight_bytes"],
            **{name: entry[name]["top1"] for name in ACCURACIES},
            OTHER: 100 * entry["selected"]["other"] / entry["test_images"],
            **{name: (entry.get("export") or {}).get(name) for name in (*EXPORTED, RUNTIME)},
            **_bits(entry),
            **{f"{stage}_seconds": value for stage, value in entry.get("seconds", {}).items()},
        }
        for entry in metrics
    ]
    frame = pandas.DataFrame(rows).astype({RUNTIME: float})  # None where it is not known
    groups = frame.groupby(KEYS, sort=False)
    seconds = [name for name in frame.columns if name.endswith("_seconds")]
    table = groups.size().rename("seeds").to_frame()
    table["full_precision"] = groups["full_precision"].first()
    for name in ACCURACIES:
        table[f"{name}_mean"] = groups[name].mean()
        table[f"{name}_std"] = groups[name].std()
    table[f"{OTHER}_mean"], table[f"{OTHER}_std"] = groups[OTHER].mean(), groups[OTHER].std()
    gaps = _image_gaps(metrics, ceilings or {})
    if gaps is not None:
        table[f"{GAP}_mean"] = gaps.mean()
        table[f"{GAP}_std"] = gaps.std()
    for name in ("published", "images", "weight_bytes", "float_bytes"):
        table[name] = groups[name].first().astype(frame[name].dtype)
    for name in EXPORTED:
        # None where there is no export; the worst of the seeds.
        table[name] = groups[name].min().astype(float)
    table[f"{RUNTIME}_mean"] = groups[RUNTIME].mean()
    table[f"{RUNTIME}_std"] = groups[RUNTIME].std()
    for average, least, most in BITS.values():
        table[average] = groups[average].mean()
        table[least] = groups[least].min()
        table[most] = groups[most].max()
    for name in ("scope", *WORK):
        table[name] = groups[name].first()
    table["remark"] = groups["remark"].agg(lambda own: "; ".join(filter(None, own.unique())))
    for name in seconds:
        table[name] = groups[name].mean()
    return table.reset_index()


def _bits(entry: Mapping[str, Any]) -> dict[str, float]:
    """Bits of a run's weights and activations; those in its name where its record has no others."""
    widths = entry.get("widths") or {}
    named = zip(BITS.items(), parse_bits(entry["bits"]), strict=True)
    return {
        column: value
        for (kind, columns), bits in named
        for column, value in zip(columns, widths.get(kind) or [bits] * 3, strict=True)
    }


def _remark(entry: dict[str, Any]) -> str:
    """The run's remark, and where its file computes something else than the student."""
    where = (entry.get("export") or {}).get("first_difference")
    found = [entry["remark"]]
    if where:
        found.append(
            f"{entry['bits']} {entry['method']}, seed {entry['seed']}: in ONNX Runtime other codes "
            f"begin at {where['name']} ({where['share']:.2g} % of them)"
        )
    return "; ".join(filter(None, found))


def _image_gaps(metrics: Sequence[dict[str, Any]], ceilings: Mapping[str, str]) -> Any:
    """The ceiling's last top-1 minus the own one by model, width and method, of the seeds of both.

    None where there are none.
    """
    runs = {
        tuple(entry[key] for key in (*KEYS, "seed")): entry["last"]["top1"] for entry in metrics
    }
    rows = []
    for (model, bits, method, seed), last in runs.items():
        ceiling = runs.get((model, bits, ceilings.get(method), seed))
        if ceiling is not None:
            rows.append((model, bits, method, ceiling - last))
    if not rows:
        return None
    return pandas.DataFrame(rows, columns=[*KEYS, GAP]).groupby(KEYS)[GAP]


def ablation_table(metrics: Sequence[dict[str, Any]], full: str) -> pandas.DataFrame:
    """The same rows with each method's difference to ``full``, of the last epoch and the selected.

    The difference is taken seed by seed, so that what the seeds share cancels; mean and standard
    deviation over the seeds that both have.
    """
    frame = pandas.DataFrame(
        {**{key: entry[key] for key in (*KEYS, "seed")}, **_top1(entry)} for entry in metrics
    )
    keys = ["model", "bits", "seed"]
    reference = frame[frame["method"] == full].drop(columns="method")
    paired = frame.merge(reference, "left", on=keys, suffixes=("", "_full"))
    for name in ("last", "selected"):
        paired[f"{name}_{DIFFERENCE}"] = paired[name] - paired[f"{name}_full"]
    differences = [f"{name}_{DIFFERENCE}" for name in ("last", "selected")]
    groups = paired.groupby(KEYS, sort=False)
    table = accuracy_table(metrics).set_index(KEYS)
    for name in differences:
        table[f"{name}_mean"] = groups[name].mean()
        table[f"{name}_std"] = groups[name].std()
    table["compared_with"] = full
    return table.reset_index()


def _top1(entry: dict[str, Any]) -> dict[str, float]:
    return {name: entry[name]["top1"] for name in ("last", "selected")}


def readable(table: pandas.DataFrame) -> pandas.DataFrame:
    """The same table for people: mean ± std in one cell, sizes in kB, seconds rounded."""
    shown = table[[*KEYS, "seeds"]].copy()
    shown["full precision"] = [_number(value) for value in table["full_precision"]]
    for column in table.columns:
        name = column.removesuffix("_mean")
        if name not in (column, RUNTIME):
            sign = "+" if name.endswith((DIFFERENCE, GAP)) else ""
            shown[name.replace("_", " ")] = _means(table, name, sign)
    for kind in _mixed(table):
        columns = (table[column] for column in BITS[kind])
        shown[f"bits of {kind}"] = [_range(*row) for row in zip(*columns, strict=True)]
    if table["published"].notna().any():
        shown["published"] = [_number(value) for value in table["published"]]
    shown["images"] = table["images"]
    label, sizes = _sizes(table)
    shown[label] = sizes
    shown["float kB"] = (table["float_bytes"] / 1000).map("{:.1f}".format)
    if table["onnx_bytes"].notna().any():
        shown["onnx kB"] = (table["onnx_bytes"] / 1000).map("{:.1f}".format).replace("nan", "")
        # On real images where there are any.
        agreement = table["test_agreement"].fillna(table["agreement"])
        shown["onnx agrees"] = [_number(value) for value in agreement]
        if table[f"{RUNTIME}_mean"].notna().any():
            shown["onnx top-1"] = _means(table, RUNTIME)
        other = table["openvino_test_agreement"].fillna(table["openvino_agreement"])
        if other.notna().any():
            shown["openvino agrees"] = [_number(value) for value in other]
    if table["multiply_adds_share"].notna().any():
        shares = table["multiply_adds_share"].astype(float)
        shown["codes"] = [
            scope if math.isnan(share) else f"{scope}, {100 * share:.0f} %"
            for scope, share in zip(table["scope"], shares, strict=True)
        ]
    for name in table.columns:
        if name.endswith("_seconds"):
            label = name.removesuffix("_seconds") + " s"
            shown[label] = table[name].map("{:.0f}".format).replace("nan", "")
    return shown


def _mixed(table: pandas.DataFrame) -> list[str]:
    """``weights`` and ``activations`` where a row has other bits than those in its name."""
    named = [parse_bits(bits) for bits in table["bits"]]
    return [
        kind
        for place, (kind, columns) in enumerate(BITS.items())
        if any((table[column] != [bits[place] for bits in named]).any() for column in columns)
    ]


def _range(average: float, least: float, most: float) -> str:
    return f"{least:g}" if least == most else f"{average:.2f} ({least:g} to {most:g})"


def _sizes(table: pandas.DataFrame) -> tuple[str, list[str]]:
    """The column of the students' sizes: of their packed files, or ``~`` and what they would be."""
    if table["packed_bytes"].isna().all():
        return "kB", [f"{size / 1000:.1f}" for size in table["weight_bytes"]]
    pairs = zip(table["packed_bytes"], table["weight_bytes"], strict=True)
    return "packed kB", [
        f"~{counted / 1000:.1f}" if math.isnan(size) else f"{size / 1000:.1f}"
        for size, counted in pairs
    ]


def remarks(table: pandas.DataFrame) -> list[str]:
    """What to know of the numbers: a line for each remark on a model's runs."""
    rows = table[["model", "remark"]].drop_duplicates().to_dict("records")
    return [f"{row['model']}: {row['remark']}" for row in rows if row["remark"]]


def _number(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def _means(table: pandas.DataFrame, name: str, sign: str = "") -> list[str]:
    pairs = zip(table[f"{name}_mean"], table[f"{name}_std"], strict=True)
    return [_mean_std(*pair, sign) for pair in pairs]


def _mean_std(mean: float, std: float, sign: str) -> str:
    if math.isnan(mean):
        return ""
    shown = f"{mean:{sign}.2f}"
    return shown if math.isnan(std) else f"{shown} ± {std:.2f}"
