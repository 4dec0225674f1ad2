"""How much the network's answers change when one layer alone is quantized.

The measure is ZeroQ's (Cai et al., "ZeroQ: A Novel Zero Shot Quantization Framework", CVPR 2020,
section 3.2): the divergence of the answers, with one layer at k bits and all else in full
precision, from the network's own. HAWQ (Dong et al., ICCV 2019) takes the loss's curvature, which
needs labels and their gradients, for the same purpose. With ``calibration.batchnorm: corrected``
the BatchNorm layers behind are corrected at each measurement, as they will be in the student.
"""

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from synq.config.calibration import Calibration
from synq.errors import DivergenceError
from synq.quantization.calibration import BatchNormCorrection, Observer, set_weight_range
from synq.quantization.convert import activation_quantizers, quantize_layers, weight_quantizers
from synq.quantization.layers import QuantizedWeight
from synq.quantization.quantizers import FullPrecision, Quantizer, Recipe


@dataclass(frozen=True)
class Trial:
    """What is quantized: the layer, and the bits of its weight and its input; 0: that is not."""

    layer: str
    weight_bits: int = 0
    input_bits: int = 0


class Loss(NamedTuple):
    """Distances of the logits ``[N, C]`` from the network's own, means over the images.

    ``divergence`` is KL(softmax(t), softmax(s)) at T = 1, in nats; ``error`` (t - s)^2, a mean over
    the classes, too.
    """

    divergence: float
    error: float


def losses_alone(
    teacher: nn.Module,
    recipe: Recipe,
    settings: Calibration,
    batches: Sequence[Tensor],
    trials: Sequence[Trial],
) -> list[Loss]:
    """The loss of each trial on ``batches`` ``[n, C, H, W]``; the teacher stays as it is.

    The kinds of quantizers are the recipe's, and the ranges are found as in calibration: of inputs
    on these images, in full precision. Raises ModelError where the network cannot be quantized.
    """
    network = _Silent(teacher, recipe, settings)
    network.see(batches, trials)
    quantized = [network.quantized(trial) for trial in trials]
    correction = BatchNormCorrection(teacher, network.student)
    sums = torch.zeros(len(trials), 2, dtype=torch.float64)
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        if settings.batchnorm == "corrected":
            stack.enter_context(correction.following())
        for images in batches:
            wanted = teacher(images).double()
            for number, one in enumerate(quantized):
                with one.acting():
                    found = network.student(images).double()
                sums[number] += _distances(found, wanted).cpu()
    if not torch.isfinite(sums).all():
        raise DivergenceError(
            "the network's answers to the synthetic images are not finite; "
            "synthesize them with a lower synthesis.pixel_learning_rate"
        )
    count = sum(map(len, batches))
    return [Loss(*(values / count).tolist()) for values in sums]


def _distances(found: Tensor, wanted: Tensor) -> Tensor:
    """Sums over the images of what ``Loss`` has.

    In float64: at 8 bits a divergence is what float32 rounds away.
    """
    own, teachers = (logits.log_softmax(1) for logits in (found, wanted))
    divergence = functional.kl_div(own, teachers, reduction="sum", log_target=True)
    return torch.stack([divergence, (found - wanted).square().mean(1).sum()])


@dataclass(frozen=True)
class _Quantized:
    """A layer with what is put into it for a while.

    ``rounded`` is its weight where calibration changes that (squant), ``read`` the quantizer of its
    input.
    """

    layer: QuantizedWeight
    quantizer: Quantizer
    rounded: Tensor | None
    read: Quantizer | None

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_given(self.layer, self.quantizer))
            if self.rounded is not None:
                stack.enter_context(_weighing(self.layer, self.rounded))
            if self.read is not None:
                stack.enter_context(_at_input(self.layer, self.read))
            yield


class _Silent:
    """A student that quantizes nothing, but for what a trial puts into it."""

    def __init__(self, teacher: nn.Module, recipe: Recipe, settings: Calibration) -> None:
        self.recipe, self.settings = replace(recipe, keep=None), settings
        self.student = quantize_layers(copy.deepcopy(teacher), self.recipe).eval()
        self.student.requires_grad_(False)
        self.layers = weight_quantizers(self.student)
        for name in activation_quantizers(self.student):
            self.student.set_submodule(name, FullPrecision())
        for layer in self.layers.values():
            layer.weight_quantizer = FullPrecision()
        self.inputs: dict[tuple[str, int], Quantizer] = {}

    def see(self, batches: Sequence[Tensor], trials: Sequence[Trial]) -> None:
        """Find the ranges of all inputs that a trial quantizes, in one pass."""
        with contextlib.ExitStack() as stack:
            for trial in trials:
                key = name, bits = trial.layer, trial.input_bits
                if bits and key not in self.inputs:
                    kind = replace(self.recipe, activation_bits=bits).of_activation()
                    self.inputs[key] = kind.to(batches[0].device).requires_grad_(False)
                    observer = Observer(self.inputs[key], self.settings)
                    stack.enter_context(_at_input(self.layers[name], partial(_shown, observer)))
            stack.enter_context(torch.no_grad())
            if self.inputs:
                for images in batches:
                    self.student(images)

    def quantized(self, trial: Trial) -> _Quantized:
        """The trial's layer, with ranges of its weight that are found here."""
        layer, rounded = self.layers[trial.layer], None
        quantizer: Quantizer = FullPrecision()
        if trial.weight_bits:
            recipe = replace(self.recipe, weight_bits=trial.weight_bits, ends=0)
            quantizer = recipe.of_weight(trial.layer, 0, 1, layer.axes())
            quantizer = quantizer.to(layer.weight.device).requires_grad_(False)
            before = layer.weight.detach().clone()
            with _given(layer, quantizer), _weighing(layer, before):
                set_weight_range(layer, self.settings)
                if not torch.equal(layer.weight, before):
                    rounded = layer.weight.detach().clone()
        read = self.inputs.get((trial.layer, trial.input_bits))
        return _Quantized(layer, quantizer, rounded, read)


@contextlib.contextmanager
def _given(layer: QuantizedWeight, quantizer: Quantizer) -> Iterator[None]:
    before = layer.weight_quantizer
    try:
        layer.weight_quantizer = quantizer
        yield
    finally:
        layer.weight_quantizer = before


@contextlib.contextmanager
def _weighing(layer: QuantizedWeight, weight: Tensor) -> Iterator[None]:
    """The layer with the values of another weight; its own come back whatever happens to them."""
    before = layer.weight.detach().clone()
    try:
        layer.weight.detach().copy_(weight)
        yield
    finally:
        layer.weight.detach().copy_(before)


@contextlib.contextmanager
def _at_input(layer: nn.Module, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """What the layer reads is what ``function`` makes of it."""
    own = getattr(layer, "input", None)
    if own is None:
        handle = layer.register_forward_pre_hook(
            lambda _, args: (function(args[0]), *args[1:]) if args else None
        )
    else:
        # Inside of an attention a layer is read and not called; its quantizer is.
        handle = own.register_forward_hook(lambda _, args, output: function(output))
    try:
        yield
    finally:
        handle.remove()


def _shown(observer: Observer, values: Tensor) -> Tensor:
    observer(values)
    return values
