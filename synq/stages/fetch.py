"""Pretrained weights from a path or an URL, verified, as a teacher."""

import shutil
import time
from pathlib import Path

import requests

from synq.artifacts import atomic, file_sha256
from synq.config import Model
from synq.errors import ArtifactError
from synq.models import build, load_weights, read_weights
from synq.networks import write_teacher
from synq.runtime import progress

ATTEMPTS = 4
TIMEOUT = 30  # seconds without a byte
BLOCK = 1 << 20


def fetch(*, name: str, settings: Model, download: Path, output: Path) -> None:
    """Bring the weights to ``download``, check their SHA-256, and write the teacher."""
    wanted = settings.sha256.lower()
    if not (download.is_file() and file_sha256(download) == wanted):
        with atomic(download) as temporary:
            if settings.weights.startswith(("http://", "https://")):
                _download(settings.weights, temporary)
            else:
                _copy(Path(settings.weights), temporary)
            actual = file_sha256(temporary)
            if actual != wanted:
                raise ArtifactError(
                    f"{settings.weights} has SHA-256 {actual}, expected {wanted}; "
                    "correct sha256 if you trust the file, or bring the right one"
                )
    model = build(settings.architecture, settings.classes, settings.channels, settings.image_size)
    load_weights(model, read_weights(download), settings.weights)
    write_teacher(
        output,
        model.state_dict(),
        settings,
        name=name,
        mean=settings.mean,
        std=settings.std,
        origin=f"{settings.weights} sha256:{wanted}",
    )


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise ArtifactError(f"{source} cannot be read: {error.strerror}") from None


def _download(url: str, target: Path) -> None:
    """The file behind an URL; a broken connection goes on where it broke, where the server can."""
    reason = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(2**attempt / 4)
        done = target.stat().st_size if target.exists() else 0
        headers = {"Range": f"bytes={done}-"} if done else {}
        try:
            with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as answer:
                if 400 <= answer.status_code < 500 and answer.status_code not in (408, 416, 429):
                    raise ArtifactError(f"{url} answers {answer.status_code} {answer.reason}")
                answer.raise_for_status()
                resumed = answer.status_code == 206
                expected = int(answer.headers.get("Content-Length", 0))
                with open(target, "ab" if resumed else "wb") as file:
                    blocks = answer.iter_content(BLOCK)
                    size = sum(
                        file.write(block)
                        for block in progress(blocks, "download", -(-expected // BLOCK) or None)
                    )
                if expected and size < expected:
                    raise requests.ConnectionError(f"it ended after {size} of {expected} bytes")
                return
        except requests.RequestException as error:
            reason = str(error)
    raise ArtifactError(f"{url} could not be downloaded in {ATTEMPTS} attempts: {reason}")
