"""A student again from its packed file."""

from pathlib import Path
from typing import Any

import torch

from synq.errors import ArtifactError
from synq.io.artifacts import file_sha256, read_checkpoint, remedy, write_checkpoint
from synq.models.teacher import read_teacher
from synq.models.weights import load_weights
from synq.quantization.packed import unpack
from synq.quantization.student import check_teacher, recipe_of, student_of

# What describes the packed tensors, and not the student.
LAYOUT = ("weights", "activations", "aliases")


def unpack_student(*, teacher: Path, packed: Path, output: Path) -> None:
    """Write the student that was packed; every forward is the original's bit for bit."""
    network = read_teacher(teacher, torch.device("cpu"))
    tensors, record = read_checkpoint(packed, "packed")
    check_teacher(record, network, packed)
    recipe = recipe_of(record, packed)
    try:
        state = unpack(tensors, record)
    except ArtifactError as error:
        raise ArtifactError(f"{packed} cannot be unpacked: {error}; {remedy('packed')}") from None
    # A record may be whole and of other tensors than the network has.
    student = student_of(network, recipe)
    load_weights(student, state, str(packed))
    away = ("kind", "format", *LAYOUT)
    own: dict[str, Any] = {key: value for key, value in record.items() if key not in away}
    own["packed_sha256"] = file_sha256(packed)
    write_checkpoint(output, "student", state, own)
    print(f"{record['model']} at {record['bits']}: the student is in {output}")
