"""Where networks look: class activation maps of several on the same images, for a figure."""

from collections.abc import Mapping

import numpy
from torch import Tensor, nn

from synq.finetuning.saliency import activation_map
from synq.models.hooks import recorded


def maps(
    models: Mapping[str, nn.Module], layer: str, images: Tensor, labels: Tensor
) -> dict[str, numpy.ndarray]:
    """Grad-CAM of each model, ``[K, 1, H, W]`` in [0, 1], for the images' labels.

    ``images`` are ``[K, C, H, W]``, normalised; ``layer`` names the convolution that
    ``models.features.cam_layer`` finds, in the students too.
    """
    found = {}
    for name, model in models.items():
        # A frozen network has no graph; one that begins at its images has. What it is given is a
        # copy, since it may alter that in place.
        seen = images.detach().clone().requires_grad_().clone()
        with recorded({layer: model.get_submodule(layer)}, apart=True) as record:
            scores = model(seen).gather(1, labels[:, None]).squeeze(1)
            size = (images.shape[-2], images.shape[-1])
            found[name] = activation_map(scores, record[layer], size).detach().numpy()
    return found
