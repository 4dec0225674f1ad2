"""How activation ranges are found."""

from dataclasses import dataclass

from synq.config.fields import setting


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """How the student's activation ranges come from images."""

    weights: str = setting(
        "minmax",
        "grids of the weights, one per output channel: minmax (extremes, anew at every forward), "
        "learned (steps that are trained, LSQ), squant (as calibrated, and weights rounded so that "
        "their errors cancel in every kernel and output channel)",
        choices=("minmax", "learned", "squant"),
    )
    activations: str = setting(
        "static",
        "grids of the activations, one per tensor: static (as calibrated), learned (LSQ)",
        choices=("static", "learned"),
    )
    scope: str = setting(
        "calls",
        "tensors that are quantized beside the weights: calls (activations where they are called, "
        "the paper's scheme), inputs (the input of every other layer too), everything (also the "
        "image, sums, averages, concatenations and logits: a graph of integers alone)",
        choices=("calls", "inputs", "everything"),
    )
    sum_bits: int = setting(
        8,
        "bits of the image, and of what everything adds",
        minimum=2,
        maximum=8,
    )
    weight_estimator: str = setting(
        "minmax",
        "where learned grids of weights begin, and squant's are: minmax (extremes), mse (the clip "
        "of each channel that minimises the L_p error)",
        choices=("minmax", "mse"),
    )
    ends_bits: int = setting(
        0, "bits of the first and the last layer's weights; 0: as all others", minimum=0, maximum=8
    )
    batchnorm: str = setting(
        "kept",
        "statistics of the student's BatchNorm layers: kept, or corrected by the difference of "
        "teacher and student on the same images",
        choices=("kept", "corrected"),
    )
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
