"""Where a classifier comes from and what its input looks like."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from synq.config import pytorchcv_table as zoo
from synq.config.fields import setting, settings_of
from synq.errors import ConfigError

FACTORY = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
# No deviation of images in [0, 1] is so large, nor is a factor that somebody scales them by.
OF_BYTES = 10


@dataclass(frozen=True, kw_only=True)
class Model:
    """Where a classifier comes from and what its input looks like.

    What a zoo knows need not be given. What torchvision or timm alone know stays empty until the
    weights are fetched: the input's size, mean and standard deviation.
    """

    source: str = setting(
        text="file: weights from a path or URL; pytorchcv, torchvision, timm: from their zoos; "
        "python: built by your own function, weights from a file",
        choices=("file", "pytorchcv", "torchvision", "timm", "python"),
    )
    architecture: str = setting("", "name of a pytorchcv, torchvision or timm model, e.g. resnet18")
    factory: str = setting(
        "", "package.module:function, which returns the network without weights (source: python)"
    )
    classes: int = setting(0, "number of classes; a zoo knows it", minimum=2, maximum=1_000_000)
    channels: int = setting(3, "channels of the input image", minimum=1)
    image_size: int = setting(
        0, "height and width of the input; a zoo knows it", unit="px", minimum=8
    )
    mean: tuple[float, ...] = setting((), "mean of each input channel, of images in [0, 1]")
    std: tuple[float, ...] = setting((), "standard deviation of each input channel", above=0)
    weights: str = setting(
        "",
        "path or http(s) URL of the state dict, or package:NAME/path of a file in a package "
        "(source: file, python); name of the zoo's file or entry, e.g. IMAGENET1K_V1, where it is "
        "not the newest one",
    )
    sha256: str = setting(
        "",
        "SHA-256 of that file, 64 hexadecimal digits (source: file, python; timm, where it knows "
        "none)",
    )
    store: str = setting("~/.cache/synq", "folder that keeps the files of the zoos")
    mirror: str = setting(
        "", "http(s) URL to use in place of the zoo's https://github.com/osmr/imgclsmob or host"
    )

    def __post_init__(self) -> None:
        reads = MODEL_SETTINGS[self.source]
        read_by_some = {name for names in MODEL_SETTINGS.values() for name in names}
        for name in settings_of(Model):
            if name in read_by_some - set(reads) and getattr(self, name):
                raise ConfigError(f"{name} has no meaning with source: {self.source}; remove it")
        if self.architecture:
            self._complete()
        missing = [name for name in settings_of(Model) if reads.get(name) and self._lacks(name)]
        if missing:
            are = "is" if len(missing) == 1 else "are"
            it = "it" if len(missing) == 1 else "them"
            raise ConfigError(
                f"{', '.join(missing)} {are} missing; source: {self.source} needs {it}"
                + (f" for {self.architecture}" if self.source == "pytorchcv" else "")
            )
        for name in ("mean", "std"):
            if getattr(self, name) and len(getattr(self, name)) != self.channels:
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} values, but the images have "
                    f"{self.channels} channels; give one value a channel"
                )
        if max(self.mean, default=0) > 1 or max(self.std, default=0) > OF_BYTES:
            raise ConfigError(
                f"mean is {list(self.mean)} and std {list(self.std)}, as of images in [0, 255]; "
                "they are of images in [0, 1]: divide both by 255"
            )
        digits = self.sha256.lower()
        if self.sha256 and (len(digits) != 64 or set(digits) - set("0123456789abcdef")):
            raise ConfigError("sha256 is not 64 hexadecimal digits; `sha256sum FILE` prints it")
        if self.factory and not FACTORY.fullmatch(self.factory):
            raise ConfigError(f"factory is {self.factory!r}; write it as package.module:function")
        if not self.store:
            raise ConfigError("store is empty; write the path of a folder")
        if self.mirror and not self.mirror.startswith(("http://", "https://")):
            raise ConfigError(f"mirror is {self.mirror!r}; write an http(s) URL")

    def _lacks(self, name: str) -> bool:
        return not getattr(self, name)

    def _complete(self) -> None:
        """Fill what is empty with what the zoo knows."""
        found = {}
        if self.source == "pytorchcv":
            found = zoo.known(self.architecture, self.weights)
        elif self.source in ("torchvision", "timm"):
            found = {"classes": zoo.IMAGENET["classes"]}
        for name, value in found.items():
            if self._lacks(name):
                object.__setattr__(self, name, value)  # frozen from here on


# What the sources read besides their channels and the store, and whether they need it.
_INPUT = {"classes": True, "image_size": True, "mean": True, "std": True}


# Where the package has to be asked, when the weights are fetched.
_LATER = {**_INPUT, "image_size": False, "mean": False, "std": False}


_WEIGHTS = {"weights": True, "sha256": True}


_ZOO = {"architecture": True, "weights": False, "mirror": False}


MODEL_SETTINGS: Mapping[str, Mapping[str, bool]] = {
    "file": {"architecture": True, **_WEIGHTS, **_INPUT},
    "pytorchcv": {**_ZOO, **_INPUT},
    "torchvision": {**_ZOO, **_LATER},
    "timm": {**_ZOO, "sha256": False, **_LATER},
    "python": {"factory": True, **_WEIGHTS, **_INPUT},
    # No choice of a config: a program holds the network (``synq.quantize``).
    "memory": _INPUT,
}


# Where files come from and stay, which changes no result.
PLACES = ("store", "mirror")
