"""What makes an image natural to a transformer, which has no BatchNorm statistics: diverse patches.

Zhikai Li et al., *Patch Similarity Aware Data-Free Quantization for Vision Transformers* (PSAQ-ViT,
ECCV 2022): self-attention answers noise with patches that all resemble each other, and a photograph
with patches of an object and of its background. So the distribution of the similarities between
patches has more entropy for a photograph, and images are optimised for that entropy.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from synq.errors import ModelError
from synq.models.hooks import recorded
from synq.models.structure import attention_layers, statistical

# Bins a bandwidth: they widen the kernel by 0.3 % (the variance of linear binning).
FINENESS = 5


# Bandwidths beyond the smallest and the largest similarity, where the kernels have ended.
MARGIN = 5


# A density under it adds nothing, and has no logarithm when it is 0.
SMALLEST_DENSITY = 1e-12


# Of larger maps (Swin's first stages) every second or fourth patch a side is compared.
LARGEST_SIDE = 16


def uses_patches(prior: str, model: nn.Module) -> bool:
    """Whether images come from patches: ``prior`` says so, or is auto and nothing else is there."""
    if prior != "auto":
        return prior == "patches"
    return not statistical(model) and bool(attention_layers(model))


def patch_grid(tokens: Tensor) -> Tensor:
    """Patches ``[N, h, w, C]`` of an attention's output, at most ``LARGEST_SIDE`` a side.

    That is ``[N, h, w, C]`` itself (Swin), or ``[N, L, C]``, whose patches fill a square and follow
    the class token and its like, which are left out.
    """
    if tokens.dim() == 3:
        side = math.isqrt(tokens.shape[1])
        tokens = tokens[:, tokens.shape[1] - side * side :].unflatten(1, (side, side))
    stride = -(-max(tokens.shape[1:3]) // LARGEST_SIDE)
    return tokens[:, ::stride, ::stride]


def patch_similarities(patches: Tensor) -> Tensor:
    """Cosine similarity of each pair of different patches, ``[N, P (P - 1) / 2]``, P = h w."""
    directions = functional.normalize(patches.flatten(1, 2), dim=2)
    first, second = torch.triu_indices(
        directions.shape[1], directions.shape[1], offset=1, device=patches.device
    )
    return (directions @ directions.transpose(1, 2))[:, first, second]


def entropy(similarities: Tensor, bandwidth: float) -> Tensor:
    """H = - integral of f log f, ``[N]``, of the distribution of each row of ``[N, M]`` in [-1, 1].

    f(x) = 1 / (M h) sum_m K((x - s_m) / h): kernel density estimation, K the normal density and h
    the bandwidth (PSAQ-ViT). Each value is first shared between the two nearest points of a grid,
    by distance, so that the cost is that of M values and not of M kernels; the gradient is that of
    the shares.
    """
    step = bandwidth / FINENESS
    reach = 1 + MARGIN * bandwidth
    device = similarities.device
    points = torch.arange(-reach, reach + step, step, dtype=torch.float64, device=device)
    kernel = torch.exp(-((points[:, None] - points) ** 2) / (2 * bandwidth**2))
    kernel = (kernel / (bandwidth * math.sqrt(2 * math.pi))).to(similarities)
    position = (similarities + reach) / step
    below = position.detach().floor().clamp(0, len(points) - 2)
    share = position - below
    place = below.long()
    mass = similarities.new_zeros(len(similarities), len(points))
    mass = mass.scatter_add(1, place, 1 - share).scatter_add(1, place + 1, share)
    density = (mass / similarities.shape[1]) @ kernel
    return torch.special.entr(density.clamp_min(SMALLEST_DENSITY)).sum(1) * step


class PatchReader:
    """Reads the patches of every attention layer that has enough of them to compare.

    Raises ModelError where there is none.
    """

    def __init__(self, teacher: nn.Module, image_shape: tuple[int, int, int]) -> None:
        layers = attention_layers(teacher)
        example = next(teacher.parameters()).new_zeros(1, *image_shape)
        self.layers = layers
        with torch.no_grad(), recorded(layers) as record:
            teacher(example)
        # Two patches have one similarity, and that no distribution.
        sizes = {name: self._patches(record, name)[0, ..., 0].numel() for name in record}
        self.layers = {name: layers[name] for name, size in sizes.items() if size > 2}
        if not self.layers:
            instead = "set synthesis.prior: batchnorm"
            if not statistical(teacher):
                instead = (
                    "take those of another network (relative), it has no BatchNorm layer either"
                )
            raise ModelError(
                "the model has no attention layer with more than two patches to synthesize images "
                f"from; {instead}"
            )

    def _patches(self, record: dict[str, Tensor], name: str) -> Tensor:
        tokens, layer = record[name], self.layers[name]
        if isinstance(tokens, tuple):
            tokens = tokens[0]  # nn.MultiheadAttention gives its attention beside the tokens
        if isinstance(layer, nn.MultiheadAttention) and not layer.batch_first:
            tokens = tokens.transpose(0, 1)
        return patch_grid(tokens.float())

    def loss(self, record: dict[str, Tensor], bandwidth: float) -> Tensor:
        """L_pse = - sum over layers of the mean over images of H (PSAQ-ViT)."""
        entropies = [
            entropy(patch_similarities(self._patches(record, name)), bandwidth).mean()
            for name in self.layers
        ]
        return -torch.stack(entropies).sum()
