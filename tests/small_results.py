"""A small folder of results, made by the stages themselves from networks of random weights."""

from pathlib import Path

import torch
from embedded import embedded_model

from synq.config.calibration import Calibration
from synq.config.evaluation import Evaluation
from synq.config.export import Export
from synq.config.finetune import Finetune
from synq.config.images import TestSet
from synq.config.synthesis import Synthesis
from synq.models.digits import resnet20
from synq.models.teacher import write_teacher
from synq.stages.evaluate import evaluate_run
from synq.stages.evaluate_teacher import evaluate_teacher
from synq.stages.export import export_student
from synq.stages.finetune import finetune_student
from synq.stages.synthesize import synthesize_shard

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


def evaluated(root):
    reference = root / "models/net/metrics.json"
    common = {
        "teacher": root / TEACHER,
        "test": TestSet(dataset="digits"),
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
