"""The settings of one run, from keywords: the config's own, with what the caller changes."""

import copy
import functools
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from numbers import Integral
from typing import Any

import yaml

from synq.config.calibration import Calibration
from synq.config.evaluation import Evaluation
from synq.config.export import Export
from synq.config.fields import check, convert, mapping, settings_of
from synq.config.finetune import Finetune
from synq.config.grid import parse_bits
from synq.config.images import RealImages, TestSet
from synq.config.model import Model
from synq.config.needs import needs
from synq.config.plan import METHOD_STAGES, STAGES, Plan, shard_classes
from synq.config.reading import entries, plan
from synq.config.synthesis import Synthesis
from synq.errors import ConfigError, nearest
from synq.models.scale import DEVIATION, MEAN

Changes = Mapping[str, Mapping[str, Any] | None]
# What the network is called in the plan of one run.
NETWORK = "network"


@functools.cache
def _config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(
        resources.files("synq.config").joinpath("config.yaml").read_text("utf-8")
    )
    # What an entry is like is a part of it from here on.
    return {**found, **{name: entries(found[name], name) for name in ("methods", "image_sets")}}


def methods() -> dict[str, str]:
    """Name -> what it is, of every method of config.yaml."""
    return {name: str(values.get("text", "")) for name, values in _config()["methods"].items()}


def image_sets() -> list[str]:
    """The names of the image sets of config.yaml."""
    return list(_config()["image_sets"])


@dataclass(frozen=True)
class Run:
    """All settings of one run, and the groups of classes whose images are made together."""

    image_set: str
    images: Synthesis | RealImages
    calibration: Calibration
    finetune: Finetune
    evaluation: Evaluation
    export: Export
    test: TestSet
    shards: list[list[int]]
    needs: list[str]


def run_settings(
    model: Model,
    bits: str,
    method: str,
    seed: int,
    changes: Changes,
    *,
    held: Collection[str] = (),
    given: int | None = None,
) -> Run:
    """The settings of a method for a network, checked as the workflow checks them.

    ``changes`` are sections of settings by their names, which win over the method's own and the
    image set's. ``held`` names what is there without settings (``test``, ``real``), and ``given``
    is how many images of each class there are already.
    """
    parse_bits(bits)
    if type(seed) is not int or seed < 0:
        raise ConfigError(f"seed is {seed!r}; write a whole number from 0 on")
    config = copy.deepcopy(_config())
    own = {stage: _section(stage, values or {}) for stage, values in changes.items()}
    chosen = _entry(config, "methods", "method", method)
    image_set = chosen["images"]
    where = _entry(config, "image_sets", "image_set", image_set)
    if given is not None:
        where = config["image_sets"][image_set] = {"images_per_class": given}
    for stage, values in own.items():
        if stage in METHOD_STAGES:
            chosen[stage] = {**chosen.get(stage, {}), **values}
        elif stage == where.get("source", "synthesis"):
            where.update(values)
        else:
            config[stage] = {**(config.get(stage) or {}), **values}
    if where.get("source") == "real" and "dataset" not in where and "real" not in held:
        raise ConfigError(
            f"method {method} trains on real images, and none are named; give "
            "real: {dataset: folder, path: ...}, or the images themselves"
        )
    whole = _plan(config, model, bits, method, seed, held)
    settings = whole.settings("finetune", NETWORK, method=method)
    if settings.processes > 1:
        raise ConfigError(
            f"finetune.processes is {settings.processes}, and this is one; "
            "the workflow starts several"
        )
    return Run(
        image_set,
        whole.image_settings(NETWORK, image_set),
        whole.settings("calibration", NETWORK, method=method),
        settings,
        whole.settings("evaluation", NETWORK),
        whole.settings("export", NETWORK),
        whole.settings("test", NETWORK),
        [shard_classes(name) for name in whole.shards(NETWORK, image_set)],
        needs(whole, NETWORK),
    )


def image_settings(
    model: Model, image_set: str, changes: Changes
) -> tuple[Synthesis | RealImages, list[list[int]]]:
    """The settings of an image set for a network, and the classes that are made together."""
    config = copy.deepcopy(_config())
    where = _entry(config, "image_sets", "image_set", image_set)
    stage = where.get("source", "synthesis")
    where.update(_section(stage, changes.get(stage) or {}))
    # Any method does: of the image set alone is asked.
    method = next(iter(config["methods"]))
    whole = _plan(config, model, "w4a4", method, 0, ("test", "real"))
    names = whole.shards(NETWORK, image_set)
    return whole.image_settings(NETWORK, image_set), [shard_classes(name) for name in names]


def described(
    image_shape: Sequence[int],
    classes: int,
    mean: Any = None,
    std: Any = None,
) -> Model:
    """A network's input as settings, checked as those of a config.

    For None it takes normalised images, by nobody knows what.
    """
    channels, size = input_size(image_shape)
    given = {
        "classes": classes,
        "channels": channels,
        "image_size": size,
        "mean": (MEAN,) * channels if mean is None else mean,
        "std": (DEVIATION,) * channels if std is None else std,
    }
    known = settings_of(Model)
    values = {
        # Arrays and tensors are lists of numbers, too.
        name: check(value.tolist() if hasattr(value, "tolist") else value, *known[name], where=name)
        for name, value in given.items()
    }
    return Model(source="memory", **values)


def input_size(image_shape: Sequence[int]) -> tuple[int, int]:
    """Channels and side of the square images of a shape ``(C, H, W)``."""
    shape = tuple(image_shape) if isinstance(image_shape, Sequence) else ()
    whole = len(shape) == 3 and all(isinstance(length, Integral) for length in shape)
    whole = whole and all(length > 0 and length is not True for length in shape)
    if not whole or shape[1] != shape[2]:
        raise ConfigError(
            f"image_shape is {image_shape!r}; write (channels, height, width) of square images, "
            "such as (3, 224, 224)"
        )
    return int(shape[0]), int(shape[1])


def name_of(model: object) -> str:
    """What a network is called by its class, as a name of the config's."""
    return re.sub(r"[^A-Za-z0-9-]", "", type(model).__name__)[:64].lstrip("-") or "network"


def _section(stage: str, values: Any) -> dict[str, Any]:
    mapping(values, stage)
    convert(STAGES[stage], values, stage)
    return dict(values)


def _entry(config: dict[str, Any], section: str, what: str, name: str) -> dict[str, Any]:
    if name not in config[section]:
        raise ConfigError(f"{what} is {name!r}; {nearest(name, config[section])}")
    entry: dict[str, Any] = config[section][name]
    return entry


def _plan(
    config: dict[str, Any],
    model: Model,
    bits: str,
    method: str,
    seed: int,
    held: Collection[str],
) -> Plan:
    grid = {"models": [NETWORK], "bits": [bits], "methods": [method], "seeds": [seed]}
    return plan({**config, "models": {NETWORK: model}, "grid": grid}, held=held)
