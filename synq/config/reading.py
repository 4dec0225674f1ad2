"""A config is read and checked: the first thing that is wrong is one line, before any work."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Any

from synq.config.fields import convert, mapping
from synq.config.grid import Ablation, Accept, Grid, parse_bits
from synq.config.images import TestSet
from synq.config.model import Model
from synq.config.plan import (
    IMAGE_STAGES,
    METHOD_STAGES,
    MODEL_STAGES,
    STAGES,
    ImageSet,
    Method,
    Plan,
)
from synq.config.targets import unfit
from synq.errors import ConfigError, nearest

SECTIONS = (
    *("results", "store", "grid", "models", "image_sets", "methods", "ablation", "accept"),
    *STAGES,
)


# What a method that is like another does not take over.
OWN = ("text", "ceiling")


# Names are parts of paths, and a path has an end: 4,096 bytes on Linux.
LONGEST = 200


NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


def plan(config: Mapping[str, Any], *, held: Collection[str] = ()) -> Plan:
    """Check a whole config; raises ConfigError with the first thing that is wrong.

    A program may have a ``Model`` itself among ``models``, and hold images that no setting names:
    ``held`` names their sections, ``test`` or ``real``.
    """
    mapping(config, "config")
    for key in config:
        if key not in SECTIONS:
            raise ConfigError(f"{key} is not a section of the config; {nearest(key, SECTIONS)}")
    for key in ("grid", "models", "image_sets", "methods"):
        if not config.get(key):
            raise ConfigError(f"{key} is missing or empty in the config")
    sections = {stage: _changes(config.get(stage, {}), stage) for stage in STAGES}
    for stage, section in sections.items():
        convert(STAGES[stage], section, stage)
    models, model_sections, relatives = _models(config["models"], config.get("store"))
    image_sets = {
        _name(name, "image_sets"): _image_set(values, f"image_sets.{name}")
        for name, values in entries(config["image_sets"], "image_sets").items()
    }
    methods = {
        _name(name, "methods"): _method(name, values, image_sets)
        for name, values in entries(config["methods"], "methods").items()
    }
    _check_ceilings(methods)
    grid = convert(Grid, config["grid"], "grid")
    _check_grid(grid, models, methods)
    ablation = convert(Ablation, _given(config, "ablation"), "ablation")
    _check_ablation(ablation, grid, methods)
    accept = convert(Accept, _given(config, "accept"), "accept")
    results = _results(config.get("results", "results"))
    whole = Plan(
        results,
        grid,
        models,
        image_sets,
        methods,
        ablation,
        accept,
        sections,
        model_sections,
        relatives,
    )
    _check_layers(whole, held)
    return whole


def _changes(section: Any, where: str) -> Mapping[str, Any]:
    """What a section changes.

    ConfigError where it is empty: Snakemake has then put nothing where all the rest was.
    """
    if section is None:
        raise ConfigError(
            f"{where} is empty, which takes away all that is written there elsewhere; leave it "
            "out, or write what it changes"
        )
    return mapping(section, where)


def _given(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A section that may be switched off by null."""
    section = config.get(key)
    return {} if section is None else mapping(section, key)


def _check_grid(grid: Grid, models: Mapping[str, Model], methods: Mapping[str, Method]) -> None:
    for field in dataclasses.fields(Grid):
        values = getattr(grid, field.name)
        if not values:
            raise ConfigError(f"grid.{field.name} is empty; nothing would be made")
        if len(set(values)) != len(values):
            raise ConfigError(f"grid.{field.name} names something twice")
    wanted = {"models": (grid.models, models), "methods": (grid.names, methods)}
    for key, (names, known) in wanted.items():
        for name in names:
            if name not in known:
                raise ConfigError(f"grid.{key} names {name!r}; {nearest(name, known)}")
    for index, bits in enumerate(grid.bits):
        parse_bits(bits, f"grid.bits[{index}]")
    for index, (_, own) in enumerate(grid.entries):
        if own is not None:
            parse_bits(own, f"the width of grid.methods[{index}]")
    for (bits, name), count in Counter(grid.pairs()).items():
        if count > 1:
            raise ConfigError(f"grid.methods names {name} and {name}@{bits}, which is among them")


def _check_ceilings(methods: Mapping[str, Method]) -> None:
    for name, method in methods.items():
        others = [other for other in methods if other != name]
        if method.ceiling and method.ceiling not in others:
            raise ConfigError(
                f"methods.{name}.ceiling names {method.ceiling!r}; it is another method's name: "
                + nearest(method.ceiling, others)
            )


def _check_ablation(ablation: Ablation, grid: Grid, methods: Mapping[str, Method]) -> None:
    if not ablation.methods:
        return
    for name in (ablation.full, *ablation.methods):
        if name not in methods:
            raise ConfigError(f"ablation names {name!r}; {nearest(name, methods)}")
        if name not in grid.names:
            raise ConfigError(f"ablation names {name!r}, which is not among grid.methods; add it")


def _check_layers(whole: Plan, held: Collection[str]) -> None:
    """Layers that are each right can still be wrong together."""
    for model in whole.models:
        for stage in MODEL_STAGES:
            whole.settings(stage, model)
        for image_set in whole.image_sets:
            whole.image_settings(model, image_set)
        for method in whole.methods:
            for stage in METHOD_STAGES:
                whole.settings(stage, model, method=method)
    for model in whole.grid.models:
        for method in whole.grid.names:
            image_set = whole.methods[method].images
            dataset = getattr(whole.image_settings(model, image_set), "dataset", "")
            if dataset == "none" and "real" not in held:
                raise ConfigError(
                    f"method {method} trains on real images, but models.{model}.real names none; "
                    "write real: {dataset: folder, path: ...} there"
                )
            _check_learned(whole, model, method)
            _check_held_out(whole, model, method, tested="test" in held)
            _check_target(whole, model, method)


def _check_target(whole: Plan, model: str, method: str) -> None:
    export = whole.settings("export", model)
    calibration = whole.settings("calibration", model, method=method)
    for bits in (bits for bits, name in whole.grid.pairs() if name == method):
        fault = unfit(export, calibration, *parse_bits(bits))
        if fault:
            raise ConfigError(
                f"export.target of {model} is {export.target}, which {method} at {bits} does not "
                f"fit: {fault}"
            )


def _check_learned(whole: Plan, model: str, method: str) -> None:
    """What is for learned steps is asked for with these alone."""
    finetune = whole.settings("finetune", model, method=method)
    kind = whole.settings("calibration", model, method=method).weights
    if kind == "learned":
        return
    for asked, name, other in (
        (finetune.reconstruct == "rounding", "reconstruct: rounding", "reconstruct: weights"),
        (finetune.gradient_scaling > 0, "gradient_scaling above 0", "gradient_scaling: 0"),
    ):
        if asked:
            raise ConfigError(
                f"method {method} has finetune.{name}, and calibration.weights: {kind}; "
                f"write calibration.weights: learned, or finetune.{other}"
            )


def _check_held_out(whole: Plan, model: str, method: str, *, tested: bool) -> None:
    """Where held-out images decide or are measured on, there is one of each class at least."""
    settings = whole.settings("finetune", model, method=method)
    selected = settings.epochs > 0 and settings.select == "held_out"
    measured = whole.settings("test", model).dataset == "none" and not tested
    image_set = whole.methods[method].images
    count = whole.image_settings(model, image_set).images_per_class
    if not (selected or measured) or int(count * settings.holdout) >= 1:
        return
    section = whole.image_sets[image_set].stage
    purpose = "to measure agreement on" if measured else "to select the epoch by"
    other = "" if measured else ", or write finetune.select: last"
    raise ConfigError(
        f"method {method} holds out no image of {model} {purpose}: finetune.holdout is "
        f"{settings.holdout} of {count} images of each class; raise it or "
        f"{section}.images_per_class{other}"
    )


def _results(value: Any) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9._/][A-Za-z0-9._/-]*", value):
        raise ConfigError(
            f"results is {value!r}; write a path of letters, digits and . _ - / alone"
        )
    if len(value) > LONGEST:
        raise ConfigError(f"results is a path of {len(value)} characters, of at most {LONGEST}")
    # One name for each folder: under another one Snakemake knows nothing of what is there.
    return os.path.normpath(value)


def _name(name: str, where: str) -> str:
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{where} has the name {name!r}; a name has up to 64 letters, digits, - and _, "
            "and begins with a letter or digit"
        )
    return name


def _models(
    config: Any, store: Any
) -> tuple[dict[str, Model], dict[str, dict[str, Mapping[str, Any]]], dict[str, str]]:
    models: dict[str, Model] = {}
    relatives: dict[str, str] = {}
    sections: dict[str, dict[str, Mapping[str, Any]]] = {}
    if store is not None and not (isinstance(store, str) and store):
        raise ConfigError(f"store is {store!r}; write the path of a folder")
    everywhere = {} if store is None else {"store": store}
    for name, values in mapping(config, "models").items():
        where = f"models.{_name(name, 'models')}"
        if isinstance(values, Model):
            models[name], sections[name] = values, {}
            continue
        mapping(values, where)
        own = {key: value for key, value in values.items() if key not in STAGES}
        sections[name] = {
            stage: _changes(values[stage], f"{where}.{stage}")
            for stage in STAGES
            if stage in values
        }
        if "names" in own:
            # A file's name or the names themselves: which folder of real images is which class, and
            # what the classes are called for who uses the network.
            names = own.pop("names")
            listed = [names] if isinstance(names, str) else names
            convert(TestSet, {"names": listed}, where)
            hyphened = [name for name in listed if name.startswith("-")]
            if hyphened:
                raise ConfigError(
                    f"{where}.names has {hyphened[0]!r}; a name may not begin with a hyphen, which "
                    "is how flags of commands begin"
                )
            for stage in ("test", "real"):
                sections[name][stage] = {"names": listed, **sections[name].get(stage, {})}
        if not isinstance(own.get("sha256", ""), str):
            # As YAML reads 123. That it is no text would not say what it is.
            raise ConfigError(
                f"{where}.sha256 is {own['sha256']!r}, not 64 hexadecimal digits; "
                "`sha256sum FILE` prints it"
            )
        if "relative" in own:
            relatives[name] = own.pop("relative")
        for stage, section in sections[name].items():
            convert(STAGES[stage], section, f"{where}.{stage}")
        models[name] = convert(Model, {**everywhere, **own}, where)
    for name, relative in relatives.items():
        _check_relative(name, relative, models, relatives)
        if "synthesis" in sections[name]:
            raise ConfigError(
                f"models.{name}.synthesis has no meaning with relative: {relative}, which makes "
                f"the images; write it as models.{relative}.synthesis"
            )
    return models, sections, relatives


def _check_relative(
    name: str, relative: Any, models: Mapping[str, Model], relatives: Mapping[str, str]
) -> None:
    """Images can be borrowed of another model of the config with the same classes and channels."""
    where = f"models.{name}.relative is {relative!r}"
    others = [other for other in models if other != name]
    if not isinstance(relative, str) or relative not in others:
        raise ConfigError(
            f"{where}; it is the name of another model of the config: " + nearest(relative, others)
        )
    if relative in relatives:
        lender = relatives[relative]
        write = "a model that makes its own" if lender == name else repr(lender)
        raise ConfigError(f"{where}, which borrows its images itself; write {write}")
    for key in ("classes", "channels"):
        own, other = (getattr(models[model], key) for model in (name, relative))
        if own != other:
            raise ConfigError(
                f"{where}, which has {other} {key} and {name} has {own}; images are borrowed of a "
                "model of the same classes, in the same order"
            )


def entries(config: Any, where: str) -> dict[str, dict[str, Any]]:
    """The entries of a section, those with ``like`` with all that they take over from another."""
    written = {
        name: dict(_changes(values, f"{where}.{name}"))
        for name, values in mapping(config, where).items()
    }

    def whole(name: str, below: tuple[str, ...]) -> dict[str, Any]:
        own = dict(written[name])
        if "like" not in own:
            return own
        base = own.pop("like")
        others = [other for other in written if other not in below]
        if base not in others:
            raise ConfigError(
                f"{where}.{name}.like names {base!r}; it is another entry that is not like this "
                f"one: {nearest(str(base), others)}"
            )
        taken = {k: v for k, v in whole(base, (*below, base)).items() if k not in OWN}
        for key, value in own.items():
            before = taken.get(key)
            joined = isinstance(before, Mapping) and isinstance(value, Mapping)
            taken[key] = {**dict(before or {}), **value} if joined else value
        return taken

    return {name: whole(name, (name,)) for name in written}


def _image_set(values: Any, where: str) -> ImageSet:
    overrides = dict(mapping(values, where))
    stage = overrides.pop("source", "synthesis")
    if stage not in IMAGE_STAGES:
        raise ConfigError(f"{where}.source is {stage!r}; {nearest(stage, IMAGE_STAGES)}")
    convert(STAGES[stage], overrides, where)
    return ImageSet(stage, overrides)


def _method(name: str, values: Any, image_sets: Mapping[str, ImageSet]) -> Method:
    where = f"methods.{name}"
    mapping(values, where)
    known = ("images", "text", "ceiling", *METHOD_STAGES)
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}.{key} is not a part of a method; {nearest(key, known)}")
    if "images" not in values:
        raise ConfigError(f"{where}.images is missing; it names one of image_sets")
    if not isinstance(values["images"], str) or values["images"] not in image_sets:
        raise ConfigError(
            f"{where}.images names {values['images']!r}; {nearest(values['images'], image_sets)}"
        )
    overrides = {
        stage: _changes(values[stage], f"{where}.{stage}")
        for stage in METHOD_STAGES
        if stage in values
    }
    for stage, section in overrides.items():
        convert(STAGES[stage], section, f"{where}.{stage}")
    text, ceiling = (str(values.get(key) or "") for key in ("text", "ceiling"))
    return Method(values["images"], text, overrides, ceiling)
