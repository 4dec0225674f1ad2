"""Files between stages: written whole or not at all, and checked when they are opened."""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from synq.errors import ArtifactError, FormatError, reason


class Kind(NamedTuple):
    """A kind of file: the number of its format, and the commands that make it again."""

    format: int
    command: str


# A number goes up where a program of before could not read the new files, or this one not those of
# before. It is that kind's alone, so that a change to one kind keeps the files of all others.
KINDS = {
    "teacher": Kind(3, "fetch, fetch-zoo or train"),
    "teacher metrics": Kind(2, "evaluate-teacher"),
    "inspection": Kind(2, "inspect"),
    "sensitivity": Kind(1, "sensitivity"),
    "shard": Kind(2, "synthesize, borrow or collect"),
    "batch": Kind(1, "synthesize"),
    "student": Kind(2, "finetune"),
    "students": Kind(1, "finetune"),
    "state": Kind(2, "finetune"),
    "part": Kind(2, "finetune"),
    "metrics": Kind(4, "evaluate"),
    "export": Kind(2, "export"),
    "packed": Kind(1, "export"),
    "verdict": Kind(2, "tables"),
}

# What the system says of a disk that is full, over quota, broken, read-only or somebody else's.
UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EIO,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EEXIST,
    errno.ENAMETOOLONG,
}


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that replaces it when the block ends well.

    Whatever else ends the block, the temporary file is removed and ``path`` stays as it was.
    A disk that is full or cannot be written is an ArtifactError.
    """
    temporary = path.with_name(f".{path.name}.tmp.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # safetensors writes files that their owner alone can read.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        number = _system_error(error)
        if number not in UNWRITABLE:
            raise
        raise ArtifactError(
            f"{path} cannot be written: {os.strerror(number)}; mend that and run the same again"
        ) from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _system_error(error: Exception) -> int:
    """The number of the system's error; 0 where it is none. safetensors has it in its text."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else 0


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes; ArtifactError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None


def checksum(record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over a record and the tensors' names, types, shapes and values."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_sum(path: Path, record: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Take the checksum out of the record; ArtifactError where it is not that of the content."""
    if record.pop("checksum", None) != checksum(record, tensors):
        raise ArtifactError(
            f"{path} does not match its checksum; delete it and run the stage that writes it again"
        )


def remedy(kind: str) -> str:
    """What to do about a file of this kind that cannot be used."""
    return f"delete it and run {KINDS[kind].command} again"


# Files of a former layout, and what has taken their place.
FORMER = {"snapshots.h5": "students.safetensors"}


def check_kind(path: Path, record: object, kind: str) -> None:
    """ArtifactError where a file's record is not of ``kind``, FormatError where of another format.

    To be asked before anything else of the file is read.
    """
    fields: Mapping[str, Any] = record if isinstance(record, Mapping) else {}
    if fields.get("kind") != kind:
        packed = (fields.get("kind"), kind) == ("packed", "student")
        what = "make one of it with synq unpack" if packed else remedy(kind)
        raise ArtifactError(f"{path} is not a {kind} file of this program; {what}")
    found, wanted = fields.get("format"), KINDS[kind].format
    if type(found) is not int or found != wanted:
        raise FormatError(
            f"{path} is a {kind} file of format {found}, this program reads {wanted}; "
            f"{remedy(kind)}"
        )


def write_json(path: Path, kind: str, record: Mapping[str, Any]) -> None:
    """Write a readable JSON file of this kind, with a checksum of its content."""
    content = {"kind": kind, "format": KINDS[kind].format, **record}
    whole = {**content, "checksum": checksum(content, {})}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n", "utf-8")


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """A JSON object that says it is a ``kind`` of the right format, and is as it was written."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; run the stage that writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON ({error}); delete it") from None
    check_kind(path, content, kind)
    check_sum(path, content, {})
    return content  # type: ignore[no-any-return]


def write_checkpoint(
    path: Path, kind: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    """Write tensors with a JSON record of what they are, as safetensors."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save(path, kind, ready, record, summed=ready)


def save(
    path: Path,
    kind: str,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    *,
    summed: Mapping[str, Tensor],
) -> None:
    """Write contiguous tensors of the CPU, with a checksum of the record and what is ``summed``."""
    whole = {"kind": kind, "format": KINDS[kind].format, **record}
    whole["checksum"] = checksum(whole, summed)
    metadata = {"synq": json.dumps(whole, sort_keys=True)}
    # A layer that a network has under two names has one weight; safetensors wants two.
    own: dict[str, Tensor] = {}
    places: set[int] = set()
    for name, tensor in tensors.items():
        own[name] = tensor.clone() if tensor.data_ptr() in places else tensor
        places.add(tensor.data_ptr())
    with atomic(path) as temporary:
        save_file(own, temporary, metadata)


def read_checkpoint(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU and the record of a checkpoint of this kind, as they were written."""
    with opened(path, kind) as (file, record):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_sum(path, record, tensors)
    return tensors, record


@contextlib.contextmanager
def opened(path: Path, kind: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A safetensors file of this kind to read from, and its record; no tensor is read.

    ArtifactError where it is something else, and instead of the errors of damaged content.
    """
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; run the stage that writes it")
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {}).get("synq", "{}"))
            check_kind(path, record, kind)
            yield file, record
    except (safetensors.SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ArtifactError(f"{path} is damaged ({reason(error)}); {remedy(kind)}") from None
