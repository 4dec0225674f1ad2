"""Images of one network's input as another network takes them."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def refitted(
    images: Tensor,
    mean: Sequence[float],
    std: Sequence[float],
    to_mean: Sequence[float],
    to_std: Sequence[float],
    size: int,
) -> Tensor:
    """``[N, C, H, W]``, normalised by ``mean`` and ``std``, as ``[N, C, size, size]`` by others.

    Values beyond [0, 1], as synthetic images have them, stay. Resizing is bilinear, with a low-pass
    where images become smaller. Images that fit already are given back as they are.
    """
    if images.shape[-2:] != (size, size):
        images = functional.interpolate(
            images, (size, size), mode="bilinear", align_corners=False, antialias=True
        )
    if [*mean, *std] == [*to_mean, *to_std]:
        return images
    from_, to = (
        [torch.tensor(values)[:, None, None] for values in pair]
        for pair in ((mean, std), (to_mean, to_std))
    )
    return (images * from_[1] + from_[0] - to[0]) / to[1]
