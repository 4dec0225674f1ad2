"""Soft rounding: which of its two neighbours a weight is rounded to is learned (AdaRound).

Markus Nagel et al., *Up or Down? Adaptive Rounding for Post-Training Quantization* (ICML 2020). The
scale is learned along, on codes that stay what they were when it began, as in Yongkweon Jeon,
Chungman Lee and Ho-young Kim, *Genie: Show Me the Data for Quantization* (CVPR 2023).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from synq.errors import ConfigError
from synq.quantization.convert import weight_quantizers
from synq.quantization.layers import QuantizedWeight
from synq.quantization.quantizers import LearnedStep

# h is stretched beyond 0 and 1, and clipped to them, so that it reaches them (AdaRound).
LOW, HIGH = -0.1, 1.1
# The exponent of the penalty falls from the first to the second, after a share without any penalty.
FIRST_EXPONENT, LAST_EXPONENT, FREE = 20.0, 2.0, 0.2


class SoftRounding:
    """The weight of one layer between its codes: s (clip(floor(w / s_0 + z) + h(V)) - z).

    h(V) = clip(1.2 sigmoid(V) - 0.1, 0, 1), which begins as what the floor leaves, so that the
    weight begins as it is, where it is not clipped. V is ``up``, of the shape of the weight by its
    outputs; s_0 is the scale that it begins with, z the zero point.
    """

    def __init__(self, layer: QuantizedWeight) -> None:
        if not isinstance(layer.weight_quantizer, LearnedStep):
            raise ConfigError(
                "finetune.reconstruct: rounding is for learned steps; write calibration.weights: "
                "learned, or finetune.reconstruct: weights"
            )
        self.layer, self.quantizer = layer, layer.weight_quantizer
        weight = layer.by_output(layer.weight.detach())
        places = weight / self.quantizer.log_scale.detach().exp() + self.quantizer.zero_point
        self.below = places.floor()
        share = (places - self.below - LOW) / (HIGH - LOW)
        self.up = nn.Parameter(torch.logit(share))

    def shares(self) -> Tensor:
        """h(V): how far each weight is on its way from the code below to the next."""
        return ((HIGH - LOW) * self.up.sigmoid() + LOW).clamp(0, 1)

    def __call__(self, weight: Tensor) -> Tensor:
        """In the place of the quantizer's ``rounded``; the layer's weight is not looked at."""
        return self._values(self.shares())

    def penalty(self, exponent: float) -> Tensor:
        """sum over weights of 1 - |2 h(V) - 1|^exponent: none where all are up or down."""
        return (1 - (2 * self.shares() - 1).abs().pow(exponent)).sum()

    def settle(self) -> None:
        """Give the layer the weight that is rounded up or down for good, each value a code's."""
        with torch.no_grad():
            values = self._values((self.up >= 0).float())
            self.layer.weight.copy_(self.layer.by_output(values))

    def _values(self, shares: Tensor) -> Tensor:
        half = 2 ** (self.quantizer.bits - 1)
        codes = (self.below + shares).clamp(-half, half - 1)
        return (codes - self.quantizer.zero_point) * self.quantizer.log_scale.exp()


@contextlib.contextmanager
def softened(model: nn.Module) -> Iterator[list[SoftRounding]]:
    """Within this block all quantized weights of a model are rounded softly, and settled behind it.

    Raises ConfigError where their steps are not learned.
    """
    soft = [SoftRounding(layer) for layer in weight_quantizers(model).values()]
    try:
        for one in soft:
            one.quantizer.rounded = one  # type: ignore[method-assign,assignment]
        yield soft
    finally:
        for one in soft:
            del one.quantizer.rounded
    for one in soft:
        one.settle()


def exponent_at(done: float) -> float | None:
    """The penalty's exponent when this share of all steps is done; None while there is none."""
    if done < FREE:
        return None
    return FIRST_EXPONENT + (LAST_EXPONENT - FIRST_EXPONENT) * (done - FREE) / (1 - FREE)
