"""Students: quantized copies of a teacher, and their files."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from synq.config.grid import parse_bits
from synq.errors import ArtifactError
from synq.io.artifacts import read_checkpoint
from synq.models.teacher import Teacher
from synq.models.weights import load_weights
from synq.quantization.convert import quantize
from synq.quantization.coverage import require_modules


def student_of(teacher: Teacher, bits: tuple[int, int]) -> nn.Module:
    """A quantized copy of a teacher, with ranges that are not calibrated yet.

    Raises ModelError where activations would stay in full precision unseen.
    """
    require_modules(teacher.model, teacher.image_shape)
    return quantize(copy.deepcopy(teacher.model), *bits).eval()


def student_tensors(student: nn.Module) -> dict[str, Tensor]:
    """The student's state on the CPU, apart from the network."""
    return {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}


def read_student(path: Path, teacher: Teacher) -> tuple[nn.Module, dict[str, Any]]:
    """The quantized network of a student's file, and the record of its run."""
    tensors, record = read_checkpoint(path, "student")
    check_teacher(record, teacher, path)
    student = student_of(teacher, parse_bits(record.get("bits", "")))
    load_weights(student, tensors, str(path))
    return student, record


def check_teacher(record: Mapping[str, Any], teacher: Teacher, path: Path) -> None:
    """ArtifactError where a student's file was made from another teacher."""
    if record.get("teacher_sha256") != teacher.sha256:
        raise ArtifactError(
            f"{path} was made from another model (SHA-256 "
            f"{str(record.get('teacher_sha256'))[:12]}..., not {teacher.sha256[:12]}...); "
            "delete it and run the fine-tuning again"
        )
