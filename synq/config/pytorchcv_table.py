"""What pytorchcv's zoo has: the file of a network's weights, and what its input looks like.

pytorchcv lists its files in a table inside the package. It is read without importing pytorchcv,
for the Snakefile imports this module, and must not wait for torch.
"""

import csv
import functools
import importlib.util
from pathlib import Path
from typing import Any, NamedTuple

from synq.errors import ConfigError, nearest

ADDRESS = "https://github.com/osmr/imgclsmob"


IMAGENET = {
    "classes": 1000,
    "image_size": 224,
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}


# The training programs of this zoo normalise all three alike.
CIFAR = {"image_size": 32, "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}


# By the end of the name: the table says "cf" for all of them.
SMALL = {
    "_cifar10": {"classes": 10, **CIFAR},
    "_cifar100": {"classes": 100, **CIFAR},
    "_svhn": {"classes": 10, **CIFAR},
}


class File(NamedTuple):
    """A file of a zoo: its name, where it is, and the beginning of its hash or all of it."""

    name: str
    url: str
    algorithm: str
    digest: str


class Release(NamedTuple):
    """A file of pytorchcv's: name of the network, its full SHA-1, and the release that has it."""

    architecture: str
    sha1: str
    tag: str


# Files that pytorchcv has replaced by better ones. Zero-shot quantization is measured on this
# ResNet-18, of 71.47 % top-1, which pytorchcv had until 0.0.58.
FORMER = {
    "resnet18-0982-0126861b": Release(
        "resnet18", "0126861b4cd7f7b14196b1e01827da688f8bab6d", "v0.0.153"
    ),
}


@functools.cache
def table() -> dict[str, dict[str, str]]:
    """Name -> row of pytorchcv's table of networks; NA stands for what it does not know."""
    package = importlib.util.find_spec("pytorchcv")
    places = (package.submodule_search_locations if package else None) or []
    for place in places:
        path = Path(place, "models", "common", "model_metainfos.csv")
        if path.is_file():
            with open(path, newline="", encoding="utf-8") as file:
                return {row["model_name"]: row for row in csv.DictReader(file)}
    raise ConfigError(
        "source is pytorchcv, whose table is not here; pip install 'pytorchcv>=0.0.71'"
    )


def releases(architecture: str) -> dict[str, Release]:
    """Name, without its suffix -> each file of a network's weights, pytorchcv's own one first."""
    row = _row(architecture)
    own = {}
    if row["checksum"] != "NA":
        name = f"{architecture}-{row['error_value']}-{row['checksum'][:8]}"
        own[name] = Release(architecture, row["checksum"], row["repo_release_tag"])
    former = {name: file for name, file in FORMER.items() if file.architecture == architecture}
    return own | former


def known(architecture: str, weights: str = "") -> dict[str, Any]:
    """The settings of a model that follow from its name; those the table does not know are absent.

    Raises ConfigError for a network that the zoo does not have, or has no weights of.
    """
    row = _row(architecture)
    files = releases(architecture)
    if not files:
        raise ConfigError(
            f"architecture is {architecture!r}, of which pytorchcv has no pretrained weights; "
            "use source: file for your own"
        )
    if weights and weights not in files:
        raise ConfigError(
            f"weights is {weights!r}, which is no file of pytorchcv's {architecture}; "
            f"there is {', '.join(files)}"
        )
    found = {"weights": weights or next(iter(files))}
    if row["test_dataset"] == "in1k":
        size = row["img_size"]
        return found | IMAGENET | ({} if size == "NA" else {"image_size": int(size)})
    for end, settings in SMALL.items():
        if architecture.endswith(end):
            return found | settings
    return found


def file(architecture: str, weights: str, mirror: str = "") -> File:
    """The file to download, a zip of the weights; ``mirror`` stands for the zoo's address."""
    release = releases(architecture)[weights]
    name = f"{weights}.pth"
    base = (mirror or ADDRESS).rstrip("/")
    url = f"{base}/releases/download/{release.tag}/{name}.zip"
    return File(name, url, "sha1", release.sha1)


def _row(architecture: str) -> dict[str, str]:
    rows = table()
    if architecture not in rows:
        close = nearest(architecture, rows)
        hint = close if close.startswith("did") else "the names are those of its README"
        raise ConfigError(f"architecture is {architecture!r}, not in pytorchcv's zoo; {hint}")
    return rows[architecture]
