"""The tables of all runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas
from tabulate import tabulate

from synq.config import layout
from synq.errors import ConfigError
from synq.io.artifacts import atomic, read_json
from synq.reporting.tables import KEYS, ablation_table, accuracy_table, readable, remarks


def write_accuracy(
    *,
    metrics: Sequence[Path],
    exports: Sequence[Path],
    run_folder: Path,
    benchmarks: Path,
    output: Path,
    ceilings: Sequence[str] = (),
) -> None:
    """Write the accuracy of all runs; ``benchmarks`` holds the stages' seconds.

    ``ceilings`` are words METHOD=CEILING.
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
    _write(accuracy_table(entries, pairs), output)


def write_ablation(*, metrics: Sequence[Path], run_folder: Path, full: str, output: Path) -> None:
    """Write the accuracy of all runs and each method's difference to ``full``."""
    entries = [read_json(run_folder / path, "metrics") for path in metrics]
    if full not in {entry["method"] for entry in entries}:
        raise ConfigError(f"full is {full!r}, but none of the metrics is of that method")
    _write(ablation_table(entries, full), output)


def _write(table: pandas.DataFrame, output: Path) -> None:
    """The numbers as CSV, the readable form as Markdown and LaTeX."""
    shown = readable(table)
    markdown = shown.to_markdown(index=False, disable_numparse=True)
    markdown = "\n\n".join([markdown, *remarks(table)])
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
    with atomic(output.with_suffix(".md")) as temporary:
        temporary.write_text(markdown + "\n", "utf-8")
    print(markdown)
    print(f"\nThe table is in {output.with_suffix('.md')}, .csv and .tex")


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
        stage: sum(_read_seconds(benchmarks / path) for path in paths)
        for stage, paths in files.items()
    }


def _read_seconds(path: Path) -> float:
    if not path.is_file():
        return float("nan")
    return float(pandas.read_csv(path, sep="\t")["s"].iloc[0])
