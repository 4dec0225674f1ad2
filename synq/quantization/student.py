"""Students: quantized copies of a teacher, and their files."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synq.config.calibration import Calibration, kept_bits
from synq.config.grid import parse_bits
from synq.errors import ArtifactError
from synq.io.artifacts import read_checkpoint
from synq.models.teacher import Teacher
from synq.models.weights import load_weights
from synq.quantization.convert import quantize, quantized_names
from synq.quantization.coverage import require_activations
from synq.quantization.quantizers import Recipe


def student_of(teacher: Teacher, recipe: Recipe) -> nn.Module:
    """A quantized copy of a teacher, with ranges that are not calibrated yet.

    Raises ModelError where activations would stay in full precision unseen.
    """
    require_activations(teacher.model, teacher.image_shape)
    return quantize(copy.deepcopy(teacher.model), recipe, teacher.image_shape).eval()


def recipe_from(bits: str, settings: Calibration) -> Recipe:
    """The recipe that widths such as ``w4a4`` and settings ask for."""
    return Recipe(
        *parse_bits(bits),
        weights=settings.weights,
        activations=settings.activations,
        ends=settings.ends_bits,
        keep=kept_bits(settings.keep_bits) or None,
        scope=settings.scope,
        sum_bits=settings.sum_bits,
    )


def student_at(
    teacher: Teacher, bits: str, settings: Calibration, device: torch.device
) -> tuple[nn.Module, Recipe]:
    """A student of widths such as ``w4a4``, not calibrated yet, and its recipe, of names alone.

    Raises ConfigError for a pattern of ``keep_bits`` that matches nothing.
    """
    recipe = recipe_from(bits, settings)
    student = student_of(teacher, recipe).to(device)
    return student, recipe.resolved(quantized_names(student))


def begin_with(student: nn.Module, path: Path | None, teacher: Teacher) -> None:
    """Give a student that is not calibrated yet the weights of another one, of any widths.

    None: it keeps its own. What is given is all that the network itself trains, and neither grids
    nor BatchNorm's statistics: these are the network's until they are calibrated at the new widths.
    """
    if path is None:
        return
    tensors, record = read_checkpoint(path, "student")
    check_teacher(record, teacher, path)
    take_weights(student, tensors, teacher)


def take_weights(student: nn.Module, tensors: Mapping[str, Tensor], teacher: Teacher) -> None:
    """Copy from a student's state what the network has as parameters, in place."""
    own = dict(student.named_parameters())
    with torch.no_grad():
        for name, _ in teacher.model.named_parameters():
            own[name].copy_(tensors[name])


def opened(model: nn.Module, image_shape: tuple[int, int, int]) -> nn.Module:
    """A copy of a network that computes the same and has a student's quantizers, which are open.

    An observer of theirs is shown what the student's is shown, as it is without quantization.
    """
    recipe = Recipe(8, 8, weights="open", activations="open")  # of bits that nothing asks for
    return quantize(copy.deepcopy(model), recipe, image_shape).eval().requires_grad_(False)


def student_tensors(student: nn.Module) -> dict[str, Tensor]:
    """The student's state on the CPU, apart from the network."""
    return {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}


def read_student(path: Path, teacher: Teacher) -> tuple[nn.Module, dict[str, Any]]:
    """The quantized network of a student's file, and the record of its run."""
    tensors, record = read_checkpoint(path, "student")
    check_teacher(record, teacher, path)
    student = student_of(teacher, recipe_of(record, path))
    load_weights(student, tensors, str(path))
    return student, record


def recipe_of(record: Mapping[str, Any], path: Path) -> Recipe:
    """The recipe that a student's record holds."""
    try:
        return Recipe(**record["recipe"])
    except (KeyError, TypeError) as error:
        raise ArtifactError(
            f"{path} does not say how it was quantized ({error}); "
            "delete it and run the fine-tuning again"
        ) from None


def check_teacher(record: Mapping[str, Any], teacher: Teacher, path: Path) -> None:
    """ArtifactError where a student's file was made from another teacher."""
    if record.get("teacher_sha256") != teacher.sha256:
        raise ArtifactError(
            f"{path} was made from another model (SHA-256 "
            f"{str(record.get('teacher_sha256'))[:12]}..., not {teacher.sha256[:12]}...); "
            "delete it and run the fine-tuning again"
        )
