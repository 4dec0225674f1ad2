"""What a quantization lost, in words: for who has to accept it and did not run it."""

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from synq.config import layout
from synq.config.calibration import FLOAT
from synq.config.grid import parse_bits
from synq.reporting.changes import (
    HELD_OUT,
    UNLABELLED,
    Changes,
    changed,
    measured_on,
    standard_error,
)
from synq.reporting.doubts import doubts, mean_changes, several, untrained

KEYS = ("model", "bits", "method")

JUDGEMENTS = {
    "within": "Accepted",
    "over": "Not accepted",
    "unlabelled": "Not accepted, for want of labels",
    "unmeasured": "Not accepted, for want of a test set",
    "none": "Not judged",
}


def verdicts(
    runs: Sequence[Mapping[str, Any]],
    inspections: Mapping[str, Mapping[str, Any]],
    *,
    points: float | None,
    real: Collection[str] = (),
) -> list[dict[str, Any]]:
    """A verdict for each model, width and method, in the order of the runs; ready for JSON.

    ``runs`` are the contents of metrics.json with that of export.json as ``export``, which may be
    None. ``inspections`` are those of inspection.json by model. ``points`` is the top-1 that may be
    lost, None where nothing is judged. ``real`` names the image sets that are made of real images.
    What is judged is the selected student, which is the one that is shipped.
    """
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault(tuple(run[key] for key in KEYS), []).append(run)
    return [
        _verdict(own, inspections.get(own[0]["model"]), points, real, untrained(own, groups))
        for own in groups.values()
    ]


def _verdict(
    runs: Sequence[Mapping[str, Any]],
    inspection: Mapping[str, Any] | None,
    points: float | None,
    real: Collection[str],
    beside: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    first = runs[0]
    full, count = first["teacher"]["top1"], first["test_images"]
    reached = [run["selected"]["top1"] for run in runs]
    mean = statistics.fmean(reached)
    # Agreement with the original is counted down from 100.
    lost = (100.0 if full is None else full) - mean
    deviation = statistics.stdev(reached) if len(runs) > 1 else None
    changes = mean_changes(runs, "selected")
    error = standard_error(changes.lost, changes.gained, count)
    of_mean = math.hypot(error, (deviation or 0) / math.sqrt(len(runs)))
    judgement = _judgement(lost, points, measured_on(first))
    exports = [run.get("export") or {} for run in runs]
    packed = next((export["packed_bytes"] for export in exports if export), None)
    size, whole = packed or first["weight_bytes"], first["teacher"]["weight_bytes"]
    found: dict[str, Any] = {
        **{key: first[key] for key in KEYS},
        "seeds": [run["seed"] for run in runs],
        "full_precision": full,
        "top1": mean,
        "lost": lost,
        "deviation": deviation,
        "test_images": count,
        "measured_on": measured_on(first),
        "standard_error": error,
        "changes": changes._asdict(),
        "points": points,
        "judgement": judgement,
        "bytes": size,
        "float_bytes": whole,
        "times_smaller": whole / size,
        "quantized": (
            None
            if inspection is None
            else shares(
                inspection, first.get("multiply_adds_share"), first.get("float_layers") or ()
            )
        ),
        "ship": _ship(first, exports[0]),
    }
    told = {
        **found,
        "doubts": doubts(runs, found, beside, of_mean),
        "words": {
            "lost": _lost(found),
            "judged": _judged(found),
            "changed": _changed(found),
            "quantized": _quantized(found, first),
            "size": _size(found, packed is not None),
            "ship": _shipped(found, whole=first.get("scope") == "everything"),
            "unseen": _unseen(first, count, first["image_set"] in real),
        },
    }
    return {**told, "line": _summary(told)}


def _judgement(lost: float, points: float | None, measured: str) -> str:
    if points is None:
        return "none"
    if measured == HELD_OUT:
        return "unmeasured"
    # Both are multiples of an image's share; the rest of a sum is not a loss. Whatever the labels
    # are, no more can be lost than there are other answers.
    if lost <= points + 1e-9:
        return "within"
    return "unlabelled" if measured == UNLABELLED else "over"


def shares(
    inspection: Mapping[str, Any], inputs: float | None, kept: Collection[str] = ()
) -> dict[str, Any]:
    """How much of a network is quantized, of what its inspection found: layers and multiply-adds.

    ``multiply_adds`` is the share of them in layers whose weights are quantized, and ``inputs`` of
    those that read a quantized input too, which depends on the run's scope; None where none is
    known. ``kept`` are the layers that the run keeps in full precision.
    """
    layers = [part for part in inspection["parts"] if part["role"] == "layer" and part["calls"]]
    own = [part for part in layers if not part["reason"] and part["name"] not in kept]
    calls = [f"{call['module']} ({call['function']})" for call in inspection["functional_layers"]]
    total, done = (sum(part["multiply_adds"] or 0 for part in some) for some in (layers, own))
    return {
        "layers": len(own),
        "of": len(layers) + len(calls),
        # What a function computes was not counted.
        "multiply_adds": done / total if total and not calls else None,
        "inputs": inputs,
        "left": [part["name"] for part in layers if part not in own] + calls,
    }


def _ship(run: Mapping[str, Any], export: Mapping[str, Any]) -> list[str]:
    """The files of this run to ship, below the results."""
    templates = [layout.PACKED, layout.ONNX] if export else [layout.STUDENT]
    return [template.format(**run) for template in templates]


def _lost(found: Mapping[str, Any]) -> str:
    count = found["test_images"]
    spread = "" if found["deviation"] is None else f" ± {found['deviation']:.2f}"
    seeds = several(len(found["seeds"]), "seed")
    if found["full_precision"] is None:
        return (
            f"names another class than the original on {found['lost']:.2f}{spread} % of "
            f"{count} {found['measured_on']} ({seeds}); its accuracy was not measured"
        )
    verb = "gained" if found["lost"] < 0 else "lost"
    return (
        f"{verb} {abs(found['lost']):.2f}{spread} points: top-1 is {found['top1']:.2f} % (mean of "
        f"{seeds}) and was {found['full_precision']:.2f} %; {count} test images know "
        f"the difference to ± {found['standard_error']:.2f} (standard error)"
    )


def _changed(found: Mapping[str, Any]) -> str | None:
    """How many answers are others, which top-1 alone does not say; None without labels."""
    if found["full_precision"] is None:
        return None
    mean = " (means over the seeds)" if len(found["seeds"]) > 1 else ""
    return f"names {changed(Changes(**found['changes']), found['test_images'])}{mean}"


def _judged(found: Mapping[str, Any]) -> str:
    tolerance = "" if found["points"] is None else several(found["points"], "point")
    bound = (
        " (where all other answers were right before)" if found["full_precision"] is None else ""
    )
    return {
        "within": f"within the {tolerance} that `accept` allows{bound}",
        "over": f"more than the {tolerance} that `accept` allows",
        "unlabelled": f"`accept` allows {tolerance}, and no label says which of the other answers "
        "were right before",
        "unmeasured": f"`accept` allows {tolerance}, and no test set says what was lost",
        "none": "not judged: the config has no `accept: {points: ...}`",
    }[found["judgement"]]


def _quantized(found: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    weights, activations = parse_bits(found["bits"])
    calibration = run["settings"]["calibration"]
    ends = calibration.get("ends_bits", 0)
    if any(calibration.get(key) for key in ("keep_bits", "budget", "average_bits")):
        spreads = run.get("widths") or {}
        text = (
            f"weights of {_widths(spreads.get('weights'), weights)}, "
            f"activations of {_widths(spreads.get('activations'), activations)}"
        )
    else:
        widths = f"{weights} bits" + (f" (the first and the last layer {ends})" if ends else "")
        text = f"weights of {widths}, activations of {activations}"
    part = found["quantized"]
    if part is None:
        return f"{text}; how much of the network that is was not looked at"
    layers = f"{part['layers']} of {part['of']} layers"
    if part["multiply_adds"] is None:
        return f"{text}: {layers}; their share of the multiply-adds is not known"
    text = f"{text}: {layers}, {_percent(part['multiply_adds'])} of the layers' multiply-adds"
    if part["inputs"] is not None:
        text += f"; {_read(part['inputs'], run.get('scope', 'calls'))}"
    return text


def _widths(spread: Sequence[float] | None, bits: int) -> str:
    """Those of tensors with bits of their own: their smallest, largest and mean; else the run's."""
    mean, least, most = spread or [bits] * 3
    if least == most:
        return f"{least:g} bits"
    largest = "32 (full precision)" if most >= FLOAT else f"{most:g}"
    return f"{least:g} to {largest} bits ({mean:.2f} on average)"


def _read(share: float, scope: str) -> str:
    """Which share of the layers' multiply-adds reads codes, and what reads none."""
    text = f"inputs are quantized for {_percent(share)} of them"
    if share == 1:
        return text
    wider = "; `inputs` would quantize them" if scope == "calls" else ""
    return f"{text}, and the others read floats (`calibration.scope: {scope}`{wider})"


def _percent(share: float) -> str:
    """Never 100 % of what is not all of it."""
    return f"{math.floor(1000 * share) / 10:g} %"


def _size(found: Mapping[str, Any], written: bool) -> str:
    size, whole = (found[key] / 1000 for key in ("bytes", "float_bytes"))
    where = "packed" if written else "packed, as counted; no such file was written"
    return f"{found['times_smaller']:.1f} times smaller: {size:.1f} kB {where}, of {whole:.1f} kB"


def _shipped(found: Mapping[str, Any], *, whole: bool) -> str:
    """``whole``: every tensor has codes, as far as the network's layers are quantized."""
    files = [f"`{path}`" for path in found["ship"]]
    text = files[0] + (f", in ONNX Runtime {files[1]}" if files[1:] else "")
    quantized = found["quantized"] or {"inputs": None}
    if files[1:] and whole and quantized["inputs"] == 1 and not quantized["left"]:
        text += ", which computes its layers in integers"
    if len(found["seeds"]) > 1:
        text += f" (seed {found['seeds'][0]}, the first: to take the best would be to test on it)"
    return text


def _unseen(run: Mapping[str, Any], count: int, real: bool) -> str:
    made = several(run["images"], "real image" if real else "synthetic image")
    training = run["settings"]["finetune"]["epochs"] > 0
    used = f"{'calibrated and trained' if training else 'calibrated'} on {made}"
    used += " that the user gave" if real else ", and no real one"
    measured = measured_on(run)
    if measured == HELD_OUT:
        return f"{used}; nothing was measured on real images"
    return f"{used}; the {count} {measured} were used to measure alone, and chose nothing"


def title(verdict: Mapping[str, Any]) -> str:
    """The name of what is judged."""
    return "{model} at {bits} by {method}".format(**verdict)


def _summary(verdict: Mapping[str, Any]) -> str:
    words = verdict["words"]
    judged = JUDGEMENTS[verdict["judgement"]].lower()
    return f"{title(verdict)}: {judged}; {words['lost']}; {words['size']}"


def markdown(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """The whole of it, a heading each."""
    parts = ["# Verdict"]
    for verdict in verdicts:
        words = verdict["words"]
        parts.append(f"## {title(verdict)}: {JUDGEMENTS[verdict['judgement']].lower()}")
        told = [
            f"- It {words['lost']}.",
            *([f"- It {words['changed']}."] if words["changed"] else []),
            f"- {_begun(words['judged'])}.",
            f"- Quantized: {words['quantized']}.",
            f"- {_begun(words['size'])}.",
            f"- {files_of(verdict)}: {words['ship']}.",
            f"- {_begun(words['unseen'])}.",
            *(f"- Doubt: {doubt}." for doubt in verdict["doubts"]),
        ]
        parts.append("\n".join(told))
    return "\n\n".join(parts) + "\n"


def files_of(verdict: Mapping[str, Any]) -> str:
    """What its files are called: to ship is what was not refused."""
    return "To ship" if verdict["judgement"] in ("within", "none") else "Its files"


def _begun(text: str) -> str:
    return text[:1].upper() + text[1:]


def accepted(verdicts: Sequence[Mapping[str, Any]]) -> bool:
    """Whether all that is judged is within what may be lost."""
    return all(verdict["judgement"] in ("within", "none") for verdict in verdicts)
