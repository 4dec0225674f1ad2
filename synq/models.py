"""Networks by the name of their architecture, and weights that are known to fit them."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytorchcv
import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from synq.config import nearest
from synq.errors import ModelError

# pytorchcv.model_provider imports every family, and with one of them torchvision, whose compiled
# part must match torch's. The families themselves need neither, so the one that defines the name
# is imported alone.
_DEFINITION = re.compile(r"^def (?!get_|lambda_|create_|calc_)([a-z0-9_]+)\(", re.MULTILINE)


def architectures() -> dict[str, str]:
    """Name -> module of every architecture of pytorchcv."""
    folder = Path(pytorchcv.__file__).parent / "models"
    found: dict[str, str] = {}
    for file in sorted(folder.glob("*.py")):
        for name in _DEFINITION.findall(file.read_text("utf-8")):
            found.setdefault(name, f"pytorchcv.models.{file.stem}")
    return found


def build(architecture: str, classes: int, channels: int, image_size: int) -> nn.Module:
    """A network with random weights that maps ``[N, channels, size, size]`` to ``[N, classes]``."""
    known = architectures()
    if architecture not in known:
        raise ModelError(
            f"architecture is {architecture!r}, which pytorchcv does not have; "
            f"{nearest(architecture, known) if len(known) < 20 else _closest(architecture, known)}"
        )
    make = getattr(importlib.import_module(known[architecture]), architecture)
    size = (image_size, image_size)
    try:
        model = make(num_classes=classes, in_channels=channels, in_size=size, pretrained=False)
        model.eval()
        with torch.no_grad():
            shape = tuple(model(torch.zeros(2, channels, *size)).shape)
    except (TypeError, RuntimeError, AssertionError, ValueError) as error:
        raise ModelError(
            f"{architecture} cannot be built for {classes} classes of {channels}x{image_size}x"
            f"{image_size} images: {(str(error) or repr(error)).splitlines()[0]}"
        ) from None
    if shape != (2, classes):
        raise ModelError(
            f"{architecture} gives {list(shape)} for 2 images of {image_size} px, not "
            f"[2, {classes}]; is image_size the size it was made for?"
        )
    return model  # type: ignore[no-any-return]


def _closest(name: str, known: Mapping[str, str]) -> str:
    text = nearest(name, known)
    return text if text.startswith("did") else "the names are those of pytorchcv.model_provider"


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> None:
    """Load a state dict that must fit exactly; ModelError names the first keys that do not."""
    wanted = model.state_dict()
    # Checkpoints from before the counter existed lack it, and evaluation does not read it.
    optional = {name for name in wanted if name.endswith("num_batches_tracked")}
    missing = sorted(set(wanted) - set(tensors) - optional)
    surplus = sorted(set(tensors) - set(wanted))
    shapes = [
        f"{name} {list(tensors[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    for what, names in (("lacks", missing), ("has unknown", surplus), ("has other shapes", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(f"{origin} {what}: {', '.join(names[:3])}{more}")
    model.load_state_dict(dict(tensors), strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors or a torch file, without running code from it."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except safetensors.SafetensorError as error:
        raise ModelError(f"{path} cannot be read as safetensors ({error})") from None
    except Exception as error:  # torch.load raises whatever a damaged file makes it raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ModelError(f"{path} cannot be read as a state dict ({reason})") from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(f"{path} holds no state dict (a mapping of names to tensors)")
    return content


def batchnorms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Name -> BatchNorm layer; ModelError where there is none with running statistics."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    }
    if not layers:
        raise ModelError(
            "the model has no BatchNorm layer with running statistics to synthesize images from "
            "(a transformer does without, by synthesis.prior: patches)"
        )
    return layers


def frozen(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, its parameters without gradients."""
    return model.eval().requires_grad_(False)
