"""Every path of the results, once: what the rules write and the stages look for.

Templates below the folder that ``results`` in the config names, with Snakemake's wildcards.
"""

import re
from collections.abc import Iterator
from pathlib import Path

MODEL = "{model}"
IMAGES = "{model}/{image_set}/seed{seed}"
RUN = "{model}/{bits}/{method}/seed{seed}"

DOWNLOAD = f"models/{MODEL}/download"
TEACHER = f"models/{MODEL}/teacher.safetensors"
INSPECTION = f"models/{MODEL}/inspection.json"
TEACHER_METRICS = f"models/{MODEL}/metrics.json"
# With .json, .csv, .md or .svg behind it.
SENSITIVITY = f"models/{MODEL}/sensitivity/{{bits}}/{{method}}/seed{{seed}}"

SHARD = f"synthetic/{IMAGES}/{{shard}}.h5"

RUNS = "runs"
STUDENT = f"{RUNS}/{RUN}/student.safetensors"
SNAPSHOTS = f"{RUNS}/{RUN}/students.safetensors"
METRICS = f"{RUNS}/{RUN}/metrics.json"
ONNX = f"{RUNS}/{RUN}/student.onnx"
PACKED = f"{RUNS}/{RUN}/student.packed.safetensors"
EXPORT = f"{RUNS}/{RUN}/export.json"

TABLE = "tables/{table}.{suffix}"
VERDICT = "tables/verdict.json"
PAGE = "index.html"
FIGURES = "figures"
# What the workflow is about to make, written when it starts: for those who look on.
JOBS = "jobs.json"

LOGS = "logs"
BENCHMARKS = "benchmarks"
# Below BENCHMARKS: seconds of the jobs that a table shows. A shard has them in one place, whichever
# rule has made it.
SHARD_SECONDS = f"images/{IMAGES}/{{shard}}.tsv"
FINETUNE_SECONDS = f"finetune/{RUN}.tsv"
EVALUATE_SECONDS = f"evaluate/{RUN}.tsv"

# Folders with artifacts that were made from one another.
ARTIFACTS = ("models", "synthetic", RUNS)


def found(results: Path, template: str) -> Iterator[tuple[Path, dict[str, str]]]:
    """Each file of a template that is there, sorted, and the wildcards in its path."""
    for path in sorted(results.glob(re.sub(r"\{\w+\}", "*", template))):
        names = wildcards(template, path.relative_to(results).as_posix())
        if names is not None:
            yield path, names


def wildcards(template: str, path: str) -> dict[str, str] | None:
    """The wildcards of a path below the results; None where it is not of the template."""
    parts = re.split(r"\{(\w+)\}", template)
    pattern = "".join(
        f"(?P<{part}>[^/]+)" if odd % 2 else re.escape(part) for odd, part in enumerate(parts)
    )
    match = re.fullmatch(pattern, path)
    return match.groupdict() if match else None
