# What all rules share: the checked config, the settings of each job as flags, and the names of
# results. The only place with functions.
import os
import sys

# The workflow runs from a clone, installed or not, and from any interpreter that has Snakemake.
# Not workflow.basedir: through workflow/Snakefile that is another folder.
CLONE = os.path.dirname(str(workflow.current_basedir))
sys.path.insert(0, CLONE)
os.environ.update(
    PATH=os.pathsep.join([os.path.dirname(sys.executable), os.environ.get("PATH", "")]),
    PYTHONPATH=os.pathsep.join(filter(None, [CLONE, os.environ.get("PYTHONPATH")])),
    PYTHONUNBUFFERED="1",
)

from synq.config import flags
from synq.errors import UserError
from synq.plan import plan, shard_classes
from synq.source import digest

try:
    PLAN = plan(config)
except UserError as error:
    print(f"config error: {error}", file=sys.stderr)
    sys.exit(2)

RESULTS = PLAN.results
LOGS = f"{RESULTS}/logs"
BENCHMARKS = f"{RESULTS}/benchmarks"
ENVIRONMENT = "../envs/synq.yaml"
RUNS = list(PLAN.runs())
RUN = "{model}/{bits}/{method}/seed{seed}"
SHARD = "{model}/{image_set}/seed{seed}/{shard}"
ACCURACY = f"{RESULTS}/tables/accuracy.md"
RUN_METRICS = [f"{RESULTS}/runs/{RUN.format(**run)}/metrics.json" for run in RUNS]

# Command-line flags of each job, by stage and wildcards: what a job's params look up, so that a
# changed setting remakes what it changes and nothing else.
FLAGS = {
    "model": {name: flags(model) for name, model in PLAN.models.items()},
    **{
        stage: {model: flags(PLAN.settings(stage, model)) for model in PLAN.models}
        for stage in ("train", "evaluation", "test")
    },
    "synthesis": {
        model: {
            name: flags(PLAN.settings("synthesis", model, image_set=name))
            for name in PLAN.image_sets
        }
        for model in PLAN.models
    },
    "finetune": {
        model: {
            method: [
                *flags(PLAN.settings("calibration", model, method=method)),
                *flags(PLAN.settings("finetune", model, method=method)),
            ]
            for method in PLAN.methods
        }
        for model in PLAN.models
    },
}


def one_of(names):
    """A regular expression for these names; one that matches nothing where there are none."""
    return "|".join(names) or r"[^\s\S]"


def models_from(source):
    return one_of(name for name, model in PLAN.models.items() if model.source == source)


def shards_of(model, method, seed, **_):
    """The shards that a run trains on."""
    image_set = PLAN.methods[method].images
    return [
        f"{RESULTS}/synthetic/{model}/{image_set}/seed{seed}/{shard}.h5"
        for shard in PLAN.shards(model, image_set)
    ]


def shards(wildcards):
    return shards_of(**wildcards)


def image_set(wildcards):
    return PLAN.methods[wildcards.method].images


def classes(wildcards):
    return shard_classes(wildcards.shard)


def table_is_current():
    """Whether the table was written after the metrics of every run of the grid."""
    if not all(os.path.isfile(path) for path in [ACCURACY, *RUN_METRICS]):
        return False
    return all(
        os.path.getmtime(path) <= os.path.getmtime(ACCURACY) for path in RUN_METRICS
    )


def megabytes(base):
    """Memory of an attempt: a job that was killed for it gets more the next time."""
    return lambda wildcards, attempt: base * attempt


def minutes(base):
    """Time limit of an attempt."""
    return lambda wildcards, attempt: base * attempt


SHARDS = sorted({shard for run in RUNS for shard in shards_of(**run)})
INTERMEDIATE = [
    *expand(
        f"{RESULTS}/models/{{model}}/{{file}}",
        model=PLAN.grid.models,
        file=["teacher.safetensors", "metrics.json"],
    ),
    *SHARDS,
    *expand(
        f"{RESULTS}/runs/{{run}}/{{file}}",
        run=[RUN.format(**run) for run in RUNS],
        file=["student.safetensors", "snapshots.h5"],
    ),
]


wildcard_constraints:
    model=one_of(PLAN.models),
    method=one_of(PLAN.methods),
    image_set=one_of(PLAN.image_sets),
    bits=r"w[2-8]a[2-8]",
    seed=r"0|[1-9]\d*",
    shard=r"class-\d\d\d\d+|classes-\d\d\d\d+-\d\d\d\d+",
