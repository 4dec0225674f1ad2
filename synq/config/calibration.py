"""How activation ranges are found, and which bits each layer has."""

import difflib
import re
from collections.abc import Collection
from dataclasses import dataclass
from fnmatch import fnmatchcase

from synq.config.fields import setting
from synq.errors import ConfigError

# Bits of what stays in full precision.
FLOAT = 32
UNITS = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the student's activation ranges come from images."""

    weights: str = setting(
        "minmax",
        "grids of the weights, one per output channel: minmax (extremes, anew at every forward), "
        "learned (steps that are trained, LSQ), squant (as calibrated, and weights rounded so that "
        "their errors cancel in every kernel and output channel)",
        choices=("minmax", "learned", "squant"),
    )
    activations: str = setting(
        "static",
        "grids of the activations, one per tensor: static (as calibrated), learned (LSQ)",
        choices=("static", "learned"),
    )
    scope: str = setting(
        "calls",
        "tensors that are quantized beside the weights: calls (activations where they are called, "
        "the paper's scheme), inputs (the input of every other layer too), everything (also the "
        "image, sums, averages, concatenations and logits: a graph of integers alone)",
        choices=("calls", "inputs", "everything"),
    )
    sum_bits: int = setting(
        8,
        "bits of the image, and of what everything adds",
        minimum=2,
        maximum=8,
    )
    weight_estimator: str = setting(
        "minmax",
        "where learned grids of weights begin, and squant's are: minmax (extremes), mse (the clip "
        "of each channel that minimises the L_p error)",
        choices=("minmax", "mse"),
    )
    weight_rounding: str = setting(
        "nearest",
        "codes that learned grids of weights begin with: nearest, squant (weights are moved to the "
        "code on their other side, so that errors cancel in every kernel and output channel)",
        choices=("nearest", "squant"),
    )
    ends_bits: int = setting(
        0,
        "bits of the first and the last layer's weights, in the order in which the network defines "
        "its layers; 0: as all others",
        minimum=0,
        maximum=8,
    )
    keep_bits: tuple[str, ...] = setting(
        (),
        "other bits than the run's by name, as in {features.stem*: 8, output: float}: 2 to 8, or "
        "float for full precision; a pattern (*, ?) matches the layers and activations that "
        "synq inspect lists, of a layer its weight alone; the last that matches counts",
        pairs=True,
    )
    budget: str = setting(
        "",
        "size that the student must not exceed, as in 1.5 MB (scales and what stays float32 too; "
        "the packed file's names and record come on top): each layer's weight gets one of the "
        "widths, by its sensitivity; none: the run's bits",
    )
    average_bits: float = setting(
        0.0,
        "the same with a mean over all weights of so many bits; 0: the run's bits",
        minimum=0,
        maximum=8,
    )
    widths: tuple[int, ...] = setting(
        (2, 3, 4, 5, 6, 8),
        "bits that budget and average_bits choose from",
        minimum=2,
        maximum=8,
    )
    sensitivity_images: int = setting(
        64, "images that sensitivities are measured on, at most", minimum=1
    )
    batchnorm: str = setting(
        "kept",
        "statistics of the student's BatchNorm layers: kept, or corrected by the difference of "
        "teacher and student on the same images",
        choices=("kept", "corrected"),
    )
    range_estimator: str = setting(
        "mse",
        "minmax: extremes of all images; ema: exponential average of batch extremes; "
        "mse: the clip that minimises the L_p error of quantization",
        choices=("minmax", "ema", "mse"),
    )
    range_source: str = setting(
        "images",
        "images: those of the training, augmented and filtered as there; "
        "generator: those of a conditional generator (GDFQ), while it is trained",
        choices=("images", "generator"),
    )
    range_images: int = setting(
        256, "images that the ranges are taken from, at most (range_source: images)", minimum=1
    )
    generator_steps: int = setting(800, "training steps of the generator", minimum=1)
    generator_batch_size: int = setting(16, "images of each such step", minimum=2)
    generator_learning_rate: float = setting(1e-3, "Adam's learning rate for it", above=0)
    generator_bn_weight: float = setting(
        0.1, "weight of its BatchNorm alignment beside the cross-entropy", minimum=0
    )
    range_power: float = setting(3.5, "p of the L_p error (mse)", above=0)
    range_search: bool = setting(
        False,
        "in place of range_power that one of a few with which the calibrated student is nearest to "
        "the network on half of the range_images (mse; range_source: images)",
    )
    range_momentum: float = setting(
        0.9, "share of the old range that a batch keeps (ema)", minimum=0, maximum=1
    )
    clip_ratio: float = setting(
        1.0,
        "factor on both ends of every estimated range; the released program acts like 0.7",
        above=0,
        maximum=2,
    )

    def __post_init__(self) -> None:
        kept_bits(self.keep_bits)
        if self.ends_bits == 1:
            raise ConfigError("ends_bits is 1; write 2 to 8, or 0 for those of all others")
        if self.budget and self.average_bits:
            raise ConfigError("budget and average_bits are both given; leave one of them out")
        if self.budget:
            size_in_bytes(self.budget)
        if not self.widths or len(set(self.widths)) != len(self.widths):
            raise ConfigError(f"widths is {list(self.widths)}; write each of some bits once")
        least = min(self.widths)
        if 0 < self.average_bits < least:
            raise ConfigError(
                f"average_bits is {self.average_bits:g}, and the smallest of widths {least}; "
                "raise the one or lower the other"
            )
        if self.range_search and self.range_source != "images":
            raise ConfigError(
                f"range_search searches on images, and range_source is {self.range_source}; write "
                "range_search: false, or range_source: images"
            )
        if self.range_search and not self.has_power:
            raise ConfigError(
                "range_search has no L_p error to search for: neither range_estimator nor "
                "weight_estimator is mse; write range_search: false, or mse for one of them"
            )

    @property
    def has_power(self) -> bool:
        """Whether ``range_power`` changes any grid."""
        weights = self.weights != "minmax" and self.weight_estimator == "mse"
        return weights or self.range_estimator == "mse"

    @property
    def mixed(self) -> bool:
        """Whether the widths of the layers' weights are chosen."""
        return bool(self.budget or self.average_bits)


def kept_bits(pairs: tuple[str, ...]) -> dict[str, int]:
    """``('stem=8', 'output=float')`` -> ``{'stem': 8, 'output': 32}``."""
    found: dict[str, int] = {}
    for pair in pairs:
        pattern, _, word = pair.rpartition("=")
        if not pattern:
            raise ConfigError(f"keep_bits has {pair!r}; write a name or pattern and its bits")
        if word not in ("float", str(FLOAT), *"2345678"):
            raise ConfigError(
                f"keep_bits has {word} bits for {pattern!r}; write 2 to 8, or float for full "
                "precision"
            )
        # A pattern that comes again counts where it comes last.
        found.pop(pattern, None)
        found[pattern] = FLOAT if word == "float" else int(word)
    return found


def unmatched(pattern: str, names: Collection[str]) -> str:
    """What to say of a pattern of ``keep_bits`` that none of a network's names matches, if so."""
    if pattern in names or any(fnmatchcase(name, pattern) for name in names):
        return ""
    close = difflib.get_close_matches(pattern, names, n=1)
    hint = f"did you mean {close[0]}?" if close else "synq inspect lists the names"
    return f"no layer and no activation of the network has such a name; {hint}"


def size_in_bytes(size: str, where: str = "budget") -> int:
    """``'1.5 MB'`` -> 1500000."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]+)", size.strip())
    if not match or match[2] not in UNITS:
        raise ConfigError(
            f"{where} is {size!r}; write a size with its unit ({', '.join(UNITS)}), as in 1.5 MB"
        )
    return int(float(match[1]) * UNITS[match[2]])
