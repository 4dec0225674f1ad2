"""Images of a generator that has learned to make them of noise and a label (GDFQ).

Shoukai Xu et al., *Generative Low-bitwidth Data Free Quantization* (ECCV 2020). Its loss knows the
teacher alone, so that it can be trained to its end before any student is: what it then gives is a
set of images like any other. One generator makes the images of a shard, for the shard's classes.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from synq.config.synthesis import Synthesis
from synq.synthesis.canvas import constant, descend
from synq.synthesis.generators import CONDITIONAL_LATENT, ConditionalGenerator


def conditional_images(
    loss_of: Callable[[Tensor, Tensor], Tensor],
    parts: Sequence[Tensor],
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    generator: torch.Generator,
    device: torch.device,
) -> Iterator[Tensor]:
    """Images ``[n, C, H, W]`` for each of ``parts``, labels ``[n]``, of one generator for all.

    Each iteration sees fresh noise and labels, as many as the largest part has. ``loss_of`` takes
    images and labels. Everything random is drawn on the CPU. The generator normalises by its
    batches at the end as well, which are the parts.
    """
    classes = torch.cat([*parts]).unique()
    network = ConditionalGenerator(len(classes), image_shape, generator).to(device)

    def images_of(chosen: Tensor) -> Tensor:
        noise = torch.randn(len(chosen), CONDITIONAL_LATENT, generator=generator)
        images: Tensor = network(noise.to(device), chosen.to(device))
        return images

    def loss() -> Tensor:
        count = max(map(len, parts))
        chosen = torch.randint(len(classes), (count,), generator=generator)
        return loss_of(images_of(chosen), classes[chosen].to(device))

    learner = constant([*network.parameters()], settings.generator_learning_rate)
    descend(loss, [learner], settings.iterations)
    for labels in parts:
        with torch.no_grad():
            yield images_of(torch.searchsorted(classes, labels))
