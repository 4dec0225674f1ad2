"""Files from elsewhere: downloads that go on after a break, and a store that several jobs share."""

import contextlib
import hashlib
import importlib.util
import shutil
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import requests
import urllib3
from filelock import FileLock

from synq.config.pytorchcv_table import File
from synq.errors import ArtifactError
from synq.io.artifacts import atomic, file_sha256
from synq.runtime.progress import progress

ATTEMPTS = 4


TIMEOUT = 30  # seconds without a byte


WINDOW = 60  # seconds over which the speed is measured


SLOWEST = 1000  # bytes a second; a server that sends less has as good as stopped


BLOCK = 1 << 20


PACKAGE = "package:"  # what the address of a file in a package begins with


def bring(origin: str, target: Path, sha256: str) -> None:
    """The file behind a path or URL, at ``target`` if its SHA-256 is right; not twice.

    ``package:NAME/path`` is a file inside an installed package, wherever that is.
    """
    if target.is_file() and file_sha256(target) == sha256:
        return
    with atomic(target) as temporary:
        if origin.startswith(("http://", "https://")):
            _download(origin, temporary)
        elif origin.startswith(PACKAGE):
            _copy(_in_package(origin), temporary)
        else:
            _copy(Path(origin), temporary)
        actual = file_sha256(temporary)
        if actual != sha256:
            raise ArtifactError(
                f"{origin} has SHA-256 {actual}, expected {sha256}; "
                "correct sha256 if you trust the file, or bring the right one"
            )


def stored(file: File, store: Path) -> Path:
    """The path of a zoo's file in the store; it is downloaded if it is not there.

    A file in the store is whole, for it gets its name last. Its hash is checked all the same, and
    a wrong one is never overwritten: somebody put it there.
    """
    path = store / file.name
    if not path.exists():
        with _locked(path):
            if not path.exists():  # another process may have brought it meanwhile
                _bring_into(path, file)
    wrong = _difference(path, file)
    if wrong:
        raise ArtifactError(f"{path} {wrong}; delete it to have it downloaded again")
    return path


def _bring_into(path: Path, file: File) -> None:
    """Download to a name of its own, where the next one goes on after a break, and take it."""
    # By the file's own name: a zoo may call all of its files the same.
    zipped = ".zip" * file.url.endswith(".zip")
    part = path.with_name(f".{file.name}{zipped}.part")
    try:
        _download(file.url, part)
        try:
            _take(part, path, file)
        finally:
            part.unlink(missing_ok=True)
    except ArtifactError as error:
        unzip = ", unzip it" if file.url.endswith(".zip") else ""
        raise ArtifactError(
            f"{error}; download it elsewhere{unzip} and put {file.name} into {path.parent}"
        ) from None
    except OSError as error:
        raise ArtifactError(f"{path} cannot be written: {error.strerror}") from None


def _take(part: Path, path: Path, file: File) -> None:
    """Unzip and check a whole download, and give it its name."""
    with atomic(path) as temporary:
        if file.url.endswith(".zip"):
            try:
                with zipfile.ZipFile(part) as archive:
                    temporary.write_bytes(archive.read(file.name))
            except (zipfile.BadZipFile, KeyError, EOFError, zlib.error):
                raise ArtifactError(f"{file.url} is no zip file with {file.name} inside") from None
        else:
            part.replace(temporary)
        wrong = _difference(temporary, file)
        if wrong:
            raise ArtifactError(f"{file.url} {wrong}")


def _difference(path: Path, file: File) -> str:
    """What is wrong with the file's hash, if anything."""
    try:
        with open(path, "rb") as content:
            actual = hashlib.file_digest(content, file.algorithm).hexdigest()
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if actual.startswith(file.digest):
        return ""
    return f"has {file.algorithm.upper()} {actual}, expected {file.digest}"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Wait until no other process brings the same file. The lock dies with its process."""
    lock = FileLock(path.with_name(f"{path.name}.lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except OSError as error:
        raise ArtifactError(
            f"{lock.lock_file} cannot be written: {error.strerror}; "
            "let store name a folder that can, or has the file"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _in_package(origin: str) -> Path:
    """The path of ``package:NAME/path``."""
    name, _, path = origin.removeprefix(PACKAGE).partition("/")
    # Without importing it: nothing but its place is wanted.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ArtifactError(f"{origin} is in no package that is installed here")
    return Path(spec.submodule_search_locations[0]) / path


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ArtifactError(f"{source} cannot be read: {error.strerror}") from None


def _download(url: str, target: Path) -> None:
    """The file behind an URL; a broken connection goes on where it broke, where the server can."""
    why = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2**attempt / 4)
        done = target.stat().st_size if target.exists() else 0
        headers = {"Range": f"bytes={done}-"} if done else {}
        try:
            with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
                if answer.status_code == 416:  # what is there is not a part of what is wanted
                    target.unlink(missing_ok=True)
                if 400 <= answer.status_code < 500 and answer.status_code not in (408, 416, 429):
                    raise ArtifactError(f"{url} answers {answer.status_code} {answer.reason}")
                answer.raise_for_status()
                resumed = answer.status_code == 206
                expected = int(answer.headers.get("Content-Length", 0))
                with open(target, "ab" if resumed else "wb") as file:
                    blocks = -(-expected // BLOCK) or None
                    size = sum(progress(_written(answer, file), "download", blocks))
                if expected and size < expected:
                    raise requests.ConnectionError(f"it ended after {size} of {expected} bytes")
                return
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            why = (str(error) or repr(error)).splitlines()[0]
    raise ArtifactError(f"{url} could not be downloaded in {ATTEMPTS} attempts: {why}")


def _written(answer: requests.Response, file: BinaryIO) -> Iterator[int]:
    """Write what comes as soon as it comes; the number of bytes, about every ``BLOCK``.

    ConnectionError where less than ``SLOWEST`` bytes a second come over ``WINDOW`` seconds: one
    byte now and then keeps ``TIMEOUT`` from ever ending.
    """
    block = window = 0
    start = time.monotonic()
    # Not iter_content, which waits until it has a whole block.
    while piece := answer.raw.read1(BLOCK, decode_content=True):
        file.write(piece)
        block += len(piece)
        window += len(piece)
        seconds = time.monotonic() - start
        if seconds >= WINDOW:
            if window < SLOWEST * seconds:
                raise requests.ConnectionError(f"only {window} bytes came in {seconds:.0f} s")
            start, window = time.monotonic(), 0
        if block >= BLOCK:
            yield block
            block = 0
    yield block
