"""Whether a network fits the program, and everything that decides it, before any work."""

import copy
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from synq.config.finetune import Finetune
from synq.config.needs import refused_widths, unmet
from synq.errors import ModelError, reason
from synq.models.features import cam_layer, feature_blocks, fitted_parts, residual_units
from synq.models.hooks import recorded
from synq.models.outputs import told
from synq.models.structure import batchnorms
from synq.quantization.convert import (
    activation_quantizers,
    input_bits,
    packed_bytes,
    quantize,
    quantized_names,
)
from synq.quantization.coverage import Part, examine, quantized_weights, refuse
from synq.quantization.dataflow import work_of
from synq.quantization.quantizers import Recipe
from synq.quantization.trace import QUANTIZED
from synq.synthesis.patches import PatchReader, uses_patches

WIDTHS = (32, 8, 4, 3, 2)


def images_from(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """ModelError where neither BatchNorm nor attention says what the network's images look like."""
    if uses_patches("auto", model):
        PatchReader(model, image_shape)
        return
    image = next(model.parameters()).new_zeros(1, *image_shape)
    with torch.no_grad(), recorded(batchnorms(model)) as seen:
        model(image)
    if not seen:
        raise ModelError("no forward of the model passes one of its BatchNorm layers")


# What fits the settings of ``config.needs``: each refuses the other networks, as the stage would.
CHECKS: dict[str, Callable[[nn.Module, tuple[int, int, int]], Any]] = {
    "finetune.cam": cam_layer,
    "finetune.feature_weight": feature_blocks,
    "finetune.block_weight": residual_units,
    "finetune.reconstruct": fitted_parts,
    "calibration.range_source": lambda model, _: batchnorms(model),
    "synthesis.deep_weight": lambda model, _: batchnorms(model),
    "synthesis.prior=auto": images_from,
    "synthesis.prior=batchnorm": lambda model, _: batchnorms(model),
    "synthesis.prior=patches": PatchReader,
}


def inspect_model(
    model: nn.Module, image_shape: tuple[int, int, int], required: Sequence[str] | None = None
) -> dict[str, Any]:
    """What ``synq inspect`` tells of a network, ready for JSON.

    ``problems`` are the errors that the stages would end with, in their own words: those of the
    ``required`` settings, or where none are named those of images by ``prior: auto``. ``needs`` are
    the settings without which fine-tuning by the defaults would end with one. The network fits
    where there is no problem.
    """
    anatomy = examine(model, image_shape)
    layers = anatomy.of("layer")
    quantization: list[str] = []
    needs: list[str] = []
    student = copy.deepcopy(model)
    _attempt(quantization, lambda: _check_gradient(model, image_shape))
    checks = {} if quantization else CHECKS  # they follow gradients
    _attempt(quantization, lambda: refuse(anatomy))
    _attempt(quantization, lambda: quantize(student, Recipe(WIDTHS[-1], WIDTHS[-1]), image_shape))
    refusals: dict[str, list[str]] = {setting: [] for setting in CHECKS}
    fitting = {
        setting: _attempt(refusals[setting], functools.partial(check, model, image_shape))
        for setting, check in checks.items()
    }
    layer, blocks = fitting.get("finetune.cam"), fitting.get("finetune.feature_weight") or []
    refused = {setting: texts[0] for setting, texts in refusals.items() if texts}
    if layer is None and Finetune().cam != "off":
        needs.append("finetune.cam: off")
    if not blocks and Finetune().feature_weight > 0:
        needs.append("finetune.feature_weight: 0")
    problems = quantization[:1]
    if required is None:
        problems = [*refusals["synthesis.prior=auto"], *problems]
    found = {
        **dataclasses.asdict(anatomy),
        "repeated_activations": anatomy.repeated_activations,
        "inputs": dict(Counter(layer.input for layer in layers if layer.calls)),
        "quantized_inputs": _quantized_inputs(layers),
        "scopes": {} if quantization else _scopes(model, image_shape),
        "output": told(model),
        "prior": "patches" if uses_patches("auto", model) else "batchnorm",
        "cam_layer": layer,
        "feature_blocks": blocks,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "quantized_parameters": sum(
            weight.numel() for weight in quantized_weights(model, anatomy).values()
        ),
        "multiply_adds": sum(layer.multiply_adds or 0 for layer in layers),
        # Full precision needs no ranges, so it is counted without them, as evaluation does.
        "bytes": {
            str(bits): packed_bytes(student if bits < 32 else model, bits) for bits in WIDTHS
        },
        "names": quantized_names(student),
    }
    # A network that has no BatchNorm layer is told so once.
    if required is not None and not problems:
        problems = unmet({**refused, **refused_widths(found, required)}, required)
    return {
        **found,
        "problems": problems,
        "needs": needs,
        "refusals": refused,
        "fits": not problems,
    }


def _quantized_inputs(layers: Sequence[Part]) -> dict[str, Any]:
    """How many of the called layers read codes, and their share of the known multiply-adds."""
    called = [layer for layer in layers if layer.calls]
    reading = [layer for layer in called if layer.input == QUANTIZED]
    own, total = (sum(layer.multiply_adds or 0 for layer in some) for some in (reading, called))
    share = own / total if total else None
    return {"layers": len(reading), "of": len(called), "multiply_adds_share": share}


def _scopes(model: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Scope -> how many tensors beside the weights have a grid, how many layers read codes, names.

    Of the scopes beyond ``calls``; empty where the network cannot be quantized so.
    """
    found = {}
    for scope in ("inputs", "everything"):
        recipe = Recipe(WIDTHS[-1], WIDTHS[-1], scope=scope)
        try:
            student = quantize(copy.deepcopy(model), recipe, image_shape)
        except ModelError:
            continue
        work = work_of(model, image_shape, recipe, {}, input_bits(student))
        found[scope] = {
            "tensors": len(activation_quantizers(student)),
            "layers": work.reading,
            "of": len(work.layers),
            "names": quantized_names(student),
        }
    return found


def _check_gradient(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """ModelError where the logits do not depend on the image by a gradient; of a frozen model."""
    images = torch.zeros(2, *image_shape).requires_grad_()
    with torch.enable_grad():
        logits = model(images + 0.5)  # it may write into what it gets
        if not logits.requires_grad:
            raise ModelError(
                "its logits have no gradient to the image; take torch.no_grad, inference_mode and "
                "detach out of its forward"
            )
        try:
            torch.autograd.grad(logits.sum(), images)
        except RuntimeError as error:
            raise ModelError(
                f"its logits give no gradient to the image ({reason(error)}); write what its "
                "forward does in place (x += y) as x = x + y"
            ) from None


def _attempt(problems: list[str], check: Callable[[], Any]) -> Any:
    """The check's result, or None and its error among the problems."""
    try:
        return check()
    except ModelError as error:
        problems.append(str(error))
        return None
