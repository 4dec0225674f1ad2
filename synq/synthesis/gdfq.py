"""A conditional generator of images, trained against the teacher alone (GDFQ).

Shoukai Xu et al., *Generative Low-bitwidth Data Free Quantization* (ECCV 2020): the released SynQ
program takes its activation ranges from the batches of such a generator while it is trained.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from synq.config.calibration import Calibration
from synq.errors import DivergenceError
from synq.runtime.progress import progress
from synq.synthesis import losses
from synq.synthesis.batchnorm import Statistician
from synq.synthesis.generators import BETAS, CONDITIONAL_LATENT, ConditionalGenerator


class GeneratorTraining:
    """Trains a generator so that the teacher knows its images: L = CE + weight L_bn (GDFQ, eq. 5).

    ``step`` makes one batch, learns from it and gives it.
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
        self.network = ConditionalGenerator(classes, image_shape, generator).to(self.device)
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), settings.generator_learning_rate, BETAS
        )

    def step(self) -> tuple[Tensor, Tensor]:
        """Images ``[N, C, H, W]``, detached, and their labels ``[N]``.

        Raises DivergenceError when the loss is not finite.
        """
        count = self.settings.generator_batch_size
        noise = torch.randn(count, CONDITIONAL_LATENT, generator=self.generator).to(self.device)
        labels = torch.randint(self.classes, (count,), generator=self.generator).to(self.device)
        images = self.network(noise, labels)
        logits, statistics = self.statistician(images)
        alignment = torch.stack(losses.bn_alignment(statistics, self.statistician.running)).sum()
        loss = functional.cross_entropy(logits, labels)
        loss = loss + self.settings.generator_bn_weight * alignment
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
