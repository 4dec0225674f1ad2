"""Whether a network fits the program, and everything that decides it, before any work."""

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from synq.config.finetune import Finetune
from synq.errors import ConfigError, ModelError, nearest
from synq.models.features import cam_layer, feature_blocks
from synq.models.structure import batchnorms
from synq.quantization.convert import packed_bytes, quantize
from synq.quantization.coverage import examine, refuse
from synq.synthesis.patches import PatchReader, uses_patches

WIDTHS = (32, 8, 4, 3, 2)


def _prior(model: nn.Module, image_shape: tuple[int, int, int], value: str) -> None:
    if value == "patches":
        PatchReader(model, image_shape)
    else:
        batchnorms(model)


# Settings that not every network fits, and the function that refuses the others as the stage would.
CHECKS: dict[str, Callable[[nn.Module, tuple[int, int, int], str], Any]] = {
    "finetune.cam": lambda model, shape, _: cam_layer(model, shape),
    "finetune.feature_weight": lambda model, shape, _: feature_blocks(model, shape),
    "calibration.range_source": lambda model, shape, _: batchnorms(model),
    "synthesis.prior": _prior,
    "synthesis.deep_weight": lambda model, shape, _: batchnorms(model),
}


def unmet(
    model: nn.Module, image_shape: tuple[int, int, int], required: Sequence[str]
) -> list[str]:
    """A line for each setting that the network does not fit, with the methods that have it.

    ``required`` are words ``method:section.setting=value``; another raises ConfigError.
    """
    methods: dict[str, list[str]] = {}
    for word in required:
        method, _, setting = word.partition(":")
        if setting.partition("=")[0] not in CHECKS:
            raise ConfigError(
                f"require has {word!r}; write METHOD:SETTING=VALUE, where {nearest(word, CHECKS)}"
            )
        methods.setdefault(setting, []).append(method)
    found = []
    for setting, names in methods.items():
        name, _, value = setting.partition("=")
        try:
            CHECKS[name](model, image_shape, value)
        except ModelError as error:
            have = "method {} has" if len(names) == 1 else "methods {} have"
            found.append(f"{have.format(', '.join(names))} {name}: {value}, but {error}")
    return found


def inspect_model(
    model: nn.Module, image_shape: tuple[int, int, int], required: Sequence[str] = ()
) -> dict[str, Any]:
    """What ``synq inspect`` tells of a network, ready for JSON.

    ``problems`` are the errors that the stages would end with, in their own words, those of
    ``required`` settings too, and ``needs`` the settings without which fine-tuning by the defaults
    would. The network fits where there is no problem.
    """
    anatomy = examine(model, image_shape)
    layers = anatomy.of("layer")
    synthesis: list[str] = []
    quantization: list[str] = []
    needs: list[str] = []
    by_patches = uses_patches("auto", model)
    if by_patches:
        _attempt(synthesis, lambda: PatchReader(model, image_shape))
    else:
        _attempt(synthesis, lambda: batchnorms(model))
    if not (synthesis or anatomy.batchnorms or by_patches):
        synthesis.append("no forward of the model passes one of its BatchNorm layers")
    student = copy.deepcopy(model)
    _attempt(quantization, lambda: refuse(anatomy))
    _attempt(quantization, lambda: quantize(student, WIDTHS[-1], WIDTHS[-1]))
    layer = _attempt([], lambda: cam_layer(model, image_shape))
    blocks = _attempt([], lambda: feature_blocks(model, image_shape)) or []
    if layer is None and Finetune().cam != "off":
        needs.append("finetune.cam: off")
    if not blocks and Finetune().feature_weight > 0:
        needs.append("finetune.feature_weight: 0")
    problems = [*synthesis, *quantization[:1]]
    # A network that has no BatchNorm layer is told so once.
    problems += [] if problems else unmet(model, image_shape, required)
    return {
        **dataclasses.asdict(anatomy),
        "shared_activations": anatomy.shared_activations,
        "inputs": dict(Counter(layer.input for layer in layers if layer.calls)),
        "prior": "patches" if by_patches else "batchnorm",
        "cam_layer": layer,
        "feature_blocks": blocks,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "quantized_parameters": sum(
            math.prod(layer.weight or [0]) for layer in layers if not layer.reason
        ),
        "multiply_adds": sum(layer.multiply_adds or 0 for layer in layers),
        # Full precision needs no ranges, so it is counted without them, as evaluation does.
        "bytes": {
            str(bits): packed_bytes(student if bits < 32 else model, bits) for bits in WIDTHS
        },
        "problems": problems,
        "needs": needs,
        "required": list(required),
        "fits": not problems,
    }


def _attempt(problems: list[str], check: Callable[[], Any]) -> Any:
    """The check's result, or None and its error among the problems."""
    try:
        return check()
    except ModelError as error:
        problems.append(str(error))
        return None
