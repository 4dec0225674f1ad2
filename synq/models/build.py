"""Networks by the name of their architecture in pytorchcv."""

import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

import pytorchcv
import torch
from torch import Tensor, nn

from synq.errors import ModelError, UserError, nearest, reason
from synq.models.outputs import settle
from synq.models.structure import check_own, plain
from synq.models.weights import check_numbers

# pytorchcv.model_provider imports every family, and with one of them torchvision, whose compiled
# part must match torch's. The families themselves need neither, so the one that defines the name
# is imported alone.
_DEFINITION = re.compile(r"^def (?!get_|lambda_|create_|calc_)([a-z0-9_]+)\(", re.MULTILINE)

# The share of the largest logit by which two forwards of the same image may differ.
REPEATED = 1e-2


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
    return checked(
        lambda: make(num_classes=classes, in_channels=channels, in_size=size, pretrained=False),
        architecture,
        classes,
        channels,
        image_size,
    )


def checked(
    make: Callable[[], nn.Module], name: str, classes: int, channels: int, image_size: int
) -> nn.Module:
    """What ``make`` returns, in evaluation mode, if it is such a classifier; else ModelError."""
    try:
        made = make()
        check_own(made, name)
        model = plain(made).eval()
        check_numbers(model, name)
        with torch.no_grad():
            generator = torch.Generator().manual_seed(0)
            images = torch.rand((2, channels, image_size, image_size), generator=generator)
            logits = settle(model, images.clone(), classes, name)
            again, alone = model(images.clone()), model(images[:1].clone())
    except UserError:
        raise
    except Exception as error:  # a network's own code raises whatever it likes
        raise ModelError(
            f"{name} cannot be built for {classes} classes of {channels}x{image_size}x"
            f"{image_size} images: {reason(error)}"
        ) from None
    found = list(logits.shape) if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
    if found != [2, classes]:
        raise ModelError(
            f"{name} gives {found} for 2 images of {image_size} px, not [2, {classes}]; "
            + (
                f"classes is {classes}, write {found[1]}"
                if len(found) == 2 and found[0] == 2
                else "is image_size the size it was made for?"
            )
        )
    if not _alike(logits, again):
        raise ModelError(
            f"{name} gives other logits for the same images a second time, in evaluation too; what "
            "is drawn at random (F.dropout without training=self.training) has to be off there"
        )
    if not _alike(logits[:1], alone):
        raise ModelError(
            f"{name} gives other logits for an image alone than beside another one; what looks at "
            "a whole batch (a BatchNorm layer without running statistics) has no place in it"
        )
    return model


def _alike(logits: Tensor, others: Tensor) -> bool:
    """Whether they differ by rounding alone."""
    return logits.shape == others.shape and torch.allclose(
        logits.float(),
        others.float(),
        rtol=0,
        atol=REPEATED * float(logits.abs().max()),
        equal_nan=True,
    )


def _closest(name: str, known: Mapping[str, str]) -> str:
    text = nearest(name, known)
    return text if text.startswith("did") else "the names are those of pytorchcv.model_provider"


def frozen(model: nn.Module) -> nn.Module:
    """The model in evaluation mode, its parameters without gradients."""
    return model.eval().requires_grad_(False)
