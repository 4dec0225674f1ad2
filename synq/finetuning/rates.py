"""How fast each tensor of a student is trained."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from synq.config.finetune import Finetune
from synq.quantization.convert import weight_quantizers

# Of ``grid_factor``, by the choices of ``finetune.rates``.
RATE_POWERS = {"fixed": 0, "grid": 1, "squared": 2}
# Of a tensor's size, by the optimizer: Adam's step has the size of its rate alone, a gradient that
# of a tensor's inverse.
SIZE_POWERS = {"adam": 1, "sgd": 2}
# Adam's, of gradients of a tensor of size 1.
EPSILON = 1e-8


def grid_factor(bits: float) -> float:
    """The steps of a 2-bit grid over those of a grid of ``bits``."""
    return float((2**2 - 1) / (2**bits - 1))


def rate_factors(student: nn.Module) -> dict[nn.Parameter, float]:
    """Each parameter's ``grid_factor``: of a layer's weight and its scales, by that layer's bits.

    Of all others, by the mean over the numbers of all quantized weights.
    """
    layers = [*weight_quantizers(student).values()]
    counts = [layer.weight.numel() for layer in layers]
    bits = [layer.weight_quantizer.bits for layer in layers]
    mean = sum(b * n for b, n in zip(bits, counts, strict=True)) / sum(counts)
    factors = {parameter: grid_factor(mean) for parameter in student.parameters()}
    for layer, own in zip(layers, bits, strict=True):
        weights = [p for p in layer.parameters(recurse=False) if p is layer.weight]
        for parameter in (*weights, *layer.weight_quantizer.parameters()):
            factors[parameter] = grid_factor(own)
    return factors


def sizes(network: nn.Module) -> dict[str, float]:
    """The root mean square of each parameter, by name; what a step of the training is a share of.

    Where a weight and all that follows it are scaled so that the network computes the same, so are
    they (after LARS and LAMB, You et al., 2017 and 2020). Of a normalisation's bias it is that of
    its weight, the deviation of what it gives; of a layer's bias that is 0, what its weight would
    give of inputs of deviation 1.
    """
    found: dict[str, float] = {}
    for prefix, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False))
        weight = own.get("weight")
        for name, parameter in own.items():
            size = _size(parameter)
            if name == "bias" and weight is not None:
                if weight.dim() == 1:
                    size = _size(weight)
                elif not size:
                    size = _size(weight) * math.sqrt(weight[0].numel())
            found[f"{prefix}.{name}" if prefix else name] = size
    return found


def _size(values: Tensor) -> float:
    return float(values.detach().float().square().mean().sqrt())


def optimizer_for(
    student: nn.Module, settings: Finetune, network: nn.Module
) -> torch.optim.Optimizer:
    """The optimizer of a student's parameters; learned scales have a rate and no decay.

    ``network`` is what the student was made from, whose sizes are the units of ``rate_unit: size``:
    those of the student change, and a training that goes on would have others.
    """
    power = RATE_POWERS[settings.rates]
    factors = rate_factors(student) if power else {}
    units = {**sizes(student), **sizes(network)} if settings.rate_unit == "size" else {}
    groups: dict[tuple[bool, float, float], dict[str, Any]] = {}
    for name, parameter in student.named_parameters():
        scale, factor = name.split(".")[-1] == "log_scale", factors.get(parameter, 1.0)
        unit = units.get(name, 1.0)
        own = _group(settings, factor**power, unit, scale=scale)
        group = groups.setdefault((scale, factor, unit), {"params": [], **own})
        group["params"].append(parameter)
    rate, decay = settings.learning_rate, settings.weight_decay
    if settings.optimizer == "adam":
        return torch.optim.AdamW(groups.values(), rate, weight_decay=decay)
    return torch.optim.SGD(
        groups.values(), rate, settings.momentum, weight_decay=decay, nesterov=True
    )


def _group(settings: Finetune, factor: float, unit: float, *, scale: bool) -> dict[str, Any]:
    """The options of the parameters of a size; one of size 0 stays what it is."""
    if scale:
        return {"lr": factor * settings.scale_learning_rate, "weight_decay": 0.0}
    of_rate = unit ** SIZE_POWERS[settings.optimizer]
    group = {
        "lr": factor * of_rate * settings.learning_rate,
        "weight_decay": settings.weight_decay / of_rate if unit else 0.0,
    }
    if settings.optimizer == "adam" and unit:
        group["eps"] = EPSILON / unit
    return group
