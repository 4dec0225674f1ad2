"""``synq quantize``: one run without a config, from a function that returns the network."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from synq.api.run import quantize
from synq.config.plan import STAGES
from synq.errors import ConfigError, nearest
from synq.io.artifacts import atomic
from synq.models.sources import call_factory
from synq.models.weights import load_weights, read_weights


def quantize_factory(
    *,
    factory: str,
    weights: Path | None,
    image_size: int,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    classes: int | None,
    bits: str,
    method: str,
    seed: int,
    test: Path | None,
    set: Sequence[str],
    output: Path,
    device: str,
    threads: int,
) -> None:
    """Write the student, packed and as ONNX too, and its report into the folder ``output``."""
    changes = changed(set)
    model = call_factory(factory)
    if weights is not None:
        note = load_weights(model, read_weights(weights), str(weights))
        if note:
            print(note)
    there = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ConfigError(f"{there} is no folder; output names the folder to write into")
    if not os.access(there, os.W_OK):
        raise ConfigError(f"{there} cannot be written; output names the folder to write into")
    if test is not None:
        changes["test"] = {"dataset": "folder", **changes.get("test", {}), "path": str(test)}
    result = quantize(
        model,
        image_shape=(channels, image_size, image_size),
        mean=mean,
        std=std,
        classes=classes,
        bits=bits,
        method=method,
        seed=seed,
        device=device,
        threads=threads,
        **changes,
    )
    result.save(output / "student.safetensors")
    result.save_packed(output / "student.packed.safetensors")
    with atomic(output / "report.txt") as temporary:
        temporary.write_text(result.report() + "\n", "utf-8")
    if result.run.export.format == "onnx":
        result.to_onnx(output / "student.onnx")
    print(f"{result.report()}\nThe student is in {output}")


def changed(words: Sequence[str]) -> dict[str, Any]:
    """Sections of settings from words ``SECTION.NAME=VALUE``, with values as YAML has them."""
    found: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        section, dot, name = key.partition(".")
        if not (equals and dot and name):
            raise ConfigError(f"set has {word!r}; write SECTION.NAME=VALUE, as finetune.epochs=3")
        if section not in STAGES:
            raise ConfigError(f"set has {word!r}; of sections {nearest(section, STAGES)}")
        try:
            found.setdefault(section, {})[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ConfigError(f"set has {word!r}, whose value is no YAML") from None
    return found
