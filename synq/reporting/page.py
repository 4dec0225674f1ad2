"""All results as one page: a file of its own that asks for nothing from outside."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

import synq
from synq.config.targets import EXACT
from synq.reporting.changes import HELD_OUT, TESTED, UNLABELLED, Changes, changed, measured_on
from synq.reporting.verdict import JUDGEMENTS, files_of

FOLDER = Path(__file__).parent
COLUMNS = (
    *("model", "bits", "method", "seed", "verdict", "full precision", "calibrated"),
    *("shipped", "lost", "kB", "times smaller", "fine-tuning s"),
)


@dataclass(frozen=True)
class Run:
    """What is there of a run. ``metrics`` is None where it was not measured, or cannot be read."""

    names: Mapping[str, str]
    metrics: Mapping[str, Any] | None
    faults: Sequence[str] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    command: str = ""

    @property
    def anchor(self) -> str:
        return "run-{model}-{bits}-{method}-seed{seed}".format(**self.names)

    @property
    def title(self) -> str:
        return "{model} {bits} {method} seed {seed}".format(**self.names)


@dataclass(frozen=True)
class Shown:
    """A figure as it stands in a page."""

    title: str
    caption: str
    svg: str
    wide: bool = False


def render(
    results: str,
    verdicts: Sequence[Mapping[str, Any]],
    runs: Sequence[Run],
    figures: Sequence[Shown],
    of_runs: Mapping[str, Sequence[Shown]],
    missing: Sequence[str],
) -> str:
    """The page as HTML. ``of_runs`` are figures by the anchor of their run.

    ``missing`` says, a line each, what of the results is not there; the page begins with it.
    """
    judged = {(v["model"], v["bits"], v["method"]): v for v in verdicts}
    measured = [run for run in runs if run.metrics is not None]
    known = {measured_on(run.metrics) for run in measured if run.metrics}
    told = [
        {
            **verdict,
            "said": JUDGEMENTS[verdict["judgement"]],
            "headline": _headline(verdict),
            "files": files_of(verdict),
        }
        for verdict in verdicts
    ]
    views = [_view(run, of_runs.get(run.anchor, ())) for run in runs]
    models = ", ".join(dict.fromkeys(run.names["model"] for run in runs))
    data = {run.anchor: _compared(run) for run in runs}
    return (
        _environment()
        .get_template("page.html")
        .render(
            heading=f"Quantization of {models}" if models else "Quantization: no run yet",
            css=_text("page.css"),
            sort=_text("sort.js"),
            js=_text("page.js"),
            # In a script no text ends it, whatever a name holds.
            data=json.dumps(data).replace("<", "\\u003c"),
            version=synq.__version__,
            results=results,
            missing=missing,
            verdicts=told,
            columns=COLUMNS,
            measure=_measure(known),
            rows=[_row(run, judged) for run in measured],
            figures=figures,
            runs=views,
            parts=_parts(bool(measured), bool(figures), len(runs)),
        )
    )


def render_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], lines: Sequence[str]
) -> str:
    """A table as an HTML file of its own, which its headings sort; ``lines`` stand below it."""
    shown = [[str(cell) for cell in row] for row in rows]
    template = _environment().get_template("table.html")
    return template.render(
        title=title,
        columns=columns,
        rows=shown,
        lines=lines,
        css=_text("page.css"),
        sort=_text("sort.js"),
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters["code"] = _code
    environment.filters["sorted_by"] = _sorted_by
    return environment


def _text(name: str) -> str:
    return (FOLDER / name).read_text("utf-8")


def _sorted_by(cell: str) -> str:
    """What a cell is sorted by: the mean of ``99.1 ± 0.2``, 1.5 of ``~1.5``, or its text."""
    found = re.fullmatch(r"~?([+-]?[0-9.]+)( ± [0-9.]+)?", cell)
    return found[1].lstrip("+") if found else cell


def _parts(measured: bool, figures: bool, runs: int) -> list[tuple[str, str]]:
    parts = [("verdict", "Verdict")]
    parts += [("table", "All runs")] if measured else []
    parts += [("figures", "Figures")] if figures else []
    parts += [("compare", "Compare")] if runs > 1 else []
    return parts + ([("details", "Each run")] if runs else [])


def _measure(known: Collection[str]) -> str:
    texts = {
        TESTED: "top-1 on the test images",
        UNLABELLED: "agreement with the original, on real images without labels",
        HELD_OUT: "agreement with the original, no test set",
    }
    return "In percent: " + " or ".join(text for which, text in texts.items() if which in known)


def _headline(verdict: Mapping[str, Any]) -> str:
    if verdict["full_precision"] is None:
        return f"Differs on {verdict['lost']:.2f} %"
    verb = "Gains" if verdict["lost"] < 0 else "Loses"
    return f"{verb} {abs(verdict['lost']):.2f} points"


def _row(run: Run, judged: Mapping[tuple[str, str, str], Mapping[str, Any]]) -> dict[str, Any]:
    metrics = run.metrics or {}
    names, full = run.names, metrics["teacher"]["top1"]
    reached = metrics["selected"]["top1"]
    packed = (metrics.get("export") or {}).get("packed_bytes")
    size = packed or metrics["weight_bytes"]
    verdict = judged.get((names["model"], names["bits"], names["method"]))
    words = [names["model"], names["bits"], names["method"]]
    numbers = [
        (full, ".2f"),
        (metrics["calibrated"]["top1"], ".2f"),
        (reached, ".2f"),
        ((100.0 if full is None else full) - reached, ".2f"),
        (size / 1000, ".1f" if packed else "~.1f"),
        (metrics["teacher"]["weight_bytes"] / size, ".1f"),
        (metrics["seconds"].get("finetune"), ".0f"),
    ]
    cells = [
        *({"text": word, "sort": word, "number": False} for word in words),
        {"text": names["seed"], "sort": names["seed"], "number": True},
        {"text": _judged(verdict), "sort": verdict["judgement"] if verdict else "", "number": 0},
        *(_cell(*number) for number in numbers),
    ]
    return {"anchor": run.anchor, "title": run.title, "cells": cells}


def _judged(verdict: Mapping[str, Any] | None) -> str:
    """The verdict in the row of a run, which is not on that run alone where there are others."""
    if verdict is None:
        return ""
    said, seeds = JUDGEMENTS[verdict["judgement"]], len(verdict["seeds"])
    of_all = seeds > 1 and verdict["judgement"] != "none"
    return f"{said} (mean of {seeds} seeds)" if of_all else said


def _cell(value: float | None, form: str) -> dict[str, Any]:
    unknown = value is None or math.isnan(value)
    # What was counted and not weighed has the mark of the tables.
    mark = "~" if form.startswith("~") else ""
    shown = "" if unknown else mark + format(value, form.removeprefix("~"))
    return {"text": shown, "sort": "" if unknown else repr(value), "number": True}


def _view(run: Run, figures: Sequence[Shown]) -> dict[str, Any]:
    metrics = run.metrics
    settings = {} if metrics is None else _flat(metrics["settings"])
    sections = {"Settings": settings, "Provenance": dict(run.provenance)}
    return {
        "anchor": run.anchor,
        "title": run.title,
        "summary": _summary(run),
        "faults": run.faults,
        "facts": facts_of(run),
        "figures": figures,
        "command": run.command,
        "sections": {title: pairs for title, pairs in sections.items() if pairs},
    }


def _summary(run: Run) -> str:
    if run.metrics is None:
        return "not measured"
    text = f"{run.metrics['selected']['top1']:.2f} %"
    return f"{text}, not complete" if run.faults else text


def facts_of(run: Run) -> dict[str, str]:
    """The measured numbers of a run as people read them, by what they are; none if unmeasured."""
    metrics = run.metrics
    if metrics is None:
        return {}
    measured = metrics["teacher"]["top1"] is not None
    count = metrics["test_images"]
    facts = {
        "measured on": f"{count} {measured_on(metrics)}",
        "full precision": f"{metrics['teacher']['top1']:.2f} %" if measured else "not measured",
        "calibrated, not trained": f"{metrics['calibrated']['top1']:.2f} %",
        "shipped": "{top1:.2f} %, epoch {epoch}".format(**metrics["selected"]),
        "last epoch": "{top1:.2f} %, epoch {epoch}".format(**metrics["last"]),
        **(_by_labels(metrics) if measured else {}),
        "images": f"{metrics['images']} of the set {metrics['image_set']}",
        "bytes in full precision": f"{metrics['teacher']['weight_bytes']:,}",
    }
    export = metrics.get("export")
    if export:
        facts["bytes packed"] = f"{export['packed_bytes']:,}"
        facts["bytes in ONNX"] = f"{export['onnx_bytes']:,}"
        for runtime, before in {"ONNX Runtime": "", "OpenVINO": "openvino_"}.items():
            facts |= _runtime(runtime, export, before)
        if metrics.get("scope") == "everything" and metrics["bits"].startswith("w8"):
            facts["on x86 without VNNI"] = f"give ONNX Runtime's session {EXACT}: 1, as here"
    facts |= _work(metrics)
    facts |= {
        f"seconds of {stage}": f"{value:.0f}"
        for stage, value in metrics["seconds"].items()
        if not math.isnan(value)
    }
    if metrics["remark"]:
        facts["remark"] = metrics["remark"]
    return facts


def _by_labels(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What a test set alone can tell."""
    changes = Changes(*(metrics["selected"][key] for key in Changes._fields))
    return {
        "best epoch by the test labels": "{top1:.2f} %, epoch {epoch}".format(
            **metrics["best_on_test"]
        ),
        "shipped, it names": changed(changes, metrics["test_images"]),
    }


def _runtime(name: str, export: Mapping[str, Any], before: str) -> dict[str, str]:
    """What the export measured in a runtime; nothing of one that it did not run."""
    agreement, on_test = (export.get(f"{before}{key}agreement") for key in ("", "test_"))
    if agreement is None:
        return {}
    text = f"on {agreement:.2f} % of {export['images']} images of the training"
    if on_test is not None:
        text += f", and {on_test:.2f} % of {export['test_images']} test images"
    top1 = export.get(f"{before or 'runtime_'}top1")
    right = {} if top1 is None else {f"top-1 of these in {name}": f"{top1:.2f} %"}
    return {f"{name} and torch agree": text, **right}


def _work(metrics: Mapping[str, Any]) -> dict[str, str]:
    """What an image costs, where it is known."""
    share = metrics.get("multiply_adds_share")
    read = {} if share is None else {"multiply-adds on codes": f"{100 * share:.1f} %"}
    counts = {
        "bit operations of an image": metrics.get("bit_operations"),
        "bytes of all activations": metrics.get("activation_bytes"),
        "bytes of activations at once": metrics.get("peak_activation_bytes"),
    }
    return read | {name: f"{count:,}" for name, count in counts.items() if count is not None}


def _compared(run: Run) -> dict[str, str]:
    settings = {} if run.metrics is None else _flat(run.metrics["settings"])
    return {"state": "; ".join(run.faults) or "complete", **facts_of(run), **settings}


def _flat(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    return {
        f"{section}.{name}": str(value)
        for section, values in settings.items()
        for name, value in values.items()
    }


def _code(text: str) -> Markup:
    """A text with its parts in backquotes as code."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))
