"""timm's networks and weights, where timm is installed."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from torch import Tensor, nn

from synq.config.model import Model
from synq.config.pytorchcv_table import File
from synq.errors import ConfigError, ModelError, nearest, reason
from synq.models.build import checked

# As torch.hub has it, a name may end in the beginning of the file's SHA-256.
_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
WEIGHTS = "model.safetensors"  # what timm's own files are called, where nothing else is said


def from_timm(architecture: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """A network of timm by its name, with or without the tag of its weights."""
    timm = _timm(architecture)
    return checked(
        lambda: timm.create_model(architecture, num_classes=classes, in_chans=channels),
        f"timm's {architecture}",
        classes,
        channels,
        image_size,
    )


def timm_file(settings: Model) -> tuple[File, Model]:
    """The file of the weights, and the settings with what timm's ``pretrained_cfg`` knows.

    It is checked by ``sha256``, or by the hash in its name. Raises ConfigError where there is
    neither, or where classes and channels are others.
    """
    known = _pretrained(settings)
    name = f"{known['architecture']}.{known['tag']}" if known["tag"] else known["architecture"]
    channels, height, width = known["input_size"]
    for what, own, its in (
        ("classes", settings.classes, known["num_classes"]),
        ("channels", settings.channels, channels),
    ):
        if own != its:
            raise ConfigError(f"timm's {name} has {its} {what}, not {own}; write {what}: {its}")
    if height != width and not settings.image_size:
        raise ConfigError(f"timm's {name} takes {height}x{width} px; write image_size of squares")
    return _file(name, known, settings), replace(
        settings,
        weights=name,
        image_size=settings.image_size or height,
        mean=settings.mean or tuple(known["mean"]),
        std=settings.std or tuple(known["std"]),
    )


def timm_keys(architecture: str, tensors: Mapping[str, Tensor], classes: int) -> dict[str, Tensor]:
    """A state dict as its authors published it, under the names that timm's network has."""
    timm = _timm(architecture)
    try:
        # timm itself converts what others have published.
        network = timm.create_model(
            architecture,
            pretrained=True,
            num_classes=classes,
            pretrained_cfg_overlay={"state_dict": dict(tensors)},
        )
    except Exception as error:  # a conversion raises whatever the keys make it raise
        text = " ".join(str(error).split()) or reason(error)
        raise ModelError(f"the weights are not those of timm's {architecture} ({text})") from None
    state: dict[str, Tensor] = network.state_dict()
    return state


def _pretrained(settings: Model) -> dict[str, Any]:
    timm = _timm(settings.architecture)
    architecture, _, tag = settings.architecture.partition(".")
    tag = settings.weights or tag
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise ConfigError(
            f"weights is {tag!r}, which timm's {architecture} does not have; {nearest(tag, tags)}"
        )
    cfg = timm.get_pretrained_cfg(f"{architecture}.{tag}" if tag else architecture)
    known: dict[str, Any] = cfg.to_dict(remove_null=False) if cfg else {}
    if not (known.get("url") or known.get("hf_hub_id")) or known["custom_load"]:
        raise ConfigError(
            f"timm has no weights of {settings.architecture} in a file of torch; "
            "build it by source: python"
        )
    return known


def _file(name: str, known: Mapping[str, Any], settings: Model) -> File:
    url = known["url"] if isinstance(known["url"], str) else ""
    found = _HASH.search(urlsplit(url).path)
    if not found and known["hf_hub_id"]:
        # It comes with timm.
        from huggingface_hub import hf_hub_url

        url = hf_hub_url(known["hf_hub_id"], known["hf_hub_filename"] or WEIGHTS)
    if not found and not settings.sha256:
        raise ConfigError(
            f"sha256 is missing: timm knows none of {url}; the page of the file has it, and "
            "`sha256sum FILE` prints it"
        )
    path = urlsplit(url).path
    address = settings.mirror.rstrip("/") + path if settings.mirror else url
    stored = PurePosixPath(path).name if found else f"{name}{PurePosixPath(path).suffix}"
    digest = settings.sha256.lower() or (found[1] if found else "")
    return File(stored, address, "sha256", digest)


def _timm(architecture: str) -> ModuleType:
    """The module timm, which has this network."""
    try:
        import timm
    except (ImportError, OSError, RuntimeError) as error:
        raise ModelError(
            f"source is timm, which cannot be imported here ({reason(error)}); pip install timm"
        ) from None
    name = architecture.partition(".")[0]
    if not timm.is_model(name):
        close = nearest(name, timm.list_models())
        hint = close if close.startswith("did") else "timm.list_models() has their names"
        raise ModelError(f"architecture is {architecture!r}, which timm does not have; {hint}")
    return timm  # type: ignore[no-any-return]
