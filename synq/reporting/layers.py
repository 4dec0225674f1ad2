"""How far each layer of students is from the original network, for a figure."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from synq.models.hooks import recorded
from synq.quantization.convert import (
    activation_name,
    activation_quantizers,
    layers_of,
    weight_quantizers,
)
from synq.quantization.student import opened


class Errors(NamedTuple):
    """Relative errors of each weight and each activation that has codes, by its name.

    sum((q - f)^2) / sum(f^2) of what the student computes with and what the network has there,
    0 where both are 0.
    """

    weights: dict[str, float]
    activations: dict[str, float]


def errors(
    network: nn.Module, students: Mapping[str, nn.Module], images: Tensor
) -> dict[str, Errors]:
    """The errors of each student, of activations on ``images`` ``[N, C, H, W]``, normalised.

    Activations are compared as they are read, after they are rounded, and so have the errors of all
    layers before them in them. The network and the students stay as they are.
    """
    whole = opened(network, (images.shape[1], images.shape[2], images.shape[3]))
    weights = layers_of(whole)
    found = {}
    with torch.no_grad():
        wanted = _activations(whole, images)
        for name, student in students.items():
            got = _activations(student, images)
            found[name] = Errors(
                {
                    layer: _relative(own.quantized_weight(), weights[layer].weight)
                    for layer, own in weight_quantizers(student).items()
                },
                # Of a student's some are sums, which the network has no name for.
                {
                    activation_name(one): _relative(values, wanted[one])
                    for one, values in got.items()
                    if one in wanted
                },
            )
    return found


def _activations(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    with recorded({**activation_quantizers(model)}, apart=True) as record:
        model(images)
    return record


def _relative(found: Tensor, wanted: Tensor) -> float:
    power = float(wanted.square().sum())
    error = float((found - wanted).square().sum())
    return error / power if power else float(error > 0)
