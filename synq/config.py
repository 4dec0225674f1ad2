"""Every setting of every stage, one frozen dataclass a stage; see ``synq.settings``.

Without torch, as the Snakefile imports it.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from synq import zoo
from synq.errors import ConfigError
from synq.published import PUBLISHED
from synq.settings import setting, settings_of

FACTORY = re.compile(r"\w+(\.\w+)*:\w+(\.\w+)*")
CAM_KINDS = ("off", "gradcam", "gradcam++")
PRECISIONS = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Model:
    """Where a classifier comes from and what its input looks like.

    What a zoo knows need not be given. What torchvision alone knows stays empty until its weights
    are fetched: the input's size, mean and standard deviation.
    """

    source: str = setting(
        text="train: trained on the embedded digits; file: weights from a path or URL; pytorchcv, "
        "torchvision: from their zoos; python: built by your own function, weights from a file",
        choices=("train", "file", "pytorchcv", "torchvision", "python"),
    )
    architecture: str = setting("", "name of a pytorchcv or torchvision model, e.g. resnet18")
    factory: str = setting(
        "", "package.module:function, which returns the network without weights (source: python)"
    )
    classes: int = setting(0, "number of classes; a zoo knows it", minimum=2, maximum=1_000_000)
    channels: int = setting(3, "channels of the input image", minimum=1)
    image_size: int = setting(
        0, "height and width of the input; a zoo knows it", unit="px", minimum=8
    )
    mean: tuple[float, ...] = setting((), "mean of each input channel, of images in [0, 1]")
    std: tuple[float, ...] = setting((), "standard deviation of each input channel", above=0)
    weights: str = setting(
        "",
        "path or http(s) URL of the state dict (source: file, python); name of the zoo's file "
        "or entry, e.g. IMAGENET1K_V1, where it is not the newest one",
    )
    sha256: str = setting("", "SHA-256 of that file, 64 hexadecimal digits (source: file, python)")
    store: str = setting("~/.cache/synq", "folder that keeps the files of the zoos")
    mirror: str = setting(
        "", "http(s) URL to use in place of the zoo's https://github.com/osmr/imgclsmob or host"
    )

    def __post_init__(self) -> None:
        reads = MODEL_SETTINGS[self.source]
        read_by_some = {name for names in MODEL_SETTINGS.values() for name in names}
        for name in settings_of(Model):
            if name in read_by_some - set(reads) and getattr(self, name):
                raise ConfigError(f"{name} has no meaning with source: {self.source}; remove it")
        if self.architecture:
            self._complete()
        missing = [name for name in settings_of(Model) if reads.get(name) and self._lacks(name)]
        if missing:
            are = "is" if len(missing) == 1 else "are"
            it = "it" if len(missing) == 1 else "them"
            raise ConfigError(
                f"{', '.join(missing)} {are} missing; source: {self.source} needs {it}"
                + (f" for {self.architecture}" if self.source == "pytorchcv" else "")
            )
        for name in ("mean", "std"):
            if getattr(self, name) and len(getattr(self, name)) != self.channels:
                raise ConfigError(
                    f"{name} has {len(getattr(self, name))} values, but the images have "
                    f"{self.channels} channels; give one value a channel"
                )
        digits = self.sha256.lower()
        if self.sha256 and (len(digits) != 64 or set(digits) - set("0123456789abcdef")):
            raise ConfigError("sha256 is not 64 hexadecimal digits; `sha256sum FILE` prints it")
        if self.factory and not FACTORY.fullmatch(self.factory):
            raise ConfigError(f"factory is {self.factory!r}; write it as package.module:function")
        if not self.store:
            raise ConfigError("store is empty; write the path of a folder")
        if self.mirror and not self.mirror.startswith(("http://", "https://")):
            raise ConfigError(f"mirror is {self.mirror!r}; write an http(s) URL")

    def _lacks(self, name: str) -> bool:
        return not getattr(self, name)

    def _complete(self) -> None:
        """Fill what is empty with what the zoo knows."""
        found = {}
        if self.source == "pytorchcv":
            found = zoo.known(self.architecture, self.weights)
        elif self.source == "torchvision":
            found = {"classes": zoo.IMAGENET["classes"]}
        for name, value in found.items():
            if self._lacks(name):
                object.__setattr__(self, name, value)  # frozen from here on


# What the sources read besides their channels and the store, and whether they need it.
_INPUT = {"classes": True, "image_size": True, "mean": True, "std": True}
_WEIGHTS = {"weights": True, "sha256": True}
_ZOO = {"architecture": True, "weights": False, "mirror": False}
MODEL_SETTINGS: Mapping[str, Mapping[str, bool]] = {
    "train": {"architecture": True, **_INPUT, "mean": False, "std": False},
    "file": {"architecture": True, **_WEIGHTS, **_INPUT},
    "pytorchcv": {**_ZOO, **_INPUT},
    "torchvision": {**_ZOO, **_INPUT, "image_size": False, "mean": False, "std": False},
    "python": {"factory": True, **_WEIGHTS, **_INPUT},
}
# Where files come from and stay, which changes no result.
PLACES = ("store", "mirror")


DATASETS = ("none", "digits", "folder", "arrays", "cifar10", "cifar100")
_DATASET = (
    "digits: scikit-learn's, inside the package; folder: one directory of images a class; "
    "arrays: an .npz or HDF5 file; cifar10, cifar100: torchvision's, downloaded into path; none: "
)
_PATH = "the folder (folder), the file (arrays), or where to keep the download (cifar10, cifar100)"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Real images, as an evaluation or a few-shot method reads them."""

    path: str = setting("", _PATH)
    resized_crop: float = setting(
        0.875,
        "share of the resized image's shorter side that the centre crop keeps; images that have "
        "the input's size are left alone (folder, arrays)",
        above=0,
        maximum=1,
    )
    interpolation: str = setting(
        "bilinear", "of the resizing (folder, arrays)", choices=("bilinear", "bicubic")
    )

    def __post_init__(self) -> None:
        dataset = getattr(self, "dataset", "none")
        if dataset in ("folder", "arrays", "cifar10", "cifar100") and not self.path:
            raise ConfigError(f"path is missing; dataset: {dataset} needs {_PATH}")


@dataclass(frozen=True, kw_only=True)
class TestSet(Data):
    """The real images that accuracy is measured on."""

    dataset: str = setting(
        "none",
        _DATASET + "there is no test set, so agreement with the teacher is measured, "
        "on the synthetic images that were held out",
        choices=DATASETS,
    )
    published: str = setting(
        "",
        "the papers' benchmark that model and test set are, to show their numbers beside",
        choices=("", *PUBLISHED),
    )


@dataclass(frozen=True, kw_only=True)
class RealImages(Data):
    """A few real images in place of synthetic ones (image sets with source: real)."""

    dataset: str = setting("none", _DATASET + "there are none", choices=DATASETS)
    images_per_class: int = setting(16, "images of each class, drawn by the seed", minimum=1)
    classes_per_shard: int = setting(1, "classes in one file", minimum=1)


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


@dataclass(frozen=True, kw_only=True)
class Synthesis:
    """Images from the teacher alone (paper, section 3; HAST for the target; PSAQ-ViT)."""

    images_per_class: int = setting(512, "images of each class", minimum=1)
    classes_per_shard: int = setting(
        1, "classes that one job optimises together, in one file", minimum=1
    )
    synthesis_batch_size: int = setting(256, "images optimised together, at most", minimum=1)
    iterations: int = setting(1000, "Adam steps on the pixels of a batch", minimum=1)
    pixel_learning_rate: float = setting(0.5, "Adam's learning rate", above=0)
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
    synthesis_augment: float = setting(
        0.0,
        "probability that an iteration sees the batch cropped and flipped",
        minimum=0,
        maximum=1,
    )
    synthesis_crop_min: float = setting(
        0.4, "smallest share of the area that such a crop keeps", above=0, maximum=1
    )
    synthesis_precision: str = setting(
        "float32",
        "arithmetic of the network's convolutions and products; statistics, losses and pixels are "
        "float32 always",
        choices=PRECISIONS,
    )
    synthesis_compile: str = setting(
        "off",
        "torch.compile of the network, and its mode (prior: batchnorm): a sixth of the time less "
        "on a CPU, after half a minute; needs a C++ compiler, and on a GPU Triton",
        choices=("off", "default", "reduce-overhead"),
    )

    def __post_init__(self) -> None:
        if self.prior == "patches" and self.deep_weight > 0:
            raise ConfigError(
                "deep_weight is for BatchNorm statistics, which prior: patches does without; "
                "set deep_weight: 0"
            )


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the student's activation ranges come from images."""

    range_estimator: str = setting(
        "mse",
        "minmax: extremes of all images; ema: exponential average of batch extremes; "
        "mse: the clip that minimises the L_p error of quantization",
        choices=("minmax", "ema", "mse"),
    )
    range_source: str = setting(
        "images",
        "images: those of the training, augmented and filtered as there; "
        "generator: those of a conditional generator (GDFQ), while it is trained",
        choices=("images", "generator"),
    )
    range_images: int = setting(
        256, "images that the ranges are taken from, at most (range_source: images)", minimum=1
    )
    generator_steps: int = setting(800, "training steps of the generator", minimum=1)
    generator_batch_size: int = setting(16, "images of each such step", minimum=2)
    generator_learning_rate: float = setting(1e-3, "Adam's learning rate for it", above=0)
    generator_bn_weight: float = setting(
        0.1, "weight of its BatchNorm alignment beside the cross-entropy", minimum=0
    )
    range_power: float = setting(2.4, "p of the L_p error (mse)", above=0)
    range_momentum: float = setting(
        0.9, "share of the old range that a batch keeps (ema)", minimum=0, maximum=1
    )
    clip_ratio: float = setting(
        1.0,
        "factor on both ends of every estimated range; the released program acts like 0.7",
        above=0,
        maximum=2,
    )


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Quantization-aware fine-tuning on synthetic images (paper, section 4)."""

    epochs: int = setting(100, "passes over the synthetic images; 0: calibrated only", minimum=0)
    batch_size: int = setting(64, "images a step", minimum=1)
    learning_rate: float = setting(1e-5, "SGD's learning rate (Nesterov)", above=0)
    lr_milestones: tuple[int, ...] = setting((), "epochs after which it is multiplied by lr_decay")
    lr_decay: float = setting(0.1, "factor at each milestone", above=0, maximum=1)
    momentum: float = setting(0.9, "Nesterov momentum", above=0, maximum=1)
    weight_decay: float = setting(1e-4, "L2 penalty on every parameter", minimum=0)
    temperature: float = setting(20.0, "T of the distillation", above=0)
    distillation_weight: float = setting(20.0, "alpha: weight of the distillation", minimum=0)
    ce_weight: float = setting(0.5, "lambda_ce: weight of the cross-entropy", minimum=0)
    hard_labels: str = setting(
        "easy",
        "images taught by their label too: easy (difficulty under the threshold), all, none",
        choices=("easy", "all", "none"),
    )
    difficulty_threshold: float = setting(0.5, "tau: easy is under it", minimum=0, maximum=1)
    cam: str = setting("gradcam", "class activation maps to align", choices=CAM_KINDS)
    cam_class: str = setting(
        "own",
        "class of the maps: each network's own top class, the teacher's for both, or the label",
        choices=("own", "teacher", "label"),
    )
    cam_weight: float = setting(50.0, "lambda_cam: weight of the map alignment", minimum=0)
    feature_weight: float = setting(0.0, "lambda_fa: weight of the feature alignment", minimum=0)
    perturbation: float = setting(
        0.0, "epsilon: step along the sign of the image gradient (HAST: 0.01); 0: off", minimum=0
    )
    perturbation_weight: float = setting(1.0, "weight of the losses at x'", minimum=0)
    perturbed_features: bool = setting(True, "the feature alignment counts at x' too")
    lowpass: str = setting(
        "batch",
        "low-pass filter: off, before (once, before any augmentation), batch (after augmentation)",
        choices=("off", "before", "batch"),
    )
    lowpass_sigma: float = setting(
        0.45, "width of the filter as a Gaussian blur (0.45 is D0 = 80 at 224)", unit="px", above=0
    )
    crop_min: float = setting(
        0.5, "smallest share of the area that the random crop keeps; 1: no crop", above=0, maximum=1
    )
    flip: float = setting(0.5, "probability of a horizontal flip", minimum=0, maximum=1)
    holdout: float = setting(
        0.1, "share of the images of each class kept to select the epoch", minimum=0, maximum=0.9
    )
    precision: str = setting(
        "float32",
        "arithmetic of the networks' convolutions and products; quantizers, losses and parameters "
        "are float32 always",
        choices=PRECISIONS,
    )
    processes: int = setting(
        1, "processes that train one student together, one for each GPU (torchrun)", minimum=1
    )
    keep: str = setting(
        "all",
        "students kept: all (each epoch, for best_on_test), ends (calibrated, selected, last)",
        choices=("all", "ends"),
    )


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracy on the real test images."""

    evaluation_batch_size: int = setting(256, "images a forward", minimum=1)


@dataclass(frozen=True, kw_only=True)
class Export:
    """The file for a runtime."""

    format: str = setting(
        "onnx", "what the selected student is written as, too", choices=("onnx", "none")
    )
    export_images: int = setting(
        1000, "synthetic images on which the runtime is compared with torch, at most", minimum=1
    )
    least_agreement: float = setting(
        95.0,
        "the least share of them on which both must name the same class",
        unit="percent",
        minimum=0,
        maximum=100,
    )


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What ``rule all`` makes: every combination of these."""

    models: tuple[str, ...] = setting(text="names under models")
    bits: tuple[str, ...] = setting(text="widths, w4a4: weights and activations of 4 bits")
    methods: tuple[str, ...] = setting(text="names under methods")
    seeds: tuple[int, ...] = setting(
        text="seeds of the images and of the fine-tuning", minimum=0, maximum=2**63
    )


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The table that compares methods with one of them."""

    full: str = setting("synq", "the method that the others are compared with")
    methods: tuple[str, ...] = setting((), "its rows, names under methods; none: no such table")


def parse_bits(bits: str, where: str = "bits") -> tuple[int, int]:
    """``'w4a8'`` -> (4, 8): bits of weights and of activations, 2 to 8 each."""
    parts = bits[1:].split("a") if isinstance(bits, str) and bits.startswith("w") else []
    if len(parts) != 2 or not all(len(part) == 1 and part in "0123456789" for part in parts):
        raise ConfigError(f"{where} is {bits!r}; write the widths as in w4a4")
    for name, part in zip(("weights", "activations"), parts, strict=True):
        if not 2 <= int(part) <= 8:
            raise ConfigError(f"{where} is {bits!r}; {name} of {part} bits are not among 2 to 8")
    return int(parts[0]), int(parts[1])
