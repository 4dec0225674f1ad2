"""What makes images natural: BatchNorm statistics or the similarity of patches."""

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from synq.config.synthesis import Synthesis
from synq.models.hooks import recorded
from synq.runtime.process import autocast
from synq.synthesis import losses
from synq.synthesis.batchnorm import Statistician
from synq.synthesis.losses import Statistics
from synq.synthesis.patches import PatchReader, uses_patches

Shape = tuple[int, int, int]
# Images -> the teacher's logits, and how unnatural the images are.
Prior = Callable[[Tensor], tuple[Tensor, Tensor]]


def batchnorm_prior(
    teacher: nn.Module, image_shape: Shape, settings: Synthesis, centres: Statistics | None
) -> Prior:
    """w_bn L_bn + w_deep L_lbns: the statistics of training, and those of the centres."""
    reader = Statistician(teacher, image_shape, settings.compile)
    by_deviation = settings.statistic == "deviation"
    alignment = losses.deviation_alignment if by_deviation else losses.bn_alignment

    def prior(images: Tensor) -> tuple[Tensor, Tensor]:
        with autocast(images.device, settings.precision):
            logits, batch = reader(images)
        mean_term, variance_term = alignment(batch, reader.running)
        loss = settings.bn_weight * (mean_term + variance_term)
        if settings.deep_weight > 0 and centres is not None:
            divisor: float = reader.count - reader.first_deep
            if settings.deep_norm == "released":
                divisor = reader.count * len(images)
            deep = losses.deep_alignment(batch, centres, reader.first_deep, divisor)
            loss = loss + settings.deep_weight * deep
        return logits.float(), loss

    return prior


def patch_prior(
    teacher: nn.Module, image_shape: Shape, settings: Synthesis, _: Statistics | None
) -> Prior:
    """w_pse L_pse + w_tv L_tv: diverse patches and smooth images (PSAQ-ViT)."""
    reader = PatchReader(teacher, image_shape)

    def prior(images: Tensor) -> tuple[Tensor, Tensor]:
        with (
            recorded(reader.layers) as record,
            autocast(images.device, settings.precision),
        ):
            logits = teacher(images).float()
        loss = settings.patch_weight * reader.loss(record, settings.patch_bandwidth)
        return logits, loss + settings.tv_weight * losses.total_variation(images)

    return prior


# The names are the choices of ``synthesis.prior``.
PRIORS: Mapping[str, Callable[[nn.Module, Shape, Synthesis, Statistics | None], Prior]] = {
    "batchnorm": batchnorm_prior,
    "patches": patch_prior,
}


def prior_of(
    teacher: nn.Module, image_shape: Shape, settings: Synthesis, centres: Statistics | None
) -> Prior:
    """The prior that ``settings`` name; with auto the one whose layers the teacher has."""
    name = settings.prior
    if name == "auto":
        name = "patches" if uses_patches(name, teacher) else "batchnorm"
    return PRIORS[name](teacher, image_shape, settings, centres)
