"""Class activation maps that carry a gradient: Grad-CAM and Grad-CAM++ through the tail alone."""

import torch
from torch import Tensor, nn

from synq.attention import attention_layers
from synq.errors import ModelError
from synq.hooks import recorded

SMALLEST_WEIGHT = 1e-10


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


def map_weights(activations: Tensor, gradients: Tensor, kind: str) -> Tensor:
    """w_k, ``[N, K, 1, 1]``, from the map A and d z_c / dA, both ``[N, K, h, w]``.

    gradcam: w = mean over space of the gradient (Selvaraju et al., 2017).
    gradcam++: w = sum of alpha relu(g), alpha = g^2 / (2 g^2 + sum over space of A g^3)
    (Chattopadhyay et al., 2018).
    """
    if kind == "gradcam":
        weights = gradients.mean((2, 3), keepdim=True)
    else:
        square = gradients.square()
        cubic = (activations * square * gradients).sum((2, 3), keepdim=True)
        alpha = square / (2 * square + cubic + 1e-7)
        weights = (alpha * gradients.relu()).sum((2, 3), keepdim=True)
    return weights.clamp_min(SMALLEST_WEIGHT)


def activation_map(
    scores: Tensor, activations: Tensor, size: tuple[int, int], kind: str = "gradcam"
) -> Tensor:
    """S = minmax01(upsample(relu(sum_k w_k A_k))), ``[N, 1, H, W]`` in [0, 1] (paper, section 4.2).

    ``scores`` ``[N]`` are the logits of the chosen classes, ``activations`` ``[N, K, h, w]`` the
    recorded map they were computed from. The weights are constants; the gradient of the result
    flows through ``activations``, where these have one. All but the networks is in float32.
    """
    (gradients,) = torch.autograd.grad(scores.sum(), activations, retain_graph=True)
    weights = map_weights(activations.detach().float(), gradients.float(), kind)
    combined = (weights * activations.float()).sum(1, keepdim=True).relu()
    enlarged = nn.functional.interpolate(combined, size, mode="bilinear", align_corners=False)
    flat = enlarged.flatten(1)
    lo, hi = flat.amin(1)[:, None, None, None], flat.amax(1)[:, None, None, None]
    return (enlarged - lo) / (hi - lo).clamp_min(1e-8)
