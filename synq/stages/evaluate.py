"""Accuracy of a run's students on the real test images, or their agreement with the network."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synq.config.evaluation import Evaluation
from synq.config.images import TestSet
from synq.data.datasets import Images
from synq.errors import DataError
from synq.io.artifacts import read_json, write_json
from synq.io.shards import ImageSource, ShardSet, split
from synq.io.students import Students
from synq.models.teacher import Teacher, read_teacher
from synq.quantization.convert import input_bits, layers_of, weight_quantizers
from synq.quantization.dataflow import work_of
from synq.quantization.quantizers import Recipe
from synq.quantization.student import check_teacher, recipe_of, student_of
from synq.reporting.accuracy import compared, confused, confusion, per_class, top1
from synq.reporting.changes import HELD_OUT, TESTED, UNLABELLED, Changes
from synq.runtime.process import prepare, versions
from synq.stages.evaluate_teacher import predictions
from synq.stages.real_images import answered, test_images

# Bytes of the students that see the images at once: whoever has more of them, decodes them again.
TOGETHER = 1 << 29


# A held-out loss of the last epoch above the smallest one by this share of it is remarked. Less is
# how epochs differ by themselves: 0.239 and 0.213 where a schedule had settled, 0.638 and 0.289
# where none had (docs/experiments.md, learning rates).
HELD_OUT_TOLERANCE = 0.25
# Under it the answers are the network's, and how much nearer they were says nothing.
HELD_OUT_FLOOR = 0.01


# What is to be remarked about what the students are measured on.
REMARKS = {
    UNLABELLED: "no labels: the percentages are agreement with the teacher on real images",
    HELD_OUT: "no test set: the percentages are agreement with the teacher on synthetic images",
}


def evaluate_run(
    *,
    teacher: Path,
    teacher_metrics: Path,
    snapshots: Path,
    shards: Sequence[Path],
    shard_folder: Path,
    test: TestSet,
    settings: Evaluation,
    output: Path,
    device: str,
    threads: int,
) -> None:
    """Write the accuracy of every kept student of a run.

    Without labels it is the agreement with the teacher, and without a test set that on the images
    of ``shards`` that the fine-tuning held out.
    """
    network = read_teacher(teacher, prepare(device, threads))
    reference = read_json(teacher_metrics, "teacher metrics")
    students = Students(snapshots)
    record = students.record
    check_teacher(record, network, snapshots)
    if test.dataset == "none":
        shard_set = ShardSet([shard_folder / path for path in shards], network.sha256)
        images = held_out_images(network, shard_set, record["finetune"]["holdout"], settings)
        measured_on = HELD_OUT
    else:
        tests = test_images(network, test)
        _check_same(tests, reference, teacher_metrics)
        images, measured_on = labelled(network, tests, settings)
    recipe = recipe_of(record, snapshots)
    student = student_of(network, recipe)
    student.to(next(network.model.parameters()).device)
    accuracies: dict[int, float] = {}
    changes: dict[int, Changes] = {}
    classes: dict[int, dict[str, list[int]]] = {}
    mistakes: dict[str, dict[str, int]] = {}
    before: torch.Tensor | None = None
    for epochs in _groups(students.epochs, student):
        models = [_loaded(student, students.student(epoch)) for epoch in epochs]
        # The network beside the first of them, as what is lost is counted image by image.
        beside = [network.model] if before is None else []
        labels, found = predictions([*beside, *models], network, images, settings)
        if before is None:
            before, found = found[0], found[1:]
        for epoch, own in zip(epochs, found, strict=True):
            counts = confusion(labels, own, network.classes)
            accuracies[epoch], classes[epoch] = top1(counts), per_class(counts)
            changes[epoch] = compared(labels, before, own)
            if epoch == record["selected"]:
                mistakes = confused(counts)
    best = max(accuracies, key=lambda epoch: (accuracies[epoch], -epoch))

    def of(epoch: int) -> dict[str, Any]:
        held_out = record["history"][epoch]["held_out"]
        changed = changes[epoch]._asdict()
        return {"epoch": epoch, "top1": accuracies[epoch], "held_out": held_out, **changed}

    metrics: dict[str, Any] = {
        **{
            key: record[key]
            for key in ("model", "bits", "method", "seed", "images", "image_set", "shards")
        },
        "teacher_sha256": network.sha256,
        "students_checksum": students.checksum,
        "teacher": {key: reference[key] for key in ("top1", "weight_bytes")},
        "remark": "; ".join(_remarks(record, measured_on, reference, accuracies)),
        "calibrated": of(0),
        "last": of(record["last"]),
        "selected": of(record["selected"]),
        "best_on_test": of(best),
        "epochs": [
            {**entry, "top1": accuracies.get(entry["epoch"])} for entry in record["history"]
        ],
        "per_class": {
            "images": classes[0]["images"],
            # Without labels it is the teacher's own answers that are counted.
            "teacher": (reference.get("per_class") or {}).get("right"),
            "calibrated": classes[0]["right"],
            "selected": classes[record["selected"]]["right"],
        },
        "confusion": mistakes,
        "weight_bytes": record["weight_bytes"],
        "widths": record.get("widths"),
        "scope": recipe.scope,
        **work_on_an_image(network, student, recipe),
        "published": test.published,
        "test_images": len(images),
        "measured_on": measured_on,
        "settings": {key: record[key] for key in ("calibration", "finetune")},
        "versions": versions(),
    }
    write_json(output, "metrics", metrics)
    shown = {key: metrics[key]["top1"] for key in ("calibrated", "last", "selected")}
    print(", ".join(f"{key} {value:.2f} %" for key, value in shown.items()))
    if metrics["remark"]:
        print(f"remark: {metrics['remark']}")


def _check_same(tests: Images, reference: Mapping[str, Any], path: Path) -> None:
    """DataError where the network was measured on other test images than these."""
    if reference.get("test_digest", tests.digest) != tests.digest:
        raise DataError(
            f"{path} was measured on other test images ({reference['test_images']}) than there are "
            f"now ({len(tests)}); delete that file, and the network and its students are measured "
            "anew"
        )


def work_on_an_image(network: Teacher, student: nn.Module, recipe: Recipe) -> dict[str, Any]:
    """What an image costs, and how much of it reads codes."""
    bits = {name: own.weight_quantizer.bits for name, own in weight_quantizers(student).items()}
    work = work_of(network.model, network.image_shape, recipe, bits, input_bits(student))
    return {
        "float_layers": [name for name in layers_of(student) if name not in bits],
        "layers": len(work.layers),
        "layers_reading_codes": work.reading,
        "multiply_adds": sum(products for _, products, *_ in work.layers),
        "multiply_adds_share": work.share,
        "bit_operations": work.bit_operations,
        "activation_bytes": work.activation_bytes,
        "peak_activation_bytes": work.peak_bytes,
    }


def _remarks(
    record: Mapping[str, Any],
    measured_on: str,
    reference: Mapping[str, Any],
    accuracies: Mapping[int, float],
) -> Iterator[str]:
    if measured_on in REMARKS:
        yield REMARKS[measured_on]
    if reference["warning"]:
        yield reference["warning"]
    yield from diverged(record)
    if record["last"] > 0 and record["selected"] == 0:
        yield (
            f"{record['bits']} {record['method']}: fine-tuning never lowered the held-out loss, "
            "so the calibrated student was selected; lower finetune.learning_rate"
        )
    else:
        yield from disagreement(record, accuracies)


def diverged(record: Mapping[str, Any]) -> Iterator[str]:
    """A remark where a training was begun anew because its loss was not finite."""
    restarts = int(record["history"][0].get("restarts", 0))
    if restarts:
        yield (
            f"{record['bits']} {record['method']}, seed {record['seed']}: the training diverged at "
            f"finetune.learning_rate {record['finetune']['learning_rate']:g} and began anew at a "
            f"{'hundredth' if restarts > 1 else 'tenth'} of it; lower it"
        )


def disagreement(record: Mapping[str, Any], accuracies: Mapping[int, float]) -> Iterator[str]:
    """A remark where the held-out loss rose until the last epoch, by over ``HELD_OUT_TOLERANCE``.

    One of the two is then wrong about the student, and the numbers of both say which was shipped.
    None where it ended under ``HELD_OUT_FLOOR``.
    """
    losses = {entry["epoch"]: entry["held_out"] for entry in record["history"]}
    last, selected = record["last"], record["selected"]
    smallest = min(losses, key=lambda epoch: losses[epoch])
    # Nothing is above nan, which is the loss where nothing was held out.
    if losses[last] > max((1 + HELD_OUT_TOLERANCE) * losses[smallest], HELD_OUT_FLOOR):
        shipped = f"the last one is shipped ({accuracies[last]:.2f} %)"
        if selected != last:
            shipped = (
                f"epoch {selected} is shipped ({accuracies[selected]:.2f} %, "
                f"the last one {accuracies[last]:.2f} %)"
            )
        yield (
            f"{record['bits']} {record['method']}, seed {record['seed']}: the held-out loss was "
            f"{losses[smallest]:.3g} after epoch {smallest} and {losses[last]:.3g} after the last, "
            f"{last}; {shipped}"
        )


def held_out_images(
    network: Teacher, shards: ImageSource, holdout: float, settings: Evaluation
) -> Images:
    """The held-out synthetic images, in [0, 1] for the most part, labelled as the teacher does."""
    _, held = split(shards.labels, holdout)
    if not len(held):
        raise DataError(
            "there is no test set and no held-out image to measure agreement on; "
            "raise finetune.holdout or name a test set"
        )
    mean, std = (torch.tensor(values)[:, None, None] for values in (network.mean, network.std))
    images = Images(held, lambda rows: shards.images(held[rows]) * std + mean, network.classes)
    return answered(network, images, settings.batch_size)


def labelled(network: Teacher, tests: Images, settings: Evaluation) -> tuple[Images, str]:
    """Test images, with the network's answers where they have no labels, and what they are."""
    if tests.labelled:
        return tests, TESTED
    return answered(network, tests, settings.batch_size), UNLABELLED


def _groups(epochs: Sequence[int], student: nn.Module) -> list[Sequence[int]]:
    """The epochs in groups whose students together take ``TOGETHER`` bytes at most."""
    size = max(1, TOGETHER // sum(t.nbytes for t in student.state_dict().values()))
    return [epochs[start : start + size] for start in range(0, len(epochs), size)]


def _loaded(student: nn.Module, state: Mapping[str, torch.Tensor]) -> nn.Module:
    own = copy.deepcopy(student)
    own.load_state_dict(state)
    return own
