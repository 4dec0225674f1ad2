"""Quantize, calibrate and fine-tune one student; resumes where it was interrupted."""

import dataclasses
import json
import math
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synq.artifacts import read_checkpoint, write_checkpoint
from synq.calibration import calibrate
from synq.config import Calibration, Finetune, parse_bits
from synq.errors import ArtifactError, ConfigError
from synq.generator import GeneratorTraining
from synq.networks import read_teacher, student_tensors
from synq.quantization import packed_bytes
from synq.runtime import generator_for, prepare, versions
from synq.shards import ShardSet
from synq.snapshots import write_snapshots
from synq.training import Images, Progress, finetune


def finetune_student(
    *,
    teacher: Path,
    shards: Sequence[Path],
    bits: str,
    method: str,
    image_set: str,
    seed: int,
    calibration: Calibration,
    settings: Finetune,
    output: Path,
    snapshots: Path,
    device: str,
    threads: int,
) -> None:
    """Write the selected student to ``output`` and all that evaluation needs to ``snapshots``.

    The work folder ``<output>.work`` holds the state after each epoch until both are written.
    """
    target = prepare(device, threads)
    widths = parse_bits(bits)
    network = read_teacher(teacher, target)
    record = {
        "teacher_sha256": network.sha256,
        "model": network.name,
        "bits": bits,
        "method": method,
        "image_set": image_set,
        "shards": [path.stem for path in shards],
        "seed": seed,
        "calibration": dataclasses.asdict(calibration),
        "finetune": dataclasses.asdict(settings),
        "versions": versions(),
    }
    work = output.with_name(f"{output.stem}.work")
    with ShardSet(shards, network.sha256, network.classes, network.image_shape) as shard_set:
        record["images"] = len(shard_set)
        record["shard_checksums"] = shard_set.checksums
        images = Images(shard_set, settings, target)
        if not len(images.train):
            raise ConfigError("finetune.holdout leaves no image to train on; lower it")
        student = network.student(widths).to(target)
        state = _resume(work, record, student)
        if state is None:
            generator = generator_for(seed, "calibration")
            if calibration.range_source == "generator":
                training = GeneratorTraining(
                    network.model, network.classes, network.image_shape, calibration, generator
                )
                batches = training.batches()
            else:
                batches = _range_batches(images, calibration, settings, generator)
            calibrate(student, batches, calibration)
            state = Progress()
        for reached in finetune(network.model, student, images, settings, seed, state):
            state = reached
            _save(work, record, student, state)
            _report(state, settings)
    _finish(work, record, state, settings, packed_bytes(student, widths[0]), output, snapshots)


def _range_batches(
    images: Images, calibration: Calibration, settings: Finetune, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Images as the training will see them, for the activation ranges."""
    order = images.train[torch.randperm(len(images.train), generator=generator)]
    for indices in order[: calibration.range_images].split(settings.batch_size):
        yield images.batch(indices, generator)[0]


def _epoch_file(work: Path, epoch: int) -> Path:
    return work / f"epoch-{epoch:04d}.safetensors"


def _save(work: Path, record: dict[str, Any], student: nn.Module, state: Progress) -> None:
    """The student first, the state that names it last: a kill between the two loses an epoch."""
    path = _epoch_file(work, state.epoch)
    write_checkpoint(path, "student", student_tensors(student), {**record, "epoch": state.epoch})
    progress = {"epoch": state.epoch, "history": state.history, "run": _run_key(record)}
    write_checkpoint(work / "state.safetensors", "state", state.momentum, progress)


def _run_key(record: dict[str, Any]) -> str:
    """What must be equal for a saved state to be continued."""
    return json.dumps(record, sort_keys=True)


def _resume(work: Path, record: dict[str, Any], student: nn.Module) -> Progress | None:
    """Load the newest whole epoch of the same run, if there is one."""
    try:
        momentum, saved = read_checkpoint(work / "state.safetensors", "state")
        for epoch in range(saved["epoch"] + 1):
            tensors, _ = read_checkpoint(_epoch_file(work, epoch), "student")
        reason = "" if saved["run"] == _run_key(record) else "the saved state has other settings"
    except (ArtifactError, KeyError) as error:
        reason = str(error)
    if reason:
        if work.exists():
            print(f"starting from the beginning: {reason}", flush=True)
            shutil.rmtree(work)
        return None
    student.load_state_dict(tensors)
    print(f"going on after epoch {saved['epoch']}", flush=True)
    return Progress(saved["epoch"], saved["history"], momentum)


def _report(state: Progress, settings: Finetune) -> None:
    entry = state.history[-1]
    losses = ", ".join(f"{key} {value:.4g}" for key, value in entry.items() if key != "epoch")
    print(f"epoch {state.epoch}/{settings.epochs}: {losses}", flush=True)


def select(history: Sequence[dict[str, float]]) -> int:
    """The epoch with the smallest held-out loss; the last one where nothing was held out."""
    if any(math.isnan(entry["held_out"]) for entry in history):
        return len(history) - 1
    return min(range(len(history)), key=lambda epoch: history[epoch]["held_out"])


def _finish(
    work: Path,
    record: dict[str, Any],
    state: Progress,
    settings: Finetune,
    weight_bytes: int,
    output: Path,
    snapshots: Path,
) -> None:
    """Write the results and remove the work folder."""
    selected, last = select(state.history), state.epoch
    epochs = range(last + 1) if settings.keep == "all" else sorted({0, selected, last})
    summary = {
        **record,
        "selected": selected,
        "last": last,
        "history": state.history,
        "weight_bytes": weight_bytes,
    }
    students = (
        (epoch, read_checkpoint(_epoch_file(work, epoch), "student")[0]) for epoch in epochs
    )
    write_snapshots(snapshots, summary, students)
    tensors, _ = read_checkpoint(_epoch_file(work, selected), "student")
    write_checkpoint(output, "student", tensors, {**summary, "epoch": selected})
    shutil.rmtree(work)
