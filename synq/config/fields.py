"""What a settings class is: fields with a unit and limits, one converter, and their flags.

A field is a key of ``config.yaml`` and a command-line flag at once, so that the rule, the command
and the Python function take the same names and refuse the same values. This module uses the
standard library alone: the Snakefile imports it, and must not wait for torch.
"""

import contextlib
import dataclasses
import math
import typing
from collections.abc import Collection, Mapping
from typing import Any

from synq.errors import ConfigError, nearest


def setting(
    default: Any = dataclasses.MISSING,
    text: str = "",
    *,
    unit: str = "",
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    pairs: bool = False,
) -> Any:
    """A dataclass field with what the help text and the converter need.

    ``minimum`` and ``maximum`` are allowed values themselves, ``above`` is not. A tuple of
    ``pairs`` is a mapping in YAML, and words NAME=VALUE here and on the command line.
    """
    metadata = {
        "text": text,
        "unit": unit,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "choices": choices,
        "pairs": pairs,
    }
    return dataclasses.field(default=default, metadata=metadata)


def settings_of(cls: type) -> dict[str, tuple[dataclasses.Field, Any]]:
    """Name -> (field, type) of a settings class, in the order of its definition."""
    hints = typing.get_type_hints(cls)
    return {field.name: (field, hints[field.name]) for field in dataclasses.fields(cls)}


def convert(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """A ``cls`` from a mapping; ``where`` is the path of the mapping in the config.

    Raises ConfigError for a key that is unknown or missing and a value of the wrong type or range.
    """
    mapping(values, where)
    known = settings_of(cls)
    for key in values:
        if key not in known:
            raise ConfigError(f"{where}.{key} is not a setting; {nearest(key, known)}")
    for name, (field, _) in known.items():
        if field.default is dataclasses.MISSING and name not in values:
            raise ConfigError(f"{where}.{name} is missing ({field.metadata['text']})")
    checked = {
        key: check(value, *known[key], where=f"{where}.{key}") for key, value in values.items()
    }
    try:
        return cls(**checked)
    except ConfigError as error:
        raise ConfigError(f"{where}.{error}") from None


KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}


def check(value: Any, field: dataclasses.Field, kind: Any, where: str) -> Any:
    """``value`` as ``kind``, or a ConfigError that says what it should have been."""
    if typing.get_origin(kind) is tuple:
        if field.metadata["pairs"] and not isinstance(value, list | tuple):
            value = [f"{key}={entry}" for key, entry in mapping(value, where).items()]
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where} is {value!r}, not a list; write [{value}]")
        inner = typing.get_args(kind)[0]
        entries = enumerate(value)
        return tuple(check(entry, field, inner, f"{where}[{i}]") for i, entry in entries)
    # YAML reads a bare off as false.
    if value is False and "off" in (field.metadata["choices"] or ()):
        value = "off"
    if isinstance(value, list | tuple):
        raise ConfigError(f"{where} is {value!r}, not {KINDS[kind]} ({field.metadata['text']})")
    return _in_range(_typed(value, kind, where), field, where)


def _typed(value: Any, kind: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) < 1e300 else math.inf  # which no setting may be
    if isinstance(value, kind) and (kind is bool or not isinstance(value, bool)):
        return value
    # YAML reads 1e-5 as text, for want of a dot, and `snakemake --config 'grid={"seeds":[0]}'`
    # whatever is in braces.
    if isinstance(value, str):
        if kind is bool and value in ("true", "false"):
            return value == "true"
        if kind in (int, float):
            with contextlib.suppress(ValueError):
                return kind(value)
    raise ConfigError(f"{where} is {value!r}, not {KINDS[kind]}")


def _in_range(value: Any, field: dataclasses.Field, where: str) -> Any:
    limits = field.metadata
    unit = f" {limits['unit']}" if limits["unit"] else ""
    if limits["choices"] and value not in limits["choices"]:
        raise ConfigError(f"{where} is {value!r}; {nearest(value, limits['choices'])}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value}, not a finite number")
    if limits["minimum"] is not None and value < limits["minimum"]:
        raise ConfigError(f"{where} is {value}{unit}; it must be at least {limits['minimum']}")
    if limits["above"] is not None and value <= limits["above"]:
        raise ConfigError(f"{where} is {value}{unit}; it must be above {limits['above']}")
    if limits["maximum"] is not None and value > limits["maximum"]:
        raise ConfigError(f"{where} is {value}{unit}; it must be at most {limits['maximum']}")
    return value


def mapping(value: Any, where: str) -> Mapping[str, Any]:
    """``value`` if it is a mapping with text keys, else a ConfigError."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where} is {value!r}, not a mapping of names to values")
    for key in value:
        if not isinstance(key, str):
            raise ConfigError(f"{where} has the key {key!r}; quote it to make it a text")
    return value


def flags(settings: Any, *, only: Collection[str] = (), without: Collection[str] = ()) -> list[str]:
    """The command-line flags that give exactly these settings, in the order of definition.

    ``only`` and ``without`` name settings, to have those alone or all others.
    """
    found: list[str] = []
    for name, (field, _) in settings_of(type(settings)).items():
        value = getattr(settings, name)
        if name in without or (only and name not in only):
            continue
        # Empty is the default of all that can be, and no word of a shell. A default below the
        # minimum stands for what was not given.
        least = field.metadata["minimum"]
        unset = value == field.default and isinstance(value, int | float)
        if value in ("", ()) or (unset and least is not None and value < least):
            continue
        found.append("--" + name.replace("_", "-"))
        found.extend(words(value))
    return found


def words(value: Any) -> list[str]:
    """A setting's value as the words of a command line."""
    if isinstance(value, tuple):
        return [str(entry) for entry in value]
    return [str(value).lower() if isinstance(value, bool) else str(value)]


PRECISIONS = ("float32", "bfloat16")
