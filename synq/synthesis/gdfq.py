"""A conditional generator of images, trained against the teacher alone (GDFQ).

Shoukai Xu et al., *Generative Low-bitwidth Data Free Quantization* (ECCV 2020): the released SynQ
program takes its activation ranges from the batches of such a generator while it is trained.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from synq.config.calibration import Calibration
from synq.errors import DivergenceError
from synq.runtime.progress import progress
from synq.synthesis import losses
from synq.synthesis.batchnorm import Statistician

LATENT = 100


WIDTHS = (128, 64)

# Of the BatchNorm layers before the two LeakyReLUs, as in the released program.
EPSILON = 0.8

# Of Adam, as in the released program.
BETAS = (0.5, 0.999)


class ConditionalGenerator(nn.Module):
    """Noise times an embedding of the label, then two upsamplings with convolutions.

    The last BatchNorm layer has no affine part, so that the images are normalised as the teacher's
    input is. Its initial weights come from ``generator`` alone. For ImageNet the released program
    has BatchNorm layers with an affine part for each class, which this one has not.
    """

    def __init__(
        self, classes: int, image_shape: tuple[int, int, int], generator: torch.Generator
    ) -> None:
        super().__init__()
        channels, height, width = image_shape
        # From a quarter to half to the whole side; sides that 4 does not divide are rounded up.
        self.sizes = [(math.ceil(height / n), math.ceil(width / n)) for n in (4, 2)]
        self.sizes.append((height, width))
        first, second = WIDTHS
        self.embedding = nn.Embedding(classes, LATENT)
        self.project = nn.Linear(LATENT, first * math.prod(self.sizes[0]))
        self.stages = nn.ModuleList(
            [
                nn.BatchNorm2d(first),
                nn.Sequential(
                    nn.Conv2d(first, first, 3, padding=1),
                    nn.BatchNorm2d(first, EPSILON),
                    nn.LeakyReLU(0.2),
                ),
                nn.Sequential(
                    nn.Conv2d(first, second, 3, padding=1),
                    nn.BatchNorm2d(second, EPSILON),
                    nn.LeakyReLU(0.2),
                    nn.Conv2d(second, channels, 3, padding=1),
                    nn.Tanh(),
                    nn.BatchNorm2d(channels, affine=False),
                ),
            ]
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5), generator=generator)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.embedding.weight, generator=generator)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Images ``[N, C, H, W]`` from noise ``[N, 100]`` and labels ``[N]``."""
        maps = self.project(noise * self.embedding(labels))
        maps = maps.view(len(noise), WIDTHS[0], *self.sizes[0])
        for size, stage in zip(self.sizes, self.stages, strict=True):
            maps = stage(functional.interpolate(maps, size))
        return maps


class GeneratorTraining:
    """Trains a generator so that the teacher knows its images: L = CE + weight L_bn (GDFQ, eq. 5).

    ``step`` makes one batch, learns from it and gives it. A method that trains student and
    generator in turns calls it with what the student adds to the generator's loss.
    """

    def __init__(
        self,
        teacher: nn.Module,
        classes: int,
        image_shape: tuple[int, int, int],
        settings: Calibration,
        generator: torch.Generator,
    ) -> None:
        self.classes, self.settings = classes, settings
        self.generator = generator
        self.device = next(teacher.parameters()).device
        self.statistician = Statistician(teacher, image_shape)
        # Layers draw their first weights, which are replaced at once, from the global generator.
        with torch.random.fork_rng(devices=[]):
            self.network = ConditionalGenerator(classes, image_shape, generator).to(self.device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), settings.generator_learning_rate, BETAS
        )

    def step(
        self, added_loss: Callable[[Tensor, Tensor], Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Images ``[N, C, H, W]``, detached, and their labels ``[N]``.

        Raises DivergenceError when the loss is not finite.
        """
        count = self.settings.generator_batch_size
        noise = torch.randn(count, LATENT, generator=self.generator).to(self.device)
        labels = torch.randint(self.classes, (count,), generator=self.generator).to(self.device)
        images = self.network(noise, labels)
        logits, statistics = self.statistician(images)
        alignment = torch.stack(losses.bn_alignment(statistics, self.statistician.running)).sum()
        loss = functional.cross_entropy(logits, labels)
        loss = loss + self.settings.generator_bn_weight * alignment
        if added_loss is not None:
            loss = loss + added_loss(images, labels)
        if not torch.isfinite(loss.detach()):
            raise DivergenceError(
                "the loss of the generator for the activation ranges is not finite; "
                "lower calibration.generator_learning_rate"
            )
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return images.detach(), labels

    def batches(self) -> Iterator[Tensor]:
        """The images of ``generator_steps`` steps, as they are made."""
        for _ in progress(range(self.settings.generator_steps), "generator"):
            yield self.step()[0]
