"""Accuracy of the teacher, and of a run's students, on the real test images."""

from pathlib import Path
from typing import Any

import torch

from synq.artifacts import FORMAT, read_json, write_json
from synq.config import Evaluation, TestSet, parse_bits
from synq.datasets import Images, read
from synq.evaluation import top1
from synq.networks import Teacher, check_teacher, read_teacher
from synq.quantization import packed_bytes
from synq.runtime import prepare, progress, versions
from synq.snapshots import Snapshots


def evaluate_teacher(
    *, teacher: Path, test: TestSet, settings: Evaluation, output: Path, device: str, threads: int
) -> None:
    """Write the full-precision accuracy and size."""
    network = read_teacher(teacher, prepare(device, threads))
    images = _test_images(network, test)
    accuracy = _top1(network.model, network, images, settings)
    write_json(
        output,
        {
            "kind": "teacher metrics",
            "format": FORMAT,
            "model": network.name,
            "teacher_sha256": network.sha256,
            "top1": accuracy,
            "test_images": len(images),
            "weight_bytes": packed_bytes(network.model, 32),
            "versions": versions(),
        },
    )
    print(f"{network.name}: top-1 {accuracy:.2f} % of {len(images)} test images")


def evaluate_run(
    *,
    teacher: Path,
    teacher_metrics: Path,
    snapshots: Path,
    test: TestSet,
    settings: Evaluation,
    output: Path,
    device: str,
    threads: int,
) -> None:
    """Write the accuracy of every kept student of a run."""
    network = read_teacher(teacher, prepare(device, threads))
    reference = read_json(teacher_metrics, "teacher metrics")
    images = _test_images(network, test)
    with Snapshots(snapshots) as students:
        record = students.record
        check_teacher(record, network, snapshots)
        student = network.student(parse_bits(record["bits"]))
        student.to(next(network.model.parameters()).device)
        accuracies: dict[int, float] = {}
        for epoch in progress(students.epochs, "students"):
            student.load_state_dict(students.student(epoch))
            accuracies[epoch] = _top1(student, network, images, settings)
    best = max(accuracies, key=lambda epoch: (accuracies[epoch], -epoch))

    def of(epoch: int) -> dict[str, float]:
        return {"epoch": epoch, "top1": accuracies[epoch]}

    metrics: dict[str, Any] = {
        "kind": "metrics",
        "format": FORMAT,
        **{
            key: record[key]
            for key in ("model", "bits", "method", "seed", "images", "image_set", "shards")
        },
        "teacher_sha256": network.sha256,
        "snapshots_checksum": students.checksum,
        "teacher": {key: reference[key] for key in ("top1", "weight_bytes")},
        "calibrated": of(0),
        "last": of(record["last"]),
        "selected": of(record["selected"]),
        "best_on_test": of(best),
        "epochs": [
            {**entry, "top1": accuracies.get(entry["epoch"])} for entry in record["history"]
        ],
        "weight_bytes": record["weight_bytes"],
        "published": test.published,
        "test_images": len(images),
        "settings": {key: record[key] for key in ("calibration", "finetune")},
        "versions": versions(),
    }
    write_json(output, metrics)
    shown = {key: metrics[key]["top1"] for key in ("teacher", "calibrated", "last", "selected")}
    print("top-1: " + ", ".join(f"{key} {value:.2f} %" for key, value in shown.items()))


def _test_images(network: Teacher, test: TestSet) -> Images:
    return read(
        test.dataset,
        test.path,
        "test",
        classes=network.classes,
        image_shape=network.image_shape,
        name=network.name,
    )


def _top1(
    network: torch.nn.Module, teacher: Teacher, images: Images, settings: Evaluation
) -> float:
    return top1(network, images.batches(settings.evaluation_batch_size, teacher.mean, teacher.std))
