"""Files between stages: written whole or not at all, and checked when they are opened."""

import contextlib
import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from synq.errors import ArtifactError

FORMAT = 2


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


def _check_sum(path: Path, record: dict[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Take the checksum out of the record; ArtifactError where it is not that of the content."""
    if record.pop("checksum", None) != checksum(record, tensors):
        raise ArtifactError(
            f"{path} does not match its checksum; delete it and run the stage that writes it again"
        )


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a readable JSON file with a checksum of its content."""
    whole = {**content, "checksum": checksum(content, {})}
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(whole, indent=2, sort_keys=True) + "\n", "utf-8")


def read_json(path: Path, kind: str) -> dict[str, Any]:
    """A JSON object that says it is a ``kind`` of this format, and is as it was written."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ArtifactError(f"{path} does not exist; run the stage that writes it") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read as JSON ({error}); delete it") from None
    if not isinstance(content, dict) or (content.get("kind"), content.get("format")) != (
        kind,
        FORMAT,
    ):
        raise ArtifactError(f"{path} is not a {kind} of format {FORMAT}; delete it and run again")
    _check_sum(path, content, {})
    return content


def write_checkpoint(
    path: Path, kind: str, tensors: Mapping[str, Tensor], record: Mapping[str, Any]
) -> None:
    """Write tensors with a JSON record of what they are, as safetensors."""
    ready = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    whole = {"kind": kind, "format": FORMAT, **record}
    whole["checksum"] = checksum(whole, ready)
    metadata = {"synq": json.dumps(whole, sort_keys=True)}
    with atomic(path) as temporary:
        save_file(ready, temporary, metadata)


def read_checkpoint(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors on the CPU and the record of a checkpoint of this kind, as they were written."""
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; run the stage that writes it")
    try:
        with safetensors.safe_open(path, "pt") as file:
            record = json.loads((file.metadata() or {}).get("synq", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (safetensors.SafetensorError, ValueError, OSError, RecursionError) as error:
        raise ArtifactError(
            f"{path} is damaged ({error}); delete it and run the stage that writes it again"
        ) from None
    if not isinstance(record, dict) or (record.get("kind"), record.get("format")) != (kind, FORMAT):
        raise ArtifactError(
            f"{path} is not a {kind} of format {FORMAT}; delete it and run the stage that writes it"
        )
    _check_sum(path, record, tensors)
    return tensors, record
