"""Images of a generator that has learned to make them of noise and a label (GDFQ).

Shoukai Xu et al., *Generative Low-bitwidth Data Free Quantization* (ECCV 2020). Its loss knows the
teacher alone, so that it can be trained to its end before any student is: what it then gives is a
set of images like any other. One generator makes the images of a shard, for the shard's classes.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from synq.config.synthesis import Synthesis
from synq.synthesis.canvas import constant, descend
from synq.synthesis.generators import CONDITIONAL_LATENT, ConditionalGenerator


def conditional_images(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    labels: Tensor,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    generator: torch.Generator,
    device: torch.device,
) -> Tensor:
    """An image for each of ``labels`` ``[N]``: ``[N, C, H, W]``.

    Each iteration sees fresh noise and labels, a batch of ``batch_size`` or of N where that is
    less. ``loss_of`` takes images and labels. Everything random is drawn on the CPU. The generator
    normalises by its batches at the end as well, which are of nearly equal size.
    """
    classes = labels.unique()
    places = torch.searchsorted(classes, labels)
    network = ConditionalGenerator(len(classes), image_shape, generator).to(device)

    def images_of(chosen: Tensor) -> Tensor:
        noise = torch.randn(len(chosen), CONDITIONAL_LATENT, generator=generator)
        images: Tensor = network(noise.to(device), chosen.to(device))
        return images

    def loss() -> Tensor:
        count = min(settings.batch_size, len(labels))
        chosen = torch.randint(len(classes), (count,), generator=generator)
        return loss_of(images_of(chosen), classes[chosen].to(device))

    learner = constant([*network.parameters()], settings.generator_learning_rate)
    descend(loss, [learner], settings.iterations)
    batches = places.tensor_split(-(-len(labels) // settings.batch_size))
    with torch.no_grad():
        return torch.cat([images_of(batch) for batch in batches])
