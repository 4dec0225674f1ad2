"""Class activation maps that carry a gradient: Grad-CAM and Grad-CAM++ through the tail only.

As in the released program, and unlike in Grad-CAM, channels of negative weight are dropped: w_k is
held at ``SMALLEST_WEIGHT`` or above, where Grad-CAM keeps its sign and takes the relu of the sum
only. What speaks against the class is in no map. The weights are constants for both kinds; the
program lets a gradient through those of Grad-CAM++.
"""

import torch
from torch import Tensor, nn

SMALLEST_WEIGHT = 1e-10


def map_weights(activations: Tensor, gradients: Tensor, kind: str) -> Tensor:
    """w_k, ``[N, K, 1, 1]``, from the map A and d z_c / dA, both ``[N, K, h, w]``.

    gradcam: w = mean over space of the gradient (Selvaraju et al., 2017).
    gradcam++: w = sum of alpha relu(g), alpha = g^2 / (2 g^2 + sum over space of A g^3)
    (Chattopadhyay et al., 2018). Its weights depend on A itself, not on g alone, and carry that
    gradient. Both are held at ``SMALLEST_WEIGHT`` or above.
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
    recorded map they were computed from. The gradient of the result flows through ``activations``,
    where these have one; d z_c / dA is a constant. Behind the last convolution follow BatchNorm
    with fixed statistics, activations, sums, a pooling and a linear layer: where these are linear
    piece by piece, as ReLU is, d z_c / dA has no gradient to A, and that of the result is the exact
    one for both kinds. All but the networks is in float32.
    """
    (gradients,) = torch.autograd.grad(scores.sum(), activations, retain_graph=True)
    weights = map_weights(activations.float(), gradients.float(), kind)
    combined = (weights * activations.float()).sum(1, keepdim=True).relu()
    enlarged = nn.functional.interpolate(combined, size, mode="bilinear", align_corners=False)
    flat = enlarged.flatten(1)
    lo, hi = flat.amin(1)[:, None, None, None], flat.amax(1)[:, None, None, None]
    return (enlarged - lo) / (hi - lo).clamp_min(1e-8)
