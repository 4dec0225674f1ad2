"""Every job of a config with the files that tell how far it is; what ``synq status`` looks for."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from synq.config import layout
from synq.config.model import MODEL_SETTINGS
from synq.config.plan import Plan


@dataclass(frozen=True)
class Job:
    """A job of the workflow; paths are below the results.

    It is done where ``output`` is there. ``log`` is what it prints, and ``seconds`` is the table in
    which Snakemake writes how long it took.
    """

    rule: str
    name: str
    output: str
    log: str
    seconds: str


def jobs(plan: Plan) -> Iterator[Job]:
    """The jobs of the grid, in the order in which the stages follow one another."""
    for model in (*plan.grid.models, *plan.lenders()):
        zoo = "sha256" not in MODEL_SETTINGS[plan.models[model].source]
        yield _job("fetch_zoo" if zoo else "fetch", layout.TEACHER, layout.MODEL, model=model)
        yield _job("inspect", layout.INSPECTION, layout.MODEL, model=model)
        if model in plan.grid.models:
            yield _job("evaluate_teacher", layout.TEACHER_METRICS, layout.MODEL, model=model)
    own = {(run["model"], plan.methods[run["method"]].images): None for run in plan.runs()}
    made = {(plan.maker(*pair), pair[1]): None for pair in own}
    for model, image_set in made | own:
        rule = plan.image_rule(model, image_set)
        for seed in plan.grid.seeds:
            for shard in plan.shards(model, image_set):
                names = {"model": model, "image_set": image_set, "seed": seed, "shard": shard}
                place = f"{layout.IMAGES}/{{shard}}"
                yield _job(rule, layout.SHARD, place, seconds=layout.SHARD_SECONDS, **names)
    for run in plan.rungs():
        yield _job("finetune", layout.STUDENT, layout.RUN, **run)
    for run in plan.runs():
        yield _job("finetune", layout.STUDENT, layout.RUN, **run)
        yield _job("evaluate", layout.METRICS, layout.RUN, **run)
        if plan.settings("export", run["model"]).format != "none":
            yield _job("export", layout.EXPORT, layout.RUN, **run)
    tables = ["accuracy", *(["ablation"] if plan.ablation.methods else [])]
    for table in tables:
        yield _job(table, layout.TABLE.format(table=table, suffix="md"), "")
    yield _job("page", layout.PAGE, "")


def listed(plan: Plan) -> list[dict[str, str]]:
    """The same, ready for JSON."""
    return [asdict(job) for job in jobs(plan)]


def _job(rule: str, output: str, place: str, *, seconds: str = "", **names: Any) -> Job:
    """A job of one rule; ``place`` is the part of its log's path that its wildcards make."""
    name = place.format(**names)
    own = f"{rule}/{name}" if name else rule
    seconds = seconds.format(**names) if seconds else f"{own}.tsv"
    return Job(
        rule,
        name,
        output.format(**names),
        f"{layout.LOGS}/{own}.log",
        f"{layout.BENCHMARKS}/{seconds}",
    )
