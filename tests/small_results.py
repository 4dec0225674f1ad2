"""A small folder of results, made by the stages themselves from networks of random weights."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from embedded import embedded_model

from synq.config.calibration import Calibration
from synq.config.evaluation import Evaluation
from synq.config.export import Export
from synq.config.finetune import Finetune
from synq.config.grid import Accept
from synq.config.images import TestSet
from synq.config.jobs import Job
from synq.config.synthesis import Synthesis
from synq.io.artifacts import read_json, write_json
from synq.models.digits import resnet20
from synq.models.teacher import write_teacher
from synq.stages.evaluate import evaluate_run
from synq.stages.evaluate_teacher import evaluate_teacher
from synq.stages.export import export_student
from synq.stages.finetune import finetune_student
from synq.stages.inspect import inspect
from synq.stages.synthesize import synthesize_shard
from synq.stages.tables import write_accuracy

TEACHER = "models/net/teacher.safetensors"
SHARDS = [f"synthetic/net/hard/seed0/{name}.h5" for name in ("classes-0000-0004", "class-0005")]
RUN = "runs/net/w4a4/synq/seed0"
HERE = {"device": "cpu", "threads": 1}
# Teacher, its metrics, two shards, student, snapshots, metrics, export, packed, ONNX.
FILES = 10


def teacher(path, seed):
    torch.manual_seed(seed)
    state = resnet20().state_dict()
    write_teacher(path, state, embedded_model(), name="net", mean=[0.5], std=[0.3], origin="a test")


def shard(root, path, classes, seed=0):
    synthesize_shard(
        teacher=root / TEACHER,
        output=root / path,
        classes=classes,
        seed=seed,
        settings=Synthesis(images_per_class=1, iterations=1),
        **HERE,
    )


def finetuned(root, **changes):
    finetune_student(
        teacher=root / TEACHER,
        shards=[root / path for path in SHARDS],
        shard_folder=Path(),
        bits="w4a4",
        method="synq",
        image_set="hard",
        seed=0,
        calibration=Calibration(),
        settings=Finetune(epochs=1, holdout=0, cam="off", **changes),
        output=root / RUN / "student.safetensors",
        snapshots=root / RUN / "students.safetensors",
        **HERE,
    )


def evaluated(root, test=None):
    reference = root / "models/net/metrics.json"
    common = {
        "teacher": root / TEACHER,
        "test": test or TestSet(dataset="digits"),
        "settings": Evaluation(),
        **HERE,
    }
    evaluate_teacher(output=reference, **common)
    evaluate_run(
        teacher_metrics=reference,
        snapshots=root / RUN / "students.safetensors",
        shards=[],
        shard_folder=Path(),
        output=root / RUN / "metrics.json",
        **common,
    )


def exported(root, **changes):
    export_student(
        teacher=root / TEACHER,
        student=root / RUN / "student.safetensors",
        shards=[root / path for path in SHARDS],
        shard_folder=Path(),
        settings=Export(**{"least_agreement": 0.0, **changes}),
        test=TestSet(dataset="digits"),
        output=root / RUN / "student.onnx",
        packed=root / RUN / "student.packed.safetensors",
        record=root / RUN / "export.json",
        threads=1,
    )


def everything(root):
    teacher(root / TEACHER, 0)
    shard(root, SHARDS[0], [0, 1, 2, 3, 4])
    shard(root, SHARDS[1], [5])
    finetuned(root)
    evaluated(root)
    exported(root)


def inspected(root):
    inspect(teacher=root / TEACHER, require=[], recipe="", json=root / "models/net/inspection.json")


def tabulated(root, points=-1.0, runs=(RUN,)):
    """The tables and the verdict, of a folder that ``everything`` has made."""
    inspected(root)
    write_accuracy(
        metrics=[Path(run) / "metrics.json" for run in runs],
        exports=[Path(run) / "export.json" for run in runs],
        run_folder=root,
        inspections=[root / "models/net/inspection.json"],
        benchmarks=root / "benchmarks",
        output=root / "tables/accuracy.md",
        accept=Accept(points=points),
    )


def another(root, bits="w4a4", seed=0, top1=50.0):
    """A run that is a copy of the one there is, with another name and another accuracy."""
    run = f"runs/net/{bits}/synq/seed{seed}"
    shutil.copytree(root / RUN, root / run)
    for name in ("metrics", "export"):
        path = root / run / f"{name}.json"
        content = read_json(path, name)
        content |= {"bits": bits, "seed": seed}
        if name == "metrics":
            content["selected"]["top1"] = top1
        write_json(path, name, content)
    return run


def planned(root, *runs):
    """jobs.json of these runs, as the workflow writes it when it starts."""
    jobs = [
        Job("finetune", run[5:], f"{run}/student.safetensors", f"logs/finetune/{run[5:]}.log", "s")
        for run in runs
    ]
    jobs += [
        Job("evaluate", run[5:], f"{run}/metrics.json", f"logs/evaluate/{run[5:]}.log", "s")
        for run in runs
    ]
    content = {"configfiles": ["mine.yaml"], "jobs": [asdict(job) for job in jobs]}
    (root / "jobs.json").write_text(json.dumps(content))
