"""``quantize``, ``synthesize``, ``inspect``, ``sensitivity`` and ``load``: a run in memory."""

import contextlib
import copy
import dataclasses
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synq.api.given import Batch, Given, Test, answered, checked, settings_or_batches
from synq.api.network import description, image_set_of, images_for, teacher_of
from synq.api.result import Inspection, Measured, Result, Sensitivity
from synq.api.settings import Run, image_settings, run_settings
from synq.config.images import RealImages
from synq.config.model import Model
from synq.config.synthesis import Synthesis
from synq.data.datasets import Images
from synq.data.names import class_names
from synq.errors import ArtifactError, ConfigError, DataError, ModelError
from synq.finetuning.reconstruction import reconstruct
from synq.finetuning.training import Progress, finetune
from synq.io.artifacts import read_checkpoint
from synq.io.shards import ImageSet
from synq.models.build import frozen
from synq.models.teacher import Teacher, check_classes, read_teacher
from synq.quantization.convert import bits_in_use, packed_bytes
from synq.quantization.quantizers import Recipe
from synq.quantization.student import (
    read_student,
    student_at,
    student_of,
    student_tensors,
    take_weights,
)
from synq.reporting.accuracy import answers, compared, confusion, doubt, top1
from synq.reporting.changes import HELD_OUT, TESTED, UNLABELLED
from synq.reporting.inspection import inspect_model
from synq.runtime.process import prepared, versions
from synq.runtime.progress import showing
from synq.stages.evaluate import held_out_images, labelled
from synq.stages.evaluate_teacher import predictions
from synq.stages.finetune import calibrate_student, chosen_recipe, select, training_images
from synq.stages.real_images import test_images
from synq.stages.sensitivity import layers_alone

Settings = Mapping[str, Any] | None


def quantize(
    model: nn.Module,
    *,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    bits: str = "w4a4",
    method: str = "synq-plus",
    seed: int = 0,
    images: ImageSet | None = None,
    test: Test = None,
    classes: int | None = None,
    names: str | Sequence[str] = (),
    name: str = "",
    synthesis: Settings = None,
    real: Settings = None,
    calibration: Settings = None,
    finetune: Settings = None,
    evaluation: Settings = None,
    export: Settings = None,
    device: str = "auto",
    threads: int = 0,
    progress: bool = True,
) -> Result:
    """Quantize a classifier without its data; ``model`` stays as it is.

    ``image_shape`` is ``(C, H, W)`` of its square input, ``mean`` and ``std`` are those of each
    channel, of images in [0, 1], ``bits`` the widths of weights and activations (w2a2 to w8a8).
    ``method`` is one of ``synq.methods()``. The images are synthesized, unless ``images`` has them:
    from ``synthesize``, or the caller's own. Those of another network of the same classes are
    converted to the size and the normalisation of this one.

    ``synthesis`` and the other mappings change settings of the section of that name; they win over
    the method's own. ``test`` are images to measure on: a folder with one directory per class, or
    with images alone, of which agreement with the network is measured for want of labels,
    settings as in a config (``{"dataset": "arrays", "path": "test.npz"}``), or batches of images as
    the network takes them and labels, or images alone, such as a DataLoader; those of an iterator
    are kept in memory. Without it agreement with the network is measured, on the images that were
    held out. ``names`` are those of the classes in the network's order, or the path of a text file
    with a name a line: they go into the ONNX file, and where the directories of a folder have
    exactly these names, they say which class each is.

    The same seed and settings give the student that the workflow makes, bit for bit on the same
    CPU and number of threads (``threads``; 0: torch's choice). Raises UserError, in one line,
    before any long work where that is possible. Ctrl-C ends it at any time.
    """
    settings = description(model, image_shape, classes, mean, std)
    batches, told = settings_or_batches(test)
    called = {"names": [names] if isinstance(names, str) else list(names)}
    changes = {
        "synthesis": synthesis,
        "real": {**called, **(real or {})},
        "calibration": calibration,
        "finetune": finetune,
        "evaluation": evaluation,
        "export": export,
        "test": {**called, **(told or {})},
    }
    if images is not None and (synthesis or real):
        raise ConfigError("images are given, and settings of how to make them too; leave one out")
    each = None if images is None else _each(images)
    held = () if batches is None else ("test",)
    run = run_settings(settings, bits, method, seed, changes, held=held, given=each)
    with prepared(device, threads) as target, showing(progress):
        network = teacher_of(model, settings, name, target)
        found = _fitting(model, settings, network.name, run, given=images is not None)
        given = None if images is None else images_for(network, images)
        class_names(run.test, network.classes)  # the ONNX file has them, much later
        tests = _test_images(network, run) if batches is None else None
        # A batch that does not fit is told before the work.
        first = None if batches is None else next(checked(batches, network), None)
        if batches is not None and first is None:
            raise DataError("test gives no images")
        unlabelled = first is not None and first[1] is None
        seconds: dict[str, float] = {}
        with _timed(seconds, "images"):
            own = given or image_set_of(network, run.shards, seed, run.images)
        with _timed(seconds, "training"):
            trained = _trained(network, own, run, bits, seed)
        with _timed(seconds, "evaluation"):
            measured = _measured(network, trained, own, run, tests, batches, unlabelled=unlabelled)
    record = {
        "teacher_sha256": network.sha256,
        "model": network.name,
        "bits": bits,
        "recipe": trained.recipe.record(),
        "method": method,
        "image_set": "given" if images is not None else run.image_set,
        "shards": [],
        "shard_checksums": [],
        "images": len(own),
        "seed": seed,
        "calibration": dataclasses.asdict(run.calibration),
        "finetune": dataclasses.asdict(run.finetune),
        "selected": trained.selected,
        "epoch": trained.selected,
        "last": len(trained.history) - 1,
        "history": trained.history,
        "weight_bytes": packed_bytes(trained.student),
        "widths": bits_in_use(trained.student),
        "input": {
            "image_shape": list(network.image_shape),
            "classes": network.classes,
            "mean": network.mean,
            "std": network.std,
        },
        "versions": versions(),
    }
    kept = None if batches is None else Given(batches, network, measured.images)
    return Result(trained.student, network, own, record, found, measured, seconds, run, kept)


def synthesize(
    model: nn.Module,
    *,
    image_shape: Sequence[int],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    image_set: str = "natural",
    seed: int = 0,
    of_classes: Sequence[int] | None = None,
    classes: int | None = None,
    name: str = "",
    synthesis: Settings = None,
    real: Settings = None,
    device: str = "auto",
    threads: int = 0,
    progress: bool = True,
) -> ImageSet:
    """The images of one of ``synq.image_sets()``, for several runs of ``quantize``.

    ``natural`` are those of the method synq-plus. ``of_classes`` names classes, in place of all of
    them, which are then optimised together. ``mean`` and ``std`` are needed for real images, and
    where the images are for another network, too; without them no pixel is clamped, and the images
    are others than those of ``quantize``.
    """
    settings = description(model, image_shape, classes, mean, std)
    made, shards = image_settings(settings, image_set, {"synthesis": synthesis, "real": real})
    if isinstance(made, RealImages) and (mean is None or std is None):
        raise ConfigError(f"image_set is {image_set!r}, of real images; give their mean and std")
    if isinstance(made, Synthesis) and (mean is None or std is None):
        made = dataclasses.replace(made, clamp=False)  # what is black and white nobody knows then
    with prepared(device, threads) as target, showing(progress):
        network = teacher_of(model, settings, name, target)
        if of_classes is not None:
            shards = [list(of_classes)]
            if not shards[0]:
                raise ConfigError("of_classes is empty; name classes, or leave it out for all")
            check_classes(shards[0], network)
        images = image_set_of(network, shards, seed, made)
    if mean is None or std is None:  # then nobody knows what the network takes
        images.mean = images.std = None
    return images


def inspect(
    model: nn.Module,
    *,
    image_shape: Sequence[int],
    method: str = "",
    classes: int | None = None,
    name: str = "",
) -> Inspection:
    """What of a network is quantized and whether it fits, in seconds; ``print`` shows all of it.

    With a ``method`` whether that fits it, too.
    """
    settings = description(model, image_shape, classes)
    required = None
    if method:
        required = run_settings(settings, "w4a4", method, 0, {}, held=("test", "real")).needs
    network = teacher_of(model, settings, name, torch.device("cpu"))
    found = inspect_model(network.model, network.image_shape, required)
    return Inspection(network, found)


def sensitivity(
    model: nn.Module,
    images: ImageSet,
    *,
    image_shape: Sequence[int],
    mean: Sequence[float],
    std: Sequence[float],
    bits: str = "w4a4",
    method: str = "synq-plus",
    classes: int | None = None,
    name: str = "",
    calibration: Settings = None,
    device: str = "auto",
    threads: int = 0,
    progress: bool = True,
) -> Sensitivity:
    """How far the answers are from the network's own with each layer alone at ``bits``.

    On ``calibration.sensitivity_images`` of ``images``, with the quantizers of the ``method``. What
    to do about it: ``quantize(..., calibration={"keep_bits": {"fc": 8}})``. It gives what
    ``synq sensitivity`` does on the same images.
    """
    settings = description(model, image_shape, classes, mean, std)
    # Nothing is trained, so that nothing need be held out.
    changes = {"calibration": calibration, "finetune": {"epochs": 0}}
    held = ("test", "real")
    run = run_settings(settings, bits, method, 0, changes, held=held, given=_each(images))
    with prepared(device, threads) as target, showing(progress):
        network = teacher_of(model, settings, name, target)
        own = images_for(network, images)
        found = layers_alone(network, own, bits, run.calibration)
    about = {"model": network.name, "teacher_sha256": network.sha256, "bits": bits}
    return Sensitivity(
        {
            **about,
            "method": method,
            "image_set": "given",
            "shards": [],
            "shard_checksums": [],
            "seed": 0,
            "calibration": dataclasses.asdict(run.calibration),
            **found,
            "versions": versions(),
        }
    )


def load(path: str | Path, model: nn.Module | str | Path) -> nn.Module:
    """The student in a file, on the CPU, of ``Result.save`` or of the workflow.

    ``model`` is the full-precision network that it was made from; of a student of the workflow the
    path of its teacher.safetensors.
    """
    path = Path(path)
    if isinstance(model, nn.Module):
        _, record = read_checkpoint(path, "student")
        about = record.get("input")
        if about is None:
            raise ArtifactError(
                f"{path} was made by the workflow; give the path of its teacher.safetensors as "
                "the model"
            )
        settings = description(model, **about)
        network = teacher_of(model, settings, record["model"], torch.device("cpu"))
    else:
        network = read_teacher(Path(model), torch.device("cpu"))
    student, _ = read_student(path, network)
    return frozen(student)


def _each(images: ImageSet) -> int:
    """How many images the class with the fewest has."""
    return int(images.labels.unique(return_counts=True)[1].min())


@dataclasses.dataclass(frozen=True)
class _Trained:
    """The selected student, the state of the calibrated one, and what each epoch left."""

    student: nn.Module
    recipe: Recipe
    calibrated: dict[str, Tensor]
    selected: int
    history: Sequence[dict[str, float]]


@contextlib.contextmanager
def _timed(seconds: dict[str, float], key: str) -> Iterator[None]:
    """Write the seconds of a block into a mapping."""
    start = time.perf_counter()
    yield
    seconds[key] = time.perf_counter() - start


def _fitting(
    model: nn.Module, settings: Model, name: str, run: Run, *, given: bool
) -> dict[str, Any]:
    """What an inspection finds; ModelError where the network does not fit the run."""
    network = teacher_of(model, settings, name, torch.device("cpu"))
    # Images that are there need nothing of the network.
    required = [word for word in run.needs if not (given and ":synthesis." in word)]
    found = inspect_model(network.model, network.image_shape, required)
    if found["problems"]:
        raise ModelError(f"{name} does not fit: {'; '.join(found['problems'])}")
    return found


def _trained(network: Teacher, shards: ImageSet, run: Run, bits: str, seed: int) -> _Trained:
    device = next(network.model.parameters()).device
    images = training_images(network, shards, run.finetune, seed)
    student, recipe = student_at(network, bits, run.calibration, device)
    if run.calibration.mixed:
        recipe = chosen_recipe(
            network, student, recipe, images, run.calibration, run.finetune, seed
        )
        student = student_of(network, recipe).to(device)
    if rung := run.finetune.rung(bits):
        above = _trained(network, shards, run, rung, seed).student
        take_weights(student, above.state_dict(), network)
    calibrate_student(network, student, images, run.calibration, run.finetune, seed)
    for _ in reconstruct(network.model, student, images, run.finetune, seed):
        pass
    states: dict[int, dict[str, Tensor]] = {}
    selected, history = 0, Progress().history
    for state in finetune(network.model, student, images, run.finetune, seed, Progress()):
        history = state.history
        # The newest is selected or nothing that comes later changes what was.
        if select(history, run.finetune.select) == state.epoch:
            selected = state.epoch
            states = {0: states[0] if states else student_tensors(student)}
            states[selected] = student_tensors(student) if selected else states[0]
    student.load_state_dict(states[selected])
    return _Trained(frozen(student), recipe, states[0], selected, history)


def _test_images(network: Teacher, run: Run) -> Images | None:
    """The test images that the settings name; None where they name none."""
    return test_images(network, run.test) if run.test.dataset != "none" else None


def _measured(
    network: Teacher,
    trained: _Trained,
    shards: ImageSet,
    run: Run,
    tests: Images | None,
    batches: Iterable[Batch] | None,
    *,
    unlabelled: bool,
) -> Measured:
    calibrated = copy.deepcopy(trained.student)
    calibrated.load_state_dict(trained.calibrated)
    models = [network.model, calibrated, trained.student]
    settings, on = run.evaluation, TESTED
    if batches is not None:
        on = UNLABELLED if unlabelled else TESTED
        labels, found = answers(models, answered(checked(batches, network), network))
    else:
        if tests is None:
            seen, on = held_out_images(network, shards, run.finetune.holdout, settings), HELD_OUT
        else:
            seen, on = labelled(network, tests, settings)
        labels, found = predictions(models, network, seen, settings)
    if not len(labels):
        raise DataError("test gives no images")
    counts = [confusion(labels, own, network.classes) for own in found]
    return Measured(
        real=on == TESTED,
        on=on,
        images=len(labels),
        teacher=top1(counts[0]),
        calibrated=top1(counts[1]),
        student=top1(counts[2]),
        changes=compared(labels, found[0], found[2]),
        trained=compared(labels, found[1], found[2]),
        warning=doubt(counts[0]) if on == TESTED else "",
    )
