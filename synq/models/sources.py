"""Networks of every source: pytorchcv's, torchvision's, timm's, and the user's own function's."""

import dataclasses
import importlib
import os
import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from torch import Tensor, nn

from synq.config import pytorchcv_table
from synq.config.model import Model
from synq.config.pytorchcv_table import File
from synq.errors import ConfigError, ModelError, nearest, reason
from synq.models.build import build, checked
from synq.models.timm_zoo import from_timm, timm_file, timm_keys

# The names of torchvision's files end in the beginning of their SHA-256.
_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+")


# With their weights, torchvision builds these two otherwise than without.
_WITH_WEIGHTS = {
    name: {"transform_input": True, "aux_logits": True, "init_weights": False}
    for name in ("googlenet", "inception_v3")
}


# The files of its DenseNets are older than the names of their layers.
_FORMER = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


class Pretrained(NamedTuple):
    """Weights of torchvision: their file, and what the network's input looks like."""

    name: str
    file: File
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def construct(
    source: str, architecture: str, factory: str, *, classes: int, channels: int, image_size: int
) -> nn.Module:
    """A network without its weights, ``[N, channels, size, size]`` to ``[N, classes]``."""
    if source == "torchvision":
        return from_torchvision(architecture, classes, channels, image_size)
    if source == "timm":
        return from_timm(architecture, classes, channels, image_size)
    if source == "python":
        return from_python(factory, classes, channels, image_size)
    return build(architecture, classes, channels, image_size)


def zoo_file(settings: Model) -> tuple[File, Model]:
    """The file of a zoo's weights, and the settings with what the zoo alone knows."""
    if settings.source == "pytorchcv":
        file = pytorchcv_table.file(settings.architecture, settings.weights, settings.mirror)
        return file, settings
    if settings.source == "torchvision":
        found = torchvision_weights(settings.architecture, settings.weights, settings.mirror)
        return found.file, dataclasses.replace(
            settings,
            weights=found.name,
            image_size=settings.image_size or found.image_size,
            mean=settings.mean or found.mean,
            std=settings.std or found.std,
        )
    if settings.source == "timm":
        return timm_file(settings)
    raise ConfigError(f"source is {settings.source}, which is no zoo; use fetch")


def own_keys(settings: Model, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of a source under the names that the source's networks have."""
    if settings.source == "timm":
        return timm_keys(settings.architecture, tensors, settings.classes)
    return torchvision_keys(tensors) if settings.source == "torchvision" else dict(tensors)


def from_torchvision(architecture: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """A classifier of torchvision by its name."""
    models = _torchvision(architecture)
    more = _WITH_WEIGHTS.get(architecture, {})
    return checked(
        lambda: models.get_model(architecture, weights=None, num_classes=classes, **more),
        f"torchvision's {architecture}",
        classes,
        channels,
        image_size,
    )


def torchvision_weights(architecture: str, weights: str, mirror: str = "") -> Pretrained:
    """What torchvision says of weights; empty ``weights`` are its default ones.

    ``mirror`` stands for the scheme and host of the file's address.
    """
    entries = _torchvision(architecture).get_model_weights(architecture)
    name = weights or entries.DEFAULT.name
    if name not in entries.__members__:
        raise ModelError(
            f"weights is {name!r}, which torchvision's {architecture} does not have; "
            f"there is {', '.join(entry.name for entry in entries)}"
        )
    entry = entries[name]
    path = urlsplit(entry.url).path
    file = path.rpartition("/")[2]
    found = _HASH.search(file)
    if not found:
        raise ModelError(f"{entry.url} has no hash in its name to check it by; use source: file")
    url = mirror.rstrip("/") + path if mirror else entry.url
    transforms = entry.transforms()
    return Pretrained(
        entry.name,
        File(file, url, "sha256", found[1]),
        transforms.crop_size[0],
        tuple(transforms.mean),
        tuple(transforms.std),
    )


def torchvision_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of torchvision's under the names that its networks have now."""
    return {_FORMER.sub(r"\1\2", name): tensor for name, tensor in tensors.items()}


def from_python(factory: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """What a function of the user's own returns, given as ``package.module:function``."""
    model = call_factory(factory)
    return checked(lambda: model, factory, classes, channels, image_size)


def call_factory(factory: str) -> nn.Module:
    """The network that ``package.module:function`` returns; ModelError where it is none."""
    module, _, name = factory.partition(":")
    # As `python -m` does and the installed command does not: the folder of the job comes first.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function: Any = importlib.import_module(module)
    except Exception as error:  # a module's own code raises whatever it likes
        raise ModelError(
            f"factory is {factory!r}, but {module} cannot be imported ({reason(error)}); "
            "run from the folder that holds it, or install it"
        ) from None
    for part in name.split("."):
        if not hasattr(function, part):
            raise ModelError(
                f"factory is {factory!r}, but {module} has no {name}; {_close(part, function)}"
            )
        function = getattr(function, part)
    try:
        model = function()
    except Exception as error:  # and so does a function
        raise ModelError(
            f"factory {factory} raises {type(error).__name__}: {reason(error)}"
        ) from None
    if not isinstance(model, nn.Module):
        raise ModelError(
            f"factory {factory} returns a {type(model).__name__}, not a torch.nn.Module"
        )
    return model


def _close(name: str, owner: Any) -> str:
    """The nearest name of what can be called, or all that can."""
    public = [key for key, value in vars(owner).items() if callable(value) and key[0] != "_"]
    return nearest(name, public)


def _torchvision(architecture: str) -> ModuleType:
    """torchvision.models, which has this classifier."""
    try:
        from torchvision import models
    # Beside a torch of another build it raises what its compiled part makes it raise.
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"source is torchvision, which cannot be imported here ({reason(error)}); install "
            "torch and torchvision of the same build, or use source: pytorchcv"
        ) from None
    names = models.list_models(module=models)
    if architecture not in names:
        raise ModelError(
            f"architecture is {architecture!r}, which torchvision does not have; "
            f"{nearest(architecture, names)}"
        )
    return models
