"""HDF5 files under a seal: checked whole, and then array by array, before anything is believed.

The HDF5 library was not made for damaged files: a flipped bit in its own structures can make it
loop for ever. A file of this program therefore begins with a user block, 512 bytes that HDF5 leaves
alone, which holds the SHA-256 of all that follows. Other programs read such files as usual.
"""

import contextlib
import hashlib
import math
from collections.abc import Iterable, Iterator
from io import BufferedIOBase
from pathlib import Path

import h5py
import numpy

from synq.errors import ArtifactError
from synq.io.artifacts import KINDS, atomic, check_kind
from synq.io.disk import Disk

BLOCK = 512


SEAL = b"synq sha256 "


SIGNATURE = b"\x89HDF\r\n\x1a\n"


# Bytes of an array in memory at a time where it is read piece by piece.
PIECE = 1 << 24


# All that h5py raises on content that it cannot make sense of.
DAMAGE = (OSError, KeyError, ValueError, TypeError, RuntimeError, AttributeError, OverflowError)


@contextlib.contextmanager
def written(path: Path, kind: str) -> Iterator[h5py.File]:
    """A file to fill, which appears at ``path`` whole and sealed when the block ends well."""
    with atomic(path) as temporary:
        with Disk(temporary) as disk:
            options = {"track_order": True, "userblock_size": BLOCK}
            with h5py.File(disk, "w", **options) as file:
                file.attrs["format"] = KINDS[kind].format
                file.attrs["kind"] = kind
                yield file
        seal(temporary)


def seal(path: Path) -> None:
    """Write the digest of an HDF5 file's content into its user block."""
    with open(path, "r+b") as file:
        digest = _digest(file)
        file.seek(0)
        file.write(_block(digest))


def opened(path: Path, kind: str, remedy: str) -> h5py.File:
    """Open a sealed file of this kind to read; ArtifactError says what it is instead."""
    _check_seal(path, remedy)
    with refusing(path, remedy):
        file = h5py.File(path, "r")
    with refusing(path, remedy, file):
        check_kind(path, _record(file), kind)
    return file


@contextlib.contextmanager
def refusing(path: Path, remedy: str, file: "h5py.File | None" = None) -> Iterator[None]:
    """Close the file after any error, and make those of damaged content an ArtifactError."""
    with contextlib.ExitStack() as closing:
        if file is not None:
            closing.callback(file.close)
        try:
            yield
        except DAMAGE as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ArtifactError(f"{path} is damaged ({reason}); {remedy}") from None
        closing.pop_all()  # all is well: it stays open


def _record(file: h5py.File) -> dict[str, object]:
    """What a file says that it is."""
    found, version = file.attrs.get("kind"), file.attrs.get("format")
    if not isinstance(found, str):
        raise ValueError("it does not say what it holds")  # noqa: TRY004
    whole = isinstance(version, numpy.integer)
    return {"kind": found, "format": int(version) if whole else version}


def _check_seal(path: Path, remedy: str) -> None:
    try:
        with open(path, "rb") as file:
            start, wanted = file.read(BLOCK), _digest(file)
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}") from None
    if start.startswith(SIGNATURE):
        raise ArtifactError(f"{path} is HDF5 that another program wrote; {remedy}")
    if len(start) < BLOCK or not start.startswith(SEAL):
        raise ArtifactError(f"{path} is truncated or not HDF5 of this program; {remedy}")
    if start != _block(wanted):
        raise ArtifactError(
            f"{path} is truncated or altered, it does not match its checksum; {remedy}"
        )


def _block(digest: bytes) -> bytes:
    return (SEAL + digest + b"\n").ljust(BLOCK, b"\0")


def _digest(file: BufferedIOBase) -> bytes:
    file.seek(BLOCK)
    return hashlib.file_digest(file, "sha256").hexdigest().encode()  # type: ignore[arg-type]


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
    """What is under a name in this file itself: no link is followed."""
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
        raise TypeError(f"{name} is missing or a link")
    return group[name]


def array(group: h5py.Group, name: str, dtype: str, dimensions: int) -> h5py.Dataset:
    """A dataset that is what it says; TypeError or ValueError before any of it is in memory.

    Its values lie in this file, in one piece and as they are.
    """
    data = member(group, name)
    if not isinstance(data, h5py.Dataset):
        raise TypeError(f"{name} is no array")
    if data.dtype != numpy.dtype(dtype) or data.shape is None or data.ndim != dimensions:
        raise ValueError(f"{name} is not {dtype} of {dimensions} dimensions")
    if data.is_virtual or data.external:
        raise ValueError(f"the values of {name} are in another file")
    # Of this layout alone HDF5 has no filters, which take memory that the file does not hold.
    if data.id.get_create_plist().get_layout() != h5py.h5d.CONTIGUOUS:
        raise ValueError(f"the values of {name} do not lie in one piece")
    size = math.prod(data.shape) * data.dtype.itemsize
    if size > data.id.get_storage_size():
        raise ValueError(f"{name} claims {size} bytes, which the file does not hold")
    return data


def pieces(data: h5py.Dataset) -> Iterator[numpy.ndarray]:
    """The values of a dataset in order, some rows at a time."""
    if not data.ndim or not data.size:
        yield data[()]
        return
    rows = max(1, PIECE // (data.nbytes // data.shape[0]))
    for start in range(0, data.shape[0], rows):
        yield data[start : start + rows]


def checksum(arrays: Iterable[tuple[str, h5py.Dataset]], *, finite: bool = False) -> str:
    """SHA-256 over names, types, shapes and values, which may have to be ``finite``."""
    digest = hashlib.sha256()
    for name, data in arrays:
        digest.update(f"{name} {data.dtype.str} {data.shape}".encode())
        for piece in pieces(data):
            if finite and not numpy.isfinite(piece).all():
                raise ValueError(f"{name} has a value that is not finite")
            digest.update(numpy.ascontiguousarray(piece).tobytes())
    return digest.hexdigest()
