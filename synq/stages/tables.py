"""The tables of all runs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from synq.artifacts import atomic, read_json
from synq.tables import accuracy_table, readable


def write_tables(*, metrics: Sequence[Path], benchmarks: Path, output: Path) -> None:
    """Write ``output`` with the suffixes .csv and .md; ``benchmarks`` holds the stages' seconds."""
    entries = [read_json(path, "metrics") for path in metrics]
    entries = [{**entry, "seconds": _seconds(benchmarks, entry)} for entry in entries]
    table = accuracy_table(entries)
    with atomic(output.with_suffix(".csv")) as temporary:
        table.to_csv(temporary, index=False, float_format="%.4f")
    with atomic(output.with_suffix(".md")) as temporary:
        text = readable(table).to_markdown(index=False, disable_numparse=True)
        temporary.write_text(text + "\n", "utf-8")
    print(text)
    print(f"\nThe table is in {output.with_suffix('.md')} and {output.with_suffix('.csv')}")


def _seconds(benchmarks: Path, entry: dict[str, Any]) -> dict[str, float]:
    """Seconds of each stage of a run, of all its shards together; nan where one is not known."""
    seed = f"seed{entry['seed']}"
    run = Path(entry["model"], entry["bits"], entry["method"], f"{seed}.tsv")
    images = Path(entry["model"], entry["image_set"], seed)
    files = {
        "synthesis": [Path("synthesize", images, f"{shard}.tsv") for shard in entry["shards"]],
        "finetune": [Path("finetune", run)],
        "evaluate": [Path("evaluate", run)],
    }
    return {
        stage: sum(_read_seconds(benchmarks / path) for path in paths)
        for stage, paths in files.items()
    }


def _read_seconds(path: Path) -> float:
    if not path.is_file():
        return float("nan")
    return float(pandas.read_csv(path, sep="\t")["s"].iloc[0])
