"""How images are synthesized."""

from dataclasses import dataclass, replace

from synq.config.fields import PRECISIONS, setting
from synq.errors import ConfigError

# What images are made by where Adam optimises no image itself.
NETWORKS = ("generator", "conditional")
# For images_per_class: 0, how many in all, and of each class at least. With 10 classes three times
# as many made no better students (docs/experiments.md, two bits at four times the length).
ENOUGH, ENOUGH_OF_A_CLASS = 1280, 10


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Images from the teacher alone (paper, section 3; HAST for the target; PSAQ-ViT)."""

    images_per_class: int = setting(
        0,
        f"images of each class; 0: {ENOUGH:,} in all, and at least {ENOUGH_OF_A_CLASS} of each",
        minimum=0,
    )
    classes_per_shard: int = setting(
        10, "classes that one job optimises together, in one file", minimum=1
    )
    batch_size: int = setting(64, "images optimised together, at most", minimum=1)
    iterations: int = setting(100, "Adam steps on the pixels of a batch", minimum=1)
    pixel_learning_rate: float = setting(
        0.5, "Adam's learning rate for pixels, coefficients or latents", above=0
    )
    plateau_patience: int = setting(
        50, "iterations without improvement before the learning rate is divided by 10", minimum=1
    )
    prior: str = setting(
        "auto",
        "what makes images natural: batchnorm (the statistics of the BatchNorm layers), "
        "patches (diverse patches in the attention layers, PSAQ-ViT); "
        "auto: batchnorm where there are such layers, or else patches",
        choices=("auto", "batchnorm", "patches"),
    )
    bn_weight: float = setting(
        1.0, "weight of the BatchNorm alignment (prior: batchnorm)", minimum=0
    )
    patch_weight: float = setting(
        1.0, "weight of the entropy of patch similarities (prior: patches)", minimum=0
    )
    patch_bandwidth: float = setting(
        0.05,
        "width of the kernels that estimate it, in units of cosine (prior: patches)",
        minimum=0.01,
    )
    tv_weight: float = setting(
        0.05, "weight of the total variation, a mean over pixels (prior: patches)", minimum=0
    )
    statistic: str = setting(
        "variance",
        "what of the spread is aligned: variance (the papers'), or deviation (its root, Genie; "
        "prior: batchnorm)",
        choices=("variance", "deviation"),
    )
    parameters: str = setting(
        "pixels",
        "what Adam optimises: pixels; fourier (coefficients with amplitudes that fall as 1 / f, "
        "as those of photographs do); generator (a latent for each image and a network that "
        "decodes a batch of them, Genie); conditional (a network that makes images of any noise "
        "and a label, for the classes of a file together, GDFQ)",
        choices=("pixels", "fourier", "generator", "conditional"),
    )
    generator_learning_rate: float = setting(
        0.01, "Adam's learning rate for that network (parameters: generator, conditional)", above=0
    )
    swing: int = setting(
        0,
        "largest shift of what a convolution with a stride reads, at random in each iteration "
        "(Genie: 1); 0: off",
        unit="px",
        minimum=0,
    )
    begin: str = setting(
        "noise",
        "what images begin as: noise, or leaves (shapes that cover one another, whose sizes fall "
        "as r^-3: edges and even regions, as photographs have)",
        choices=("noise", "leaves"),
    )
    lowpass_sigma: float = setting(
        0.0,
        "px: the network sees the images through a Gaussian low-pass filter of this width, and as "
        "it sees them they are written; 0: off",
        minimum=0,
    )
    clamp: bool = setting(
        False,
        "pixels are clamped to what an image holds, [0, 1] before mean and std, once they are made",
    )
    target: str = setting(
        "hard",
        "what pulls images to their labels: none (ZeroQ), labels (cross-entropy), "
        "hard (cross-entropy weighted by difficulty, HAST)",
        choices=("none", "labels", "hard"),
    )
    target_weight: float = setting(10.0, "beta: weight of the target", minimum=0)
    target_gamma: float = setting(
        2.0, "gamma: exponent of the difficulty (target: hard)", minimum=0
    )
    deep_weight: float = setting(
        0.0, "weight of the deep-layer statistics of calibration centres (TexQ); 0: off", minimum=0
    )
    deep_norm: str = setting(
        "layers",
        "the deep-layer term is divided by its number of layers, or by layers x images as released",
        choices=("layers", "released"),
    )
    centre_iterations: int = setting(
        1500, "Adam steps on the calibration centres (deep_weight > 0)", minimum=1
    )
    augment: float = setting(
        0.0,
        "probability that an iteration sees the batch cropped and flipped",
        minimum=0,
        maximum=1,
    )
    crop_min: float = setting(
        0.4, "smallest share of the area that such a crop keeps", above=0, maximum=1
    )
    precision: str = setting(
        "float32",
        "arithmetic of the network's convolutions and products; statistics, losses and pixels are "
        "float32 always",
        choices=PRECISIONS,
    )
    compile: str = setting(
        "off",
        "torch.compile of the network, and its mode (prior: batchnorm): a sixth of the time less "
        "on a CPU, after half a minute; needs a C++ compiler, and on a GPU Triton",
        choices=("off", "default", "reduce-overhead"),
    )

    def of_classes(self, classes: int) -> "Synthesis":
        """The same with a number of images for ``images_per_class: 0``."""
        if self.images_per_class:
            return self
        return replace(self, images_per_class=max(-(-ENOUGH // classes), ENOUGH_OF_A_CLASS))

    def __post_init__(self) -> None:
        if self.prior == "patches" and self.deep_weight > 0:
            raise ConfigError(
                "deep_weight is for BatchNorm statistics, which prior: patches does without; "
                "set deep_weight: 0"
            )
        if self.parameters in NETWORKS and self.begin != "noise":
            raise ConfigError(
                f"begin is {self.begin}, and parameters: {self.parameters} makes images of noise; "
                "write begin: noise, or parameters: fourier"
            )
        if self.parameters in NETWORKS and self.deep_weight > 0:
            raise ConfigError(
                f"deep_weight needs centres that are optimised themselves, and parameters is "
                f"{self.parameters}; set deep_weight: 0, or parameters: pixels"
            )
        if self.swing and self.compile != "off":
            raise ConfigError(
                "swing changes the network in each iteration, which is not compiled; set swing: 0 "
                "or compile: off"
            )
