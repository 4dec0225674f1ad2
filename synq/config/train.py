"""Training of the embedded default's teacher."""

from dataclasses import dataclass

from synq.config.fields import setting


@dataclass(frozen=True, kw_only=True)
class Train:
    """Training of the embedded default's teacher (a stand-in for a download)."""

    epochs: int = setting(12, "passes over the training images", minimum=1)
    batch_size: int = setting(64, "images a step", minimum=2)
    learning_rate: float = setting(0.05, "peak of the one-cycle schedule of SGD", above=0)
    weight_decay: float = setting(5e-4, "L2 penalty on every parameter", minimum=0)
    crop_min: float = setting(
        0.6, "smallest share of the area that a random crop keeps; 1: no crop", above=0, maximum=1
    )
    noise: float = setting(
        0.2, "Gaussian noise on the images, in standard deviations of a pixel", minimum=0
    )
    seed: int = setting(0, "seed of the initial weights and the order of images", minimum=0)
