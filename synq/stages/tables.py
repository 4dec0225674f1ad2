"""The tables of all runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
from tabulate import tabulate

from synq.config import layout
from synq.config.grid import Accept
from synq.errors import ConfigError
from synq.io.artifacts import atomic, read_json, write_json
from synq.io.benchmarks import read_seconds
from synq.reporting.page import render_table
from synq.reporting.tables import KEYS, ablation_table, accuracy_table, readable, remarks
from synq.reporting.verdict import markdown, verdicts


def write_accuracy(
    *,
    metrics: Sequence[Path],
    exports: Sequence[Path],
    run_folder: Path,
    benchmarks: Path,
    output: Path,
    accept: Accept,
    inspections: Sequence[Path] = (),
    ceilings: Sequence[str] = (),
    real: Sequence[str] = (),
) -> None:
    """Write the accuracy of all runs, and the verdict on them as verdict.json and .md beside it.

    ``benchmarks`` holds the stages' seconds. ``ceilings`` are words METHOD=CEILING. ``real`` names
    the image sets that are made of real images.
    """
    for word in ceilings:
        if not all(word.partition("=")):
            raise ConfigError(f"ceilings has {word!r}; write METHOD=CEILING")
    pairs = {word.partition("=")[0]: word.partition("=")[2] for word in ceilings}
    runs = [read_json(run_folder / path, "metrics") for path in metrics]
    exported = [read_json(run_folder / path, "export") for path in exports]
    found = {_run(entry): entry for entry in exported}
    entries = [
        {**run, "seconds": _seconds(benchmarks, run), "export": found.get(_run(run))}
        for run in runs
    ]
    looked = [read_json(path, "inspection") for path in inspections]
    judged = verdicts(
        entries,
        {found["model"]: found for found in looked},
        points=accept.points if accept.points >= 0 else None,
        real=real,
    )
    measured = {layout.METRICS.format(**run): run["students_checksum"] for run in runs}
    content = {"verdicts": judged, "measured": measured, "real": list(real)}
    write_json(output.with_name("verdict.json"), "verdict", content)
    with atomic(output.with_name("verdict.md")) as temporary:
        temporary.write_text(markdown(judged), "utf-8")
    _write(accuracy_table(entries, pairs), output, [verdict["line"] for verdict in judged])


def write_ablation(*, metrics: Sequence[Path], run_folder: Path, full: str, output: Path) -> None:
    """Write the accuracy of all runs and each method's difference to ``full``."""
    entries = [read_json(run_folder / path, "metrics") for path in metrics]
    if full not in {entry["method"] for entry in entries}:
        raise ConfigError(f"full is {full!r}, but none of the metrics is of that method")
    _write(ablation_table(entries, full), output)


def _write(table: pandas.DataFrame, output: Path, closing: Sequence[str] = ()) -> None:
    """The numbers as CSV, the readable form as Markdown, LaTeX, and HTML that can be sorted."""
    shown = readable(table)
    text = shown.to_markdown(index=False, disable_numparse=True)
    text = "\n\n".join([text, *remarks(table), *closing])
    latex = tabulate(
        shown.to_numpy().tolist(),
        list(shown.columns),
        tablefmt="latex_booktabs",
        disable_numparse=True,
    )
    with atomic(output.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f")
    with atomic(output.with_suffix(".tex")) as temporary:
        temporary.write_text(latex.replace("±", r"$\pm$") + "\n", "utf-8")
    html = render_table(
        f"Table: {output.stem}",
        list(shown.columns),
        shown.to_numpy().tolist(),
        [*remarks(table), *closing],
    )
    with atomic(output.with_suffix(".html")) as temporary:
        temporary.write_text(html, "utf-8")
    with atomic(output.with_suffix(".md")) as temporary:
        temporary.write_text(text + "\n", "utf-8")
    print(text)
    print(f"\nThe table is in {output.with_suffix('.md')}, .csv, .tex and .html")


def _run(entry: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(entry[key] for key in (*KEYS, "seed"))


def _seconds(benchmarks: Path, entry: dict[str, Any]) -> dict[str, float]:
    """Seconds of each stage of a run, of all its shards together; nan where one is not known."""
    files = {
        "synthesis": [
            layout.SHARD_SECONDS.format(**entry, shard=shard) for shard in entry["shards"]
        ],
        "finetune": [layout.FINETUNE_SECONDS.format(**entry)],
        "evaluate": [layout.EVALUATE_SECONDS.format(**entry)],
    }
    return {
        stage: sum(read_seconds(benchmarks / path) for path in paths)
        for stage, paths in files.items()
    }
