"""Pretrained weights from a path, an URL or a zoo, verified, as a teacher."""

import dataclasses
from pathlib import Path

from synq.config import pytorchcv_table as zoo
from synq.config.model import Model
from synq.errors import ConfigError
from synq.io.download import bring, stored
from synq.models.layout import layout_of
from synq.models.outputs import told
from synq.models.sources import construct, torchvision_keys, torchvision_weights
from synq.models.teacher import write_teacher
from synq.models.weights import load_weights, read_weights


def fetch(*, name: str, settings: Model, download: Path, output: Path) -> None:
    """Bring the weights to ``download``, check their SHA-256, and write the teacher."""
    if not settings.sha256:
        raise _wrong_command(settings)
    sha256 = settings.sha256.lower()
    bring(settings.weights, download, sha256)
    _write(name, settings, download, settings.weights, f"sha256:{sha256}", output)


def fetch_zoo(*, name: str, settings: Model, output: Path) -> None:
    """Bring a zoo's weights into the store, check them, and write the teacher."""
    if settings.source == "pytorchcv":
        file = zoo.file(settings.architecture, settings.weights, settings.mirror)
    elif settings.source == "torchvision":
        found = torchvision_weights(settings.architecture, settings.weights, settings.mirror)
        file = found.file
        settings = dataclasses.replace(
            settings,
            weights=found.name,
            image_size=settings.image_size or found.image_size,
            mean=settings.mean or found.mean,
            std=settings.std or found.std,
        )
        print(f"{found.name} of torchvision: {settings.image_size} px")
    else:
        raise _wrong_command(settings)
    path = stored(file, Path(settings.store).expanduser())
    _write(name, settings, path, file.url, f"{file.algorithm}:{file.digest}", output)


def _wrong_command(settings: Model) -> ConfigError:
    return ConfigError(
        f"source is {settings.source}; fetch is for file and python, fetch-zoo for pytorchcv and "
        "torchvision"
    )


def _write(
    name: str, settings: Model, weights: Path, origin: str, digest: str, output: Path
) -> None:
    model = construct(
        settings.source,
        settings.architecture,
        settings.factory,
        classes=settings.classes,
        channels=settings.channels,
        image_size=settings.image_size,
    )
    tensors = read_weights(weights)
    if settings.source == "torchvision":
        tensors = torchvision_keys(tensors)
    note = load_weights(model, tensors, origin)
    if note:
        print(note)
    changes = told(model)
    if changes:
        print(f"the logits are {', '.join(changes)}")
    image_shape = (settings.channels, settings.image_size, settings.image_size)
    write_teacher(
        output,
        model.state_dict(),
        settings,
        name=name,
        mean=settings.mean,
        std=settings.std,
        origin=f"{origin} {digest}",
        memory_format=layout_of(model, image_shape),
        output=changes,
    )
