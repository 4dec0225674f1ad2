"""Pretrained weights from a path, an URL or a zoo, verified, as a teacher."""

from pathlib import Path

from synq.config.model import MODEL_SETTINGS, Model
from synq.errors import ConfigError
from synq.io.download import bring, stored
from synq.models.build import frozen
from synq.models.layout import layout_of
from synq.models.outputs import told
from synq.models.sources import construct, own_keys, zoo_file
from synq.models.teacher import answers_of, write_teacher
from synq.models.weights import load_weights, read_weights


def fetch(*, name: str, settings: Model, download: Path, output: Path) -> None:
    """Bring the weights to ``download``, check their SHA-256, and write the teacher."""
    if "mirror" in MODEL_SETTINGS[settings.source]:
        raise ConfigError(f"source is {settings.source}, which is a zoo; use fetch-zoo")
    sha256 = settings.sha256.lower()
    bring(settings.weights, download, sha256)
    _write(name, settings, download, settings.weights, f"sha256:{sha256}", output)


def fetch_zoo(*, name: str, settings: Model, output: Path) -> None:
    """Bring a zoo's weights into the store, check them, and write the teacher."""
    file, settings = zoo_file(settings)
    print(f"{settings.weights or file.name} of {settings.source}: {settings.image_size} px")
    path = stored(file, Path(settings.store).expanduser())
    _write(name, settings, path, file.url, f"{file.algorithm}:{file.digest}", output)


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
    tensors = own_keys(settings, read_weights(weights, origin))
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
        answers=answers_of(frozen(model), image_shape, settings.mean, settings.std),
    )
