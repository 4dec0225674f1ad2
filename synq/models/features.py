"""Layers whose outputs fine-tuning aligns: residual branches, and the convolution of the CAM."""

import torch
from torch import Tensor, nn

from synq.errors import ModelError
from synq.models.hooks import recorded
from synq.models.structure import attention_layers


def feature_blocks(model: nn.Module) -> list[str]:
    """Names of the residual branches, whose outputs HAST aligns (``body`` in pytorchcv)."""
    names = [name for name, _ in model.named_modules() if name.split(".")[-1] == "body"]
    if not names:
        raise ModelError(
            "the model has no residual branch (a module named body) to align features of; "
            "set finetune.feature_weight: 0"
        )
    return names


def cam_layer(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """Name of the last convolution, in the order of execution, whose output has over one pixel.

    A 1x1 classifier convolution after the pooling (MobileNetV2) has a map of one pixel, which the
    normalisation turns into a constant: aligning it would teach nothing. Nor is there a map where
    attention follows the last such convolution, which only cuts the image into patches. Raises
    ModelError in both cases.
    """
    attentions = attention_layers(model)
    convolutions: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    example = next(model.parameters()).new_zeros(1, *image_shape)
    with torch.no_grad(), recorded(convolutions | attentions) as record:
        model(example)
    # Some networks' own convolutions give a pair of maps (octave convolutions): not one to align.
    spatial = [
        name
        for name, output in record.items()
        if name in attentions
        or (isinstance(output, Tensor) and output.shape[-1] * output.shape[-2] > 1)
    ]
    if not spatial:
        raise ModelError(
            "no convolution of the model has an output of more than one pixel, so there is no "
            "class activation map; set finetune.cam: off"
        )
    if spatial[-1] in attentions:
        raise ModelError(
            "the model attends after its last convolution, so there is no class activation map of "
            "a transformer; set finetune.cam: off"
        )
    return spatial[-1]
