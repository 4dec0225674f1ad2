"""Teachers and students on disk: a checkpoint and everything that is needed to build it again."""

import copy
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synq.anatomy import require_modules
from synq.artifacts import file_sha256, read_checkpoint, write_checkpoint
from synq.config import Model, RealImages, Synthesis
from synq.errors import ArtifactError, ConfigError
from synq.models import build, frozen, load_weights
from synq.quantization import quantize
from synq.runtime import versions


@dataclass(frozen=True)
class Teacher:
    """A full-precision network, frozen, and what its input looks like."""

    model: nn.Module
    sha256: str
    name: str
    classes: int
    image_shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]

    def student(self, bits: tuple[int, int]) -> nn.Module:
        """A quantized copy with ranges that are not calibrated yet.

        Raises ModelError where activations would stay in full precision unseen.
        """
        require_modules(self.model, self.image_shape)
        return quantize(copy.deepcopy(self.model), *bits).eval()


def write_teacher(
    path: Path,
    tensors: Mapping[str, Tensor],
    settings: Model,
    *,
    name: str,
    mean: Sequence[float],
    std: Sequence[float],
    origin: str,
) -> None:
    """Write a teacher as safetensors, with all that ``read_teacher`` needs to build it again."""
    record = {
        "name": name,
        "architecture": settings.architecture,
        "classes": settings.classes,
        "channels": settings.channels,
        "image_size": settings.image_size,
        "mean": list(mean),
        "std": list(std),
        "origin": origin,
        "versions": versions(),
    }
    write_checkpoint(path, "teacher", tensors, record)


def read_teacher(path: Path, device: torch.device) -> Teacher:
    """Build the network that a teacher's file describes and load it, frozen."""
    tensors, record = read_checkpoint(path, "teacher")
    try:
        channels, size = record["channels"], record["image_size"]
        model = build(record["architecture"], record["classes"], channels, size)
        load_weights(model, tensors, str(path))
        return Teacher(
            frozen(model).to(device),
            file_sha256(path),
            record["name"],
            record["classes"],
            (channels, size, size),
            record["mean"],
            record["std"],
        )
    except KeyError as error:
        raise ArtifactError(f"{path} lacks {error} in its record; make it again") from None


def student_tensors(student: nn.Module) -> dict[str, Tensor]:
    """The student's state on the CPU, apart from the network."""
    return {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}


def check_teacher(record: Mapping[str, Any], teacher: Teacher, path: Path) -> None:
    """ArtifactError where a student's file was made from another teacher."""
    if record.get("teacher_sha256") != teacher.sha256:
        raise ArtifactError(
            f"{path} was made from another model (SHA-256 "
            f"{str(record.get('teacher_sha256'))[:12]}..., not {teacher.sha256[:12]}...); "
            "delete it and run the fine-tuning again"
        )


def check_classes(classes: Sequence[int], teacher: Teacher) -> None:
    """ConfigError where the teacher has no such class."""
    for number in classes:
        if not 0 <= number < teacher.classes:
            raise ConfigError(
                f"class {number} does not exist; {teacher.name} has 0 to {teacher.classes - 1}"
            )


def shard_record(
    teacher: Teacher, classes: Sequence[int], seed: int, settings: Synthesis | RealImages
) -> dict[str, Any]:
    """The attributes of a shard that was made with this teacher."""
    return {
        "classes": classes,
        "model": teacher.name,
        "teacher_sha256": teacher.sha256,
        "mean": teacher.mean,
        "std": teacher.std,
        "seed": seed,
        "settings": json.dumps(dataclasses.asdict(settings), sort_keys=True),
        "versions": versions(),
    }
