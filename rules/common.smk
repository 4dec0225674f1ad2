# What all rules share: the checked config, the settings of each job as flags, and the names of
# results. The only place with functions.
import json
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

from synq.config import layout
from synq.config.cost import Limits, finetune_threads, told
from synq.config.fields import flags
from synq.config.gpus import visible_gpus
from synq.config.jobs import listed
from synq.config.needs import misfits, needs
from synq.config.places import lacking
from synq.config.plan import shard_classes
from synq.config.reading import plan
from synq.config.provenance import FILES, ZOOS, Provenance
from synq.config.reasons import reasons
from synq.config.repeated import repeated
from synq.errors import UserError


def misread():
    """A line where the command line or a file was not read as it was meant."""
    given = [word.partition("=")[0] for word in sys.argv]
    if sum(word in ("--configfile", "--configfiles") for word in given) > 1:
        return (
            "--configfile is given twice, and the first one is not read; write all "
            "files after one: --configfile a.yaml b.yaml"
        )
    if {"kind", "checksum"} <= config.keys():
        return (
            "a result is read as a config file; write -- before the targets: "
            "--configfile a.yaml -- TARGET"
        )
    return repeated([CONFIG, *workflow.overwrite_configfiles])


if misread():
    print(f"config error: {misread()}", file=sys.stderr)
    sys.exit(2)
try:
    PLAN = plan(config)
except UserError as error:
    print(f"config error: {error}", file=sys.stderr)
    sys.exit(2)

# The report's caption sees the config alone, and what is `like` another does not say there what it is.
config["told"] = {
    "methods": [word.replace("@", " at ") for word in PLAN.grid.methods],
    "real": [
        name
        for name in PLAN.grid.names
        if PLAN.image_sets[PLAN.methods[name].images].stage == "real"
    ],
    "untested": [
        name
        for name in PLAN.grid.models
        if PLAN.settings("test", name).dataset == "none"
    ],
}

# A profile or --resources says how many GPUs there are to give, or else this machine does. Of a
# resource without a limit every job would have one at a time.
if "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", visible_gpus())
GPUS = workflow.global_resources["gpu"].value

RESULTS = PLAN.results
# The commands may set back the times of files in there, and of no others.
os.environ.update(SYNQ_RESULTS=os.path.abspath(RESULTS))
# On a cluster's node: a command whose first attempt ended by a fault of the user's ends at once.
# (The workflow does not know the number of the attempt yet.)
if "--attempt" in sys.argv:
    os.environ.update(SYNQ_ATTEMPT=sys.argv[sys.argv.index("--attempt") + 1])
LOGS = f"{RESULTS}/{layout.LOGS}"
BENCHMARKS = f"{RESULTS}/{layout.BENCHMARKS}"
ENVIRONMENT = "../envs/synq.yaml"
RUNS = list(PLAN.runs())
RUN = layout.RUN
SHARD = f"{layout.IMAGES}/{{shard}}"


def at(template, **names):
    """A path of the results, with the wildcards that are not named."""
    path = f"{RESULTS}/{template}"
    return path.format(**names) if names else path


def tables(name, *suffixes):
    return [at(layout.TABLE, table=name, suffix=suffix) for suffix in suffixes]


PAGE = at(layout.PAGE)
(ACCURACY,) = tables("accuracy", "md")
TABLES = ["accuracy", *(["ablation"] if PLAN.ablation.methods else [])]
EXPORTED = [
    run for run in RUNS if PLAN.settings("export", run["model"]).format != "none"
]
EXPORTS = [at(layout.EXPORT, **run) for run in EXPORTED]
INSPECTIONS = [at(layout.INSPECTION, model=model) for model in PLAN.grid.models]
RUN_METRICS = [at(layout.METRICS, **run) for run in RUNS]

# What the parameters of the rules are, and the minutes that they may take.
PROVENANCE = Provenance(PLAN)
LIMITS = Limits(PLAN, gpu=GPUS > 0)
code = PROVENANCE.code


def flags_of(stage, *names):
    """All flags of a job, as a function of its wildcards, of which ``names`` choose them.

    Snakemake keeps no record of parameters that depend on the threads. So it shall be with these,
    for ``record_of`` has what counts.
    """
    return lambda wildcards, threads: PROVENANCE.flags(
        stage, *(wildcards[name] for name in names)
    )


def record_of(stage, *names):
    """What a job's results depend on, of the same settings: those not at their baseline."""
    return lambda wildcards: PROVENANCE.record(
        stage, *(wildcards[name] for name in names)
    )


def factory(wildcards):
    """Digest of the user's own function that makes the network."""
    return PROVENANCE.factory(wildcards.model)


def made_from(stage):
    """Digest of what a job's inputs are made from, as a function of its wildcards."""
    names = "model", "method", "image_set"
    return lambda wildcards: PROVENANCE.made_from(
        stage, **{name: wildcards[name] for name in names if name in wildcards.keys()}
    )


def made_from_runs(wildcards):
    """The same of all runs."""
    return PROVENANCE.made_from_runs()


def one_of(names):
    """A regular expression for these names; one that matches nothing where there are none."""
    return "|".join(names) or r"[^\s\S]"


def models_from(*sources):
    return one_of(
        name for name, model in PLAN.models.items() if model.source in sources
    )


def image_sets_from(stage):
    return one_of(
        name for name, chosen in PLAN.image_sets.items() if chosen.stage == stage
    )


def shards_of(model, method, seed, **_):
    """The shards that a run trains on."""
    image_set = PLAN.methods[method].images
    return [
        at(layout.SHARD, model=model, image_set=image_set, seed=seed, shard=shard)
        for shard in PLAN.shards(model, image_set)
    ]


def shards(wildcards):
    return shards_of(**wildcards)


def lent_shard(wildcards):
    """The relative's shard that a shard is borrowed from."""
    return at(layout.SHARD, **{**wildcards, "model": PLAN.relatives[wildcards.model]})


def lent_shards_of(model, method, seed, **_):
    """The shards of the model that makes a run's images; the run's own where it makes them."""
    maker = PLAN.maker(model, PLAN.methods[method].images)
    return shards_of(maker, method, seed)


def folder_of_shards(wildcards, input):
    return os.path.dirname(input.shards[0]) if input.shards else "."


def names_of_shards(wildcards, input):
    """Without their folder: a thousand whole paths are longer than a command may be."""
    return [os.path.basename(path) for path in input.shards]


def shards_to_agree_on(wildcards):
    """The shards of a run whose model has no test set; none where it has one."""
    without = PLAN.settings("test", wildcards.model).dataset == "none"
    return shards_of(**wildcards) if without else []


def folder_of_runs(wildcards, input):
    """The folder of all runs, which is named once: a table has hundreds of them."""
    above = [os.pardir] * len(RUN.split("/"))
    return os.path.normpath(os.path.join(os.path.dirname(input.metrics[0]), *above))


def names_of_runs(kind):
    """The paths of an input without the folder of all runs."""
    return lambda wildcards, input: [
        os.path.relpath(path, folder_of_runs(wildcards, input)) for path in input[kind]
    ]


def ablation_metrics(wildcards):
    """The runs of the ablation table: its methods and the one they are compared with."""
    methods = {PLAN.ablation.full, *PLAN.ablation.methods}
    return [path for run, path in zip(RUNS, RUN_METRICS) if run["method"] in methods]


def processes(wildcards):
    """The processes of a fine-tuning, with a GPU each."""
    settings = PLAN.settings("finetune", wildcards.model, method=wildcards.method)
    return settings.processes


def threads_of_student(wildcards):
    return finetune_threads(PLAN.models[wildcards.model]) * processes(wildcards)


def gpus_of_processes(wildcards):
    return processes(wildcards) if GPUS else 0


def device(wildcards, resources):
    """A job that has asked for no GPU computes on the CPU, whatever it could see."""
    return "auto" if resources.gpu else "cpu"


def program(wildcards):
    """What python runs: the program, or torchrun that starts it several times."""
    count = processes(wildcards)
    if count == 1:
        return ["-m", "synq"]
    torchrun = ["torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    return ["-m", *torchrun, "-m", "synq"]


# Lines about files of the user's that are not there, of the jobs that are to run; and the files of
# arrays that these read, of which the name says nothing.
LACKING, ARRAYS = {}, {}


def reads(section, output):
    """An input function that gives nothing, and notes what is lacking for an output to be made.

    Not at once: which jobs there are is known after all of them were asked for their inputs, and a
    dry run may look at what has no data yet. ``onstart`` ends the workflow.
    """

    def note(wildcards):
        names = {
            key: wildcards[key]
            for key in ("model", "image_set")
            if key in wildcards.keys()
        }
        if not os.path.exists(at(output, **wildcards)):
            LACKING.update(dict.fromkeys(lacking(PLAN, section, **names)))
            settings = PLAN.images_of(section, **names)
            if settings and settings.dataset == "arrays":
                ARRAYS[section, wildcards.model] = settings
        return []

    return note


def faults_of_data():
    """Those lines; where there is none, one for each file of arrays that is none for its network."""
    if LACKING or not ARRAYS:
        return [*LACKING]
    # Here, since torch takes seconds to load.
    from synq.stages.real_images import unreadable

    lines = [
        unreadable(section, settings, model, PLAN.models[model])
        for (section, model), settings in ARRAYS.items()
    ]
    return [line for line in lines if line]


def start(wildcards):
    """The student that a run begins with, if any: of the same method and seed, with more bits."""
    settings = PLAN.settings("finetune", wildcards.model, method=wildcards.method)
    bits = settings.rung(wildcards.bits)
    return at(layout.STUDENT, **{**wildcards, "bits": bits}) if bits else []


def flag_of_start(wildcards, input, threads):
    """A function of the threads: Snakemake shall keep no record of it, the input says it."""
    return ["--from-student", input.start] if input.start else []


def image_set(wildcards):
    return PLAN.methods[wildcards.method].images


def classes(wildcards):
    return shard_classes(wildcards.shard)


def verdict_lines(wildcards, threads):
    """A sentence of each verdict that there is, for the captions of a report.

    A function of the threads, since Snakemake keeps no record of those: they are no reason to rerun.
    """
    try:
        with open(at(layout.VERDICT), encoding="utf-8") as file:
            return [verdict["line"] for verdict in json.load(file)["verdicts"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_jobs():
    """Write what is about to be made, and of which files of settings; ``synq status`` reads it.

    Of files that are there and are to be made ``again`` it could not know that.

    A disk that cannot be written stops the jobs themselves, in words.
    """
    path = at(layout.JOBS)
    temporary = f"{path}.tmp.{os.getpid()}"
    content = {
        "configfiles": [
            os.path.relpath(name) for name in workflow.overwrite_configfiles
        ],
        "jobs": listed(PLAN),
        "again": [
            os.path.relpath(output, RESULTS)
            for job in workflow.dag.needrun_jobs()
            for output in job.output
            if os.path.exists(output)
        ],
    }
    try:
        os.makedirs(RESULTS, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(content, file, indent=1)
        os.replace(temporary, path)
    except OSError as error:
        print(f"{path} cannot be written: {error.strerror}", file=sys.stderr)


def why_it_failed():
    """What the user can mend of the jobs of this run, as lines.

    The run began when ``write_jobs`` wrote its file: the clock of the disk is that of the logs. On a
    disk that cannot be written or read there are none.
    """
    try:
        return reasons(LOGS, os.path.getmtime(at(layout.JOBS)))
    except OSError:
        return []


def say_what_has_no_record():
    """Say of how many results Snakemake does not know the settings, so that a change remakes none.

    Those of a folder that was moved, copied, or is named by another path, or whose .snakemake is
    gone. A dry run says so itself.
    """
    if workflow.dryrun or not workflow.is_main_process or workflow.dag is None:
        return
    reason, needed = workflow.dag.reason, workflow.dag.needrun
    jobs = [job for job in workflow.dag.jobs if job.output and reason(job).no_metadata]
    count = sum(not needed(job) for job in jobs)
    if count:
        print(
            f"remark: of {count} jobs the results are there and no record of their settings (was "
            f"{RESULTS} moved, or .snakemake deleted?), so that a changed setting makes none of them "
            "again; --forceall makes all, --forceall --touch takes them for those of these settings",
            file=sys.stderr,
        )


def table_is_current():
    """Whether the table was written after the metrics of every run of the grid."""
    made_from = [*RUN_METRICS, *EXPORTS]
    if not all(os.path.isfile(path) for path in [ACCURACY, *made_from]):
        return False
    return all(
        os.path.getmtime(path) <= os.path.getmtime(ACCURACY) for path in made_from
    )


def megabytes(base):
    """Memory of an attempt: a job that was killed for it gets more the next time."""
    return lambda wildcards, attempt: base * attempt


def minutes(base):
    """Time limit of an attempt: minutes, or a function of the wildcards that gives them."""
    return lambda wildcards, attempt: attempt * (
        base(wildcards) if callable(base) else base
    )


def within(limit, *names):
    """The same of one of the ``LIMITS``, which takes these wildcards."""
    return minutes(lambda wildcards: limit(*(wildcards[name] for name in names)))


for line in misfits(PLAN, PROVENANCE):
    print(f"config error: {line}", file=sys.stderr)
    sys.exit(2)

SHARDS = sorted({shard for run in RUNS for shard in shards_of(**run)})
LENT = {shard for run in RUNS for shard in lent_shards_of(**run)}
INTERMEDIATE = [
    *(
        at(template, model=model)
        for template in (layout.TEACHER, layout.INSPECTION, layout.TEACHER_METRICS)
        for model in PLAN.grid.models
    ),
    *sorted({*SHARDS, *LENT}),
    *(
        at(template, **run)
        for template in (layout.STUDENT, layout.SNAPSHOTS)
        for run in RUNS
    ),
    *(
        at(template, **run)
        for template in (layout.ONNX, layout.PACKED)
        for run in EXPORTED
    ),
]


# What `rule all` makes. A file of rules adds what is its own.
# The files between the stages too: a job that a changed setting started and that was killed has taken
# its old output with it, and nothing but this list misses it.
TARGETS = [
    *(path for name in TABLES for path in tables(name, "md", "csv", "tex", "html")),
    *tables("verdict", "json", "md"),
    PAGE,
    at(layout.FIGURES),
    *RUN_METRICS,
    *EXPORTS,
    *INTERMEDIATE,
]


wildcard_constraints:
    model=one_of(PLAN.models),
    method=one_of(PLAN.methods),
    image_set=one_of(PLAN.image_sets),
    bits=r"w[2-8]a[2-8]",
    seed=r"0|[1-9]\d*",
    shard=r"class-\d\d\d\d+|classes-\d\d\d\d+-\d\d\d\d+",
