"""Calibration centres: one image of each class, whose statistics TexQ aligns."""

import torch
from torch import Tensor, nn

from synq.config.synthesis import Synthesis
from synq.synthesis import losses
from synq.synthesis.batchnorm import Statistician
from synq.synthesis.losses import Statistics
from synq.synthesis.synthesize import optimise


def calibration_centres(
    teacher: nn.Module,
    classes: int,
    image_shape: tuple[int, int, int],
    settings: Synthesis,
    generator: torch.Generator,
) -> Statistics:
    """Statistics of one optimised image a class (TexQ's calibration centres).

    1,500 iterations of L = 5 CE + (1/L) sum_l w_l [...], w_l = 0.2 in the shallow layers and 1.1 in
    the deep ones. The variance is the total one: within the images and between them.

    All centres are one batch, of a network with 1,000 classes 1,000 images, and every image counts
    the same. The released program makes them in several batches, does not weigh the
    variance of the first by its count (3 % of the term), and does not let the learning rate fall
    under 0.05; here it falls as that of the images does.
    """
    reader = Statistician(teacher, image_shape, settings.compile)
    weights = [0.2 if i < reader.first_deep else 1.1 for i in range(reader.count)]

    def loss_of(images: Tensor, labels: Tensor) -> Tensor:
        logits, batch = reader(images)
        mean_term, variance_term = losses.bn_alignment(batch, reader.running, weights)
        return mean_term + variance_term + 5 * losses.target_loss(logits, labels, 0)

    labels = torch.arange(classes)
    device = next(teacher.parameters()).device
    images = optimise(
        loss_of, labels, image_shape, settings, settings.centre_iterations, generator, device
    )
    with torch.no_grad():
        _, centres = reader(images)
    return centres
