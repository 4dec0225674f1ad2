"""How the student is fine-tuned."""

from dataclasses import dataclass

from synq.config.fields import PRECISIONS, setting
from synq.config.grid import wider
from synq.errors import ConfigError

CAM_KINDS = ("off", "gradcam", "gradcam++")


@dataclass(frozen=True, kw_only=True)
class Finetune:
    """Quantization-aware fine-tuning on synthetic images (paper, section 4)."""

    epochs: int = setting(20, "epochs, each of so many passes; 0: calibrated only", minimum=0)
    passes: int = setting(1, "passes over the synthetic images in an epoch", minimum=1)
    batch_size: int = setting(32, "images a step", minimum=1)
    start: str = setting(
        "network",
        "what the weights begin as: network (its own), or wider (those of the student of the same "
        "method and seed with one bit more for what has under 4 bits, which is made before)",
        choices=("network", "wider"),
    )
    optimizer: str = setting("sgd", "sgd (Nesterov), or adam (AdamW)", choices=("sgd", "adam"))
    learning_rate: float = setting(1e-5, "learning rate of the optimizer", above=0)
    scale_learning_rate: float = setting(
        1e-3, "learning rate of the logarithms of learned scales", above=0
    )
    rates: str = setting(
        "fixed",
        "learning rates: fixed, grid (as they are for weights of 2 bits, and lower by the steps "
        "of a finer grid: Adam then moves a weight by the same share of a step at every width), "
        "or squared (by the square of that, as the rounding's error falls, which is to be made up)",
        choices=("fixed", "grid", "squared"),
    )
    rate_unit: str = setting(
        "one",
        "what learning_rate is a multiple of: one, or size (the root mean square in the network of "
        "each channel of a weight and each other tensor: how they are scaled changes no result)",
        choices=("one", "size"),
    )
    schedule: str = setting(
        "steps",
        "steps (by lr_milestones), or cosine (from the learning rate to 0, step by step)",
        choices=("steps", "cosine"),
    )
    lr_milestones: tuple[int, ...] = setting((), "epochs after which it is multiplied by lr_decay")
    lr_decay: float = setting(0.1, "factor at each milestone", above=0, maximum=1)
    momentum: float = setting(0.9, "Nesterov momentum", above=0, maximum=1)
    weight_decay: float = setting(
        1e-4, "of all parameters but learned scales: an L2 penalty, with adam AdamW's", minimum=0
    )
    gradient_scaling: float = setting(
        0.0,
        "of a weight's gradient, where weights are learned: it is larger by this share of how far "
        "the weight is from its code, where it leads there, and smaller where it leads away "
        "(EWGS); 0: off",
        minimum=0,
        maximum=1,
    )
    average: float = setting(
        0.0,
        "share that an average of all parameters keeps at each step, as in 0.999; each epoch then "
        "gives the averages in place of the newest parameters; 0: off",
        minimum=0,
        maximum=0.99999,
    )
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
    block_weight: float = setting(
        0.0, "weight of the matching of every block's output with the teacher's", minimum=0
    )
    activation_weight: float = setting(
        0.0,
        "weight of the matching of every quantized activation, before it is rounded, with the "
        "teacher's",
        minimum=0,
    )
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
    jitter: float = setting(
        0.0,
        "largest change of an image's contrast, as a share of it; half of it, in standard "
        "deviations, of its brightness, and a quarter of each channel's; 0: off",
        minimum=0,
        maximum=0.9,
    )
    leaves: float = setting(
        0.0,
        "share of each pass that are dead leaves (synthesis.begin) as they are drawn, in place of "
        "synthetic images; their labels are the network's answers; 0: off",
        minimum=0,
        maximum=0.9,
    )
    reconstruct: str = setting(
        "off",
        "before the training each residual unit, and each layer outside of one, is fitted in turn "
        "to give what the teacher's gives (BRECQ, Genie): off; rounding (each weight is rounded up "
        "or down, AdaRound, and steps are learned; for calibration.weights: learned); weights "
        "(they are trained themselves, at the rates of the training)",
        choices=("off", "rounding", "weights"),
    )
    reconstruct_steps: int = setting(500, "such steps on each of them", minimum=1)
    reconstruct_images: int = setting(1024, "images that they are fitted on, at most", minimum=1)
    reconstruct_batch_size: int = setting(32, "images of each such step", minimum=1)
    reconstruct_drop: float = setting(
        0.5,
        "share of the values of each activation that such a step leaves unquantized, and of what a "
        "unit is given that come from the teacher (QDrop)",
        minimum=0,
        maximum=1,
    )
    reconstruct_memory: int = setting(
        1000,
        "for what a unit is given and gives on these images; where they need more they take turns",
        unit="MB",
        minimum=1,
    )
    rounding_learning_rate: float = setting(
        1e-2, "Adam's learning rate for the rounding of weights (reconstruct: rounding)", above=0
    )
    rounding_weight: float = setting(
        1.0, "weight of what drives each rounding up or down in the end (the same)", minimum=0
    )
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
    select: str = setting(
        "held_out",
        "the student that is shipped: held_out (of the epoch with the smallest held-out loss), or "
        "last (of the last epoch, where a schedule ends)",
        choices=("held_out", "last"),
    )
    keep: str = setting(
        "all",
        "students kept: all (each epoch, for best_on_test), ends (calibrated, selected, last)",
        choices=("all", "ends"),
    )

    def __post_init__(self) -> None:
        aligned = self.cam_weight if self.cam != "off" else 0.0
        again = self.distillation_weight + self.ce_weight + self.block_weight
        again += self.activation_weight
        moved = again + self.feature_weight * self.perturbed_features
        if self.epochs and not again + self.feature_weight + aligned:
            raise ConfigError(
                "every weight of the objective is 0; raise one, as distillation_weight, or write "
                "epochs: 0"
            )
        if self.epochs and self.perturbation and not moved:
            raise ConfigError(
                f"perturbation is {self.perturbation:g}, and no term that counts at x' has a "
                "weight; set perturbation: 0, or raise one, as distillation_weight"
            )

    def rung(self, bits: str) -> str | None:
        """The widths of the student that one of ``bits`` begins with; None: the network's own."""
        return wider(bits) if self.start == "wider" else None
