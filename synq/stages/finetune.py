"""Quantize, calibrate and fine-tune one student; resumes where it was interrupted."""

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from synq.config.calibration import Calibration
from synq.config.finetune import Finetune
from synq.config.fingerprint import factory_digest, stage_digest
from synq.errors import ConfigError
from synq.finetuning.batches import Images
from synq.finetuning.losses import distillation
from synq.finetuning.reconstruction import Fitted, reconstruct
from synq.finetuning.resume import Work, begun
from synq.finetuning.training import RESTART_FACTOR, Progress, finetune, terminations
from synq.io.artifacts import file_sha256, write_checkpoint
from synq.io.shards import ImageSource, ShardSet
from synq.io.students import write_students
from synq.models.scale import rescaled
from synq.models.teacher import Teacher, read_teacher
from synq.quantization.calibration import calibrate, nearest_power
from synq.quantization.convert import bits_in_use, packed_bytes
from synq.quantization.mixed import chosen_widths, room
from synq.quantization.quantizers import Recipe
from synq.quantization.sensitivity import Trial, losses_alone
from synq.quantization.student import begin_with, student_at, student_of
from synq.runtime.process import generator_for, prepare, versions
from synq.runtime.team import ALONE, Team, joined
from synq.synthesis.gdfq import GeneratorTraining
from synq.synthesis.leaves import dead_leaves

LEAVES_AT_ONCE = 64
TERMINATED = 128 + 15  # as shells say it of SIGTERM


def finetune_student(
    *,
    teacher: Path,
    shards: Sequence[Path],
    shard_folder: Path,
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
    from_student: Path | None = None,
) -> int:
    """Write the selected student to ``output`` and all that evaluation needs to ``snapshots``.

    ``from_student`` has the weights that it begins with; None: with the network's own.

    The work folder ``<output>.work`` holds the state after each epoch until both are written. The
    exit code: 0, or that of SIGTERM when the middle of an epoch was saved because of it.
    """
    # The rule asks for the threads of all processes.
    target = prepare(device, -(-threads // settings.processes))
    network = read_teacher(teacher, target)
    student, recipe = student_at(network, bits, calibration, target)
    record = {
        "teacher_sha256": network.sha256,
        "model": network.name,
        "bits": bits,
        "recipe": recipe.record(),
        "method": method,
        "image_set": image_set,
        "shards": [path.stem for path in shards],
        "seed": seed,
        "calibration": dataclasses.asdict(calibration),
        "finetune": dataclasses.asdict(settings),
        "versions": versions(),
        **_start(from_student, bits, settings),
    }
    shard_set = ShardSet(
        [shard_folder / path for path in shards],
        network.sha256,
        network.classes,
        network.image_shape,
    )
    record["images"] = len(shard_set)
    record["shard_checksums"] = shard_set.checksums
    # What one code began another one does not go on with: the student would be of neither.
    code = stage_digest("finetune") + factory_digest(network.factory)
    with joined(settings.processes, target) as team:
        images = training_images(network, shard_set, settings, seed)
        if calibration.mixed:
            before = begun(output, record, code)
            recipe = (
                Recipe(**before)
                if before
                else chosen_recipe(
                    network, student, recipe, images, calibration, settings, seed, team
                )
            )
            record["recipe"] = recipe.record()
            student = student_of(network, recipe).to(target)
        work = Work(output, record, code)
        state, text = work.resume(student)
        if team.leads and text:
            print(text, flush=True)
        fitted = 0 if state else work.resume_fitted(student)
        if team.leads and fitted:
            print(f"going on after {fitted} parts of the reconstruction", flush=True)
        team.wait()  # until all have read what the leader is about to write anew
        with terminations() as stopped:
            if state is None:
                if not fitted:
                    if team.leads:
                        work.clear()
                    begin_with(student, from_student, network)
                    calibrate_student(network, student, images, calibration, settings, seed)
                if settings.reconstruct != "off":
                    ended = partial(_any, team, stopped, target)
                    parts = reconstruct(
                        network.model, student, images, settings, seed, fitted, ended
                    )
                    _save_fitted(parts, work, student, team)
                    if ended():
                        return TERMINATED
                state = Progress()
            team.follow(student)
            for reached in finetune(
                network.model,
                student,
                images,
                settings,
                seed,
                state,
                team,
                stopped,
                partial(work.student, 0),
            ):
                state = reached
                if team.leads:
                    work.save(student, state)
                    _report(state, settings)
    if state.part:
        return TERMINATED
    if team.leads:
        sizes = {"weight_bytes": packed_bytes(student), "widths": bits_in_use(student)}
        _finish(work, state, settings, sizes, output, snapshots)
    return 0


def _start(from_student: Path | None, bits: str, settings: Finetune) -> dict[str, str]:
    """What the record says of the student that this one begins with; ConfigError where it lacks."""
    rung = settings.rung(bits)
    if rung and not from_student:
        raise ConfigError(f"finetune.start is wider; give --from-student, a student of {rung}")
    return {"from_student": file_sha256(from_student)} if from_student else {}


def training_images(network: Teacher, shards: ImageSource, settings: Finetune, seed: int) -> Images:
    """The images as the training sees them, on the network's device.

    The dead leaves that ``finetune.leaves`` asks for are drawn here, and kept as float16.
    ConfigError where all synthetic ones are held out.
    """
    device = next(network.model.parameters()).device
    images = Images(shards, settings, device, network.scale.unit)
    if not len(images.train):
        raise ConfigError("finetune.holdout leaves no image to train on; lower it")
    count = round(len(images.train) * settings.leaves) if settings.epochs else 0
    if count:
        generator = generator_for(seed, "leaves")
        sizes = [min(LEAVES_AT_ONCE, count - n) for n in range(0, count, LEAVES_AT_ONCE)]
        drawn = (dead_leaves(size, network.image_shape, generator) for size in sizes)
        parts = [network.scale.of_network(images).half() for images in drawn]
        with torch.no_grad():
            answers = [network.model(part.float().to(device)).argmax(1).cpu() for part in parts]
        images.add(torch.cat(parts), torch.cat(answers))
    return images


def calibrate_student(
    network: Teacher,
    student: nn.Module,
    images: Images,
    calibration: Calibration,
    settings: Finetune,
    seed: int,
) -> None:
    """Set the grids of a student, in place, by the images that ``range_source`` names."""
    generator = generator_for(seed, "calibration")
    batches: Iterator[torch.Tensor]
    if calibration.range_source == "generator":
        model = rescaled(network.model, network.scale)
        training = GeneratorTraining(
            model, network.classes, network.image_shape, calibration, generator
        )
        batches = map(network.scale.of_network, training.batches())
    else:
        batches = _batches(images, calibration.range_images, settings, generator)
        if calibration.range_search:
            seen = [*batches]
            loss = partial(distillation, temperature=settings.temperature)
            power = nearest_power(network.model, student, seen, calibration, loss)
            batches, calibration = iter(seen), replace(calibration, range_power=power)
    calibrate(student, batches, calibration, network.model)


def _batches(
    images: Images, count: int, settings: Finetune, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """At most ``count`` images as the training will see them, in batches of nearly equal size.

    What is averaged over the batches counts each of them alike, one of a few images too.
    """
    order = images.train[torch.randperm(len(images.train), generator=generator)][:count]
    parts = order.tensor_split(-(-len(order) // settings.batch_size))
    for batch, _ in images.batches(parts, generator):
        yield batch


def chosen_recipe(
    network: Teacher,
    student: nn.Module,
    recipe: Recipe,
    images: Images,
    calibration: Calibration,
    settings: Finetune,
    seed: int,
    team: Team = ALONE,
) -> Recipe:
    """The recipe with a width for each layer's weight that is free, by its sensitivity.

    ``student`` has the widths of ``recipe``. Raises ConfigError where the budget cannot be met.
    """
    place = room(student, recipe, calibration)
    generator = generator_for(seed, "sensitivity")
    seen = [*_batches(images, calibration.sensitivity_images, settings, generator)]
    trials = [Trial(name, bits) for name, sizes in place.sizes.items() for bits in sizes]
    losses: dict[str, dict[int, float]] = {name: {} for name in place.sizes}
    found = losses_alone(network.model, recipe, calibration, seen, trials)
    for trial, loss in zip(trials, found, strict=True):
        losses[trial.layer][trial.weight_bits] = loss.divergence
    chosen = chosen_widths(place, losses)
    widths = team.agreed(chosen.values(), seen[0].device)
    if team.leads:
        counts = ", ".join(f"{n} at {bits}" for bits, n in sorted(Counter(widths).items()))
        print(f"layers by the bits of their weights, by sensitivity: {counts}", flush=True)
    return replace(recipe, keep={**(recipe.keep or {}), **dict(zip(chosen, widths, strict=True))})


def _any(team: Team, stopped: Callable[[], bool], device: torch.device) -> bool:
    return team.any(stopped(), device)


def _save_fitted(parts: Iterator[Fitted], work: Work, student: nn.Module, team: Team) -> None:
    """Reconstruct the parts, and save the student after each."""
    for part in parts:
        if team.leads:
            work.save_fitted(student, part.number)
            print(
                f"reconstruction {part.number}/{part.parts}, {part.name}: "
                f"error {part.before:.4g} to {part.after:.4g}",
                flush=True,
            )


def _report(state: Progress, settings: Finetune) -> None:
    if state.part:
        print(
            f"terminated: {state.part.steps} steps of epoch {state.epoch + 1} are saved", flush=True
        )
        return
    if state.epoch == 0 and state.restarts:
        print(
            "the training diverged; the calibrated student is trained anew, at "
            f"{RESTART_FACTOR**state.restarts:g} of its learning rates",
            flush=True,
        )
        return
    entry = state.history[-1]
    losses = ", ".join(f"{key} {value:.4g}" for key, value in entry.items() if key != "epoch")
    print(f"epoch {state.epoch}/{settings.epochs}: {losses}", flush=True)


def select(history: Sequence[dict[str, float]], by: str = "held_out") -> int:
    """The epoch with the smallest held-out loss, or the last one: where that is asked for by
    ``finetune.select``, and where nothing was held out.
    """
    if by == "last" or any(math.isnan(entry["held_out"]) for entry in history):
        return len(history) - 1
    return min(range(len(history)), key=lambda epoch: history[epoch]["held_out"])


def _finish(
    work: Work,
    state: Progress,
    settings: Finetune,
    sizes: Mapping[str, Any],
    output: Path,
    snapshots: Path,
) -> None:
    """Write the results and remove the work folder."""
    selected, last = select(state.history, settings.select), state.epoch
    epochs = range(last + 1) if settings.keep == "all" else sorted({0, selected, last})
    summary = {
        **work.record,
        "selected": selected,
        "last": last,
        "history": state.history,
        **sizes,
    }
    write_students(snapshots, summary, work.students(epochs))
    write_checkpoint(output, "student", work.student(selected), {**summary, "epoch": selected})
    work.clear()
