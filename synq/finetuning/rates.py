"""How fast each tensor of a student is trained."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synq.config.finetune import Finetune
from synq.quantization.convert import weight_quantizers

# Of ``grid_factor``, by the choices of ``finetune.rates``.
RATE_POWERS = {"fixed": 0, "grid": 1, "squared": 2}
# Layers whose weight has an output channel a row.
ROWS = (nn.Conv2d, nn.Linear)


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


def sizes(network: nn.Module) -> dict[str, Tensor]:
    """The root mean square of each parameter, by name; what a step of the training is a share of.

    Of the weight of a layer it is that of each output channel, ``[N, 1, ...]``, of others a number.
    Where a channel and all that follows it are scaled so that the network computes the same, so are
    they (after LARS and LAMB, You et al., 2017 and 2020). Of a normalisation's bias it is that of
    its weight, the deviation of what it gives; of a layer's bias the same share, for each channel,
    of what its weight gives of inputs of deviation 1, or all of it where the bias is 0.
    """
    found: dict[str, Tensor] = {}
    for prefix, module in network.named_modules():
        own = {name: p.detach().float() for name, p in module.named_parameters(recurse=False)}
        weight = own.get("weight")
        for name, values in own.items():
            size = values.square().mean().sqrt()
            if weight is not None and isinstance(module, ROWS):
                rows = weight.square().mean((*range(1, weight.dim()),), keepdim=True).sqrt()
                size = rows if name == "weight" else _of_bias(values, rows, weight[0].numel())
            elif weight is not None and name == "bias" and weight.dim() == 1:
                size = weight.square().mean().sqrt()
            found[f"{prefix}.{name}" if prefix else name] = size
    return found


def _of_bias(bias: Tensor, rows: Tensor, inputs: int) -> Tensor:
    given = rows.flatten() * math.sqrt(inputs)
    share = (bias / _or_one(given)).square().mean().sqrt()
    return given * (share if share > 0 else 1.0)


def _or_one(sizes: Tensor) -> Tensor:
    return torch.where(sizes == 0, 1.0, sizes)


def optimizer_for(
    student: nn.Module, settings: Finetune, network: nn.Module
) -> torch.optim.Optimizer:
    """The optimizer of a student's parameters; learned scales have a rate and no decay.

    ``network`` is what the student was made from, whose sizes are the units of ``rate_unit: size``:
    those of the student change, and a training that goes on would have others.
    """
    power = RATE_POWERS[settings.rates]
    factors = rate_factors(student) if power else {}
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    others: dict[str, nn.Parameter] = {}
    for name, parameter in student.named_parameters():
        scale, factor = name.split(".")[-1] == "log_scale", factors.get(parameter, 1.0)
        rate = settings.scale_learning_rate if scale else settings.learning_rate
        own = {"lr": factor**power * rate} | ({"weight_decay": 0.0} if scale else {})
        groups.setdefault((scale, factor), {"params": [], **own})["params"].append(parameter)
        if not scale:
            others[name] = parameter
    rate, decay = settings.learning_rate, settings.weight_decay
    found: torch.optim.Optimizer
    if settings.optimizer == "adam":
        found = torch.optim.AdamW(groups.values(), rate, weight_decay=decay)
    else:
        found = torch.optim.SGD(
            groups.values(), rate, settings.momentum, weight_decay=decay, nesterov=True
        )
    if settings.rate_unit == "size":
        _in_units(found, others, {**sizes(student), **sizes(network)})
    return found


def _in_units(
    optimizer: torch.optim.Optimizer,
    parameters: Mapping[str, nn.Parameter],
    units: Mapping[str, Tensor],
) -> None:
    """Let the optimizer see each parameter as a multiple of its unit, before and after a step.

    Its rate, decay and epsilon are then those of parameters of size 1. What is of size 0 stays what
    it is, since it has no gradient so.
    """
    own = [(parameter, units[name].to(parameter.device)) for name, parameter in parameters.items()]
    pairs = [(parameter, unit, _or_one(unit)) for parameter, unit in own]

    @torch.no_grad()
    def enter(*_: Any) -> None:
        for parameter, unit, divisor in pairs:
            if parameter.grad is not None:
                parameter.grad.mul_(unit)
            parameter.div_(divisor)

    @torch.no_grad()
    def leave(*_: Any) -> None:
        for parameter, _unit, divisor in pairs:
            parameter.mul_(divisor)

    optimizer.register_step_pre_hook(enter)
    optimizer.register_step_post_hook(leave)
