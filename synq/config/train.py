"""Training of the embedded default's teacher."""

from dataclasses import dataclass

from synq.config.fields import setting


@dataclass(frozen=True, kw_only=True)
class Train:
    """Training of the embedded default's teacher (a stand-in for a download)."""

    train_epochs: int = setting(12, "passes over the training images", minimum=1)
    train_batch_size: int = setting(64, "images a step", minimum=2)
    train_learning_rate: float = setting(0.05, "peak of the one-cycle schedule of SGD", above=0)
    train_weight_decay: float = setting(5e-4, "L2 penalty on every parameter", minimum=0)
    train_crop_min: float = setting(
        0.6, "smallest share of the area that a random crop keeps; 1: no crop", above=0, maximum=1
    )
    train_noise: float = setting(
        0.2, "Gaussian noise on the images, in standard deviations of a pixel", minimum=0
    )
    train_seed: int = setting(0, "seed of the initial weights and the order of images", minimum=0)
