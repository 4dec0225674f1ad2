"""What a teacher is made of, what of it is quantized, and whether it fits; before any work."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate

from synq.errors import ModelError
from synq.io.artifacts import write_json
from synq.models.teacher import Teacher, read_teacher
from synq.quantization.trace import QUANTIZED
from synq.reporting.inspection import inspect_model
from synq.runtime.process import versions

HEADERS = ("name", "kind", "weight", "output", "multiply-adds", "input", "quantized")
RIGHT = HEADERS.index("multiply-adds")
NAMED = 3  # of a long list in one line; the table and the JSON file have them all


def inspect(
    *, teacher: Path, require: Sequence[str] | None, recipe: str, json: Path | None
) -> None:
    """Print all of it, or write it to ``json`` and print the last line alone.

    ModelError, in one line, where the network does not fit: no run by the defaults would end well,
    or none of those with the settings in ``require``.
    """
    network = read_teacher(teacher, torch.device("cpu"))
    found = inspect_model(network.model, network.image_shape, require)
    if json is not None:
        about = {
            "model": network.name,
            "teacher_sha256": network.sha256,
            "input": list(network.image_shape),
            "classes": network.classes,
            "recipe": recipe,
            "versions": versions(),
        }
        write_json(json, "inspection", {**about, **found})
    else:
        print(shown(network, found) + "\n")
    if found["problems"]:
        raise ModelError(f"{network.name} does not fit: {'; '.join(found['problems'])}")
    print(verdict(found))


def shown(network: Teacher, found: dict[str, Any]) -> str:
    """The tables of what was found, without the verdict."""
    about = f"images of {_shape(network.image_shape)}, {network.classes} classes"
    parts = tabulate(rows(found), HEADERS, disable_numparse=True, colalign=_alignment())
    whole = tabulate(facts(found), tablefmt="plain", disable_numparse=True)
    return f"{network.name}: {about}\n\n{parts}\n\n{whole}"


def rows(found: dict[str, Any]) -> list[list[str]]:
    """The cells of the table, a row for each layer, activation and gate."""
    return [
        [
            part["name"],
            part["kind"],
            _shape(part["weight"]),
            _shape(part["output"]),
            "" if part["multiply_adds"] is None else f"{part['multiply_adds']:,}",
            part["input"],
            _quantized(part),
        ]
        for part in found["parts"]
    ]


def facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """What is true of the network as a whole, each with its name."""
    norms, blocks = len(found["batchnorms"]), len(found["feature_blocks"])
    repeated = [f"{name} ({calls} calls)" for name, calls in found["repeated_activations"].items()]
    called = [f"{call['module']} calls {call['function']}" for call in found["functional_layers"]]
    hidden = [
        f"{call['module']} calls {call['function']}" for call in found["functional_activations"]
    ]
    gates = [part["name"] for part in found["parts"] if part["reason"] == "a gate"]
    gates += [f"{call['module']} calls {call['function']}" for call in found["functional_gates"]]
    others = [
        f"{part['name']} ({part['kind']}, {part['reason']})"
        for part in found["parts"]
        if part["reason"] not in ("", "a gate", "never called")
    ]
    exact = [
        f"{count} {origin or 'unknown'}"
        for origin, count in found["inputs"].items()
        if origin != QUANTIZED
    ]
    by_patches = found["prior"] == "patches"
    instead = "none: images " + ("by patch similarity" if by_patches else "cannot be synthesized")
    told = [("output", ", ".join(found["output"]))] if found["output"] else []
    sizes = [f"{size / 1000:,.1f} at {bits}" for bits, size in found["bytes"].items()]
    return [
        ("BatchNorm layers", str(norms) if norms else instead),
        ("layer of the CAM", found["cam_layer"] or "none: finetune.cam must be off"),
        (
            "feature alignment",
            f"{blocks} blocks" if blocks else "no block: finetune.feature_weight must be 0",
        ),
        *told,
        ("inputs quantized", _share(found["quantized_inputs"])),
        *(
            (
                f"calibration.scope: {scope}",
                f"{own['layers']} of {own['of']}, {own['tensors']} grids",
            )
            for scope, own in found["scopes"].items()
        ),
        ("inputs in full precision", ", ".join(exact) or "none"),
        ("gates, in full precision", _some(gates)),
        ("others in full precision", _some([*others, *called, *found["other_norms"]])),
        ("activations called again", _some(repeated)),
        ("activations by functions", _some(hidden)),
        ("modules never called", _some(found["never_called"])),
        ("parameters", f"{found['parameters']:,}, quantized {found['quantized_parameters']:,}"),
        ("multiply-adds of the layers", f"{found['multiply_adds']:,}"),
        ("kB with weights of n bits", f"{', '.join(sizes)}, without a file's names and record"),
    ]


def verdict(found: dict[str, Any]) -> str:
    """The last line of a network that fits, with the settings that it needs."""
    return f"fits, with {' and '.join(found['needs'])}" if found["needs"] else "fits"


def _quantized(part: dict[str, Any]) -> str:
    return f"no: {part['reason']}" if part["reason"] else "yes"


def _share(inputs: dict[str, Any]) -> str:
    """How many layers read codes, and how much of the work that is."""
    text, share = f"{inputs['layers']} of {inputs['of']}", inputs["multiply_adds_share"]
    if share is not None:
        # Never 100 % of what is not all of it.
        text += f", {math.floor(1000 * share) / 10:g} % of the layers' multiply-adds"
    rest = "; the others read floats unless calibration.scope is wider than calls"
    return text + (rest if inputs["layers"] < inputs["of"] else "")


def _some(entries: Sequence[str]) -> str:
    """How many there are and the first of them."""
    more = ", ..." if len(entries) > NAMED else ""
    return f"{len(entries)}: {', '.join(entries[:NAMED])}{more}" if entries else "none"


def _shape(axes: Sequence[int] | None) -> str:
    return "x".join(str(length) for length in axes) if axes else ""


def _alignment() -> list[str]:
    return ["right" if column == RIGHT else "left" for column in range(len(HEADERS))]
