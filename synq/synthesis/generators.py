"""Networks that make images of random numbers, and are trained against the teacher alone."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

# Numbers that an image is made of.
LATENT, CONDITIONAL_LATENT = 256, 100

WIDTHS = (128, 64)

# Of the conditional one's BatchNorm layers before the two LeakyReLUs, as in the released program.
EPSILON = 0.8

# Of Adam, as in the released program.
BETAS = (0.5, 0.999)


class Generator(nn.Module):
    """A projection of the latent, then two upsamplings and three convolutions (Genie).

    The last BatchNorm layer has no affine part, so that the images are normalised as the teacher's
    input is. Its initial weights come from ``generator`` alone.
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        generator: torch.Generator,
        *,
        latent: int = LATENT,
        epsilon: float = 1e-5,
        bounded: bool = False,
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        # From a quarter to half to the whole side; sides that 4 does not divide are rounded up.
        self.sizes = [(math.ceil(height / n), math.ceil(width / n)) for n in (4, 2)]
        self.sizes.append((height, width))
        first, second = WIDTHS
        # Layers draw their first weights, which are replaced at once, from the global generator.
        with torch.random.fork_rng(devices=[]):
            self.project = nn.Linear(latent, first * math.prod(self.sizes[0]))
            self.stages = nn.ModuleList(
                [
                    nn.BatchNorm2d(first),
                    nn.Sequential(
                        nn.Conv2d(first, first, 3, padding=1),
                        nn.BatchNorm2d(first, epsilon),
                        nn.LeakyReLU(0.2),
                    ),
                    nn.Sequential(
                        nn.Conv2d(first, second, 3, padding=1),
                        nn.BatchNorm2d(second, epsilon),
                        nn.LeakyReLU(0.2),
                        nn.Conv2d(second, channels, 3, padding=1),
                        *([nn.Tanh()] if bounded else []),
                        nn.BatchNorm2d(channels, affine=False),
                    ),
                ]
            )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, latents: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` of latents ``[N, latent]``."""
        maps = self.project(latents)
        maps = maps.view(len(latents), WIDTHS[0], *self.sizes[0])
        for size, stage in zip(self.sizes, self.stages, strict=True):
            maps = stage(functional.interpolate(maps, size))
        return maps


class ConditionalGenerator(nn.Module):
    """One of noise times an embedding of the label, with a tanh before its end (GDFQ).

    For ImageNet the released program has BatchNorm layers with an affine part for each class, which
    this one has not.
    """

    def __init__(
        self, classes: int, image_shape: tuple[int, int, int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.images = Generator(
            image_shape, generator, latent=CONDITIONAL_LATENT, epsilon=EPSILON, bounded=True
        )
        with torch.random.fork_rng(devices=[]):
            self.embedding = nn.Embedding(classes, CONDITIONAL_LATENT)
        nn.init.normal_(self.embedding.weight, generator=generator)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` from noise ``[N, 100]`` and labels ``[N]``."""
        images: Tensor = self.images(noise * self.embedding(labels))
        return images
