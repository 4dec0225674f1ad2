"""Widths of each layer's weight under a size: the least sum of the layers' sensitivities.

As in ZeroQ (Cai et al., CVPR 2020, section 3.2), with Omega_i(b) the divergence of the network's
answers with the weight of layer i alone at b bits,

    minimize sum_i Omega_i(b_i)   where   sum_i size_i(b_i) <= budget,

which takes the layers' damages for independent. It is a knapsack problem with one choice of each
layer; ZeroQ follows its Pareto front, here it is solved as an integer program.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy
from torch import nn

from synq.config.calibration import Calibration, size_in_bytes
from synq.errors import ConfigError, ModelError
from synq.quantization.convert import layers_of, packed_bytes
from synq.quantization.quantizers import Recipe

# Of the largest loss: what the solver may be off by.
GAP = 1e-9


class Room(NamedTuple):
    """What may be chosen: the size of each free layer's weight at each width, and of all together.

    Sizes are in bytes under a budget, and in bits under a mean.
    """

    sizes: Mapping[str, Mapping[int, int]]
    limit: float


def room(student: nn.Module, recipe: Recipe, settings: Calibration) -> Room:
    """The layers whose width is free, and how much ``budget`` or ``average_bits`` leave them.

    Not free are those that ``keep_bits`` or ``ends_bits`` name. Raises ConfigError, with the
    smallest possible size or mean, where it cannot be met.
    """
    layers = layers_of(student)
    free = {
        name: layer.weight.numel()
        for place, (name, layer) in enumerate(layers.items())
        if not recipe.fixed(name, place, len(layers))
    }
    if not free:
        raise ConfigError("keep_bits and ends_bits leave no layer whose width could be chosen")
    least, bits = min(settings.widths), {n: m.weight_quantizer.bits for n, m in layers.items()}
    if settings.budget:
        sizes = {n: {b: code_bytes(count, b) for b in settings.widths} for n, count in free.items()}
        rest = packed_bytes(student) - sum(code_bytes(free[name], bits[name]) for name in free)
        limit: float = size_in_bytes(settings.budget) - rest
        smallest = sum(own[least] for own in sizes.values())
        if limit < smallest:
            raise ConfigError(
                f"calibration.budget is {settings.budget}, and the smallest size with widths from "
                f"{least} bits is {(rest + smallest) / 1000:.1f} kB; raise it"
            )
        return Room(sizes, limit)
    # A mean over the weights of all layers, those that are not free too.
    sizes = {name: {b: count * b for b in settings.widths} for name, count in free.items()}
    counts = {name: layer.weight.numel() for name, layer in layers.items()}
    rest = sum(count * bits[name] for name, count in counts.items() if name not in free)
    limit = settings.average_bits * sum(counts.values()) - rest
    smallest = sum(own[least] for own in sizes.values())
    if limit < smallest:
        raise ConfigError(
            f"calibration.average_bits is {settings.average_bits:g}, and the smallest mean with "
            f"widths from {least} bits is {(rest + smallest) / sum(counts.values()):.3f}; raise it"
        )
    return Room(sizes, limit)


def code_bytes(count: int, bits: int) -> int:
    """Bytes of so many codes, without padding between them."""
    return -(-count * bits // 8)


def chosen_widths(place: Room, losses: Mapping[str, Mapping[int, float]]) -> dict[str, int]:
    """The width of each free layer with the least sum of ``losses``, which has layer and width.

    Of equal sums the smaller size.
    """
    names, limit = list(place.sizes), place.limit
    while True:
        chosen = _solved(place.sizes, limit, losses)
        over = sum(place.sizes[name][chosen[name]] for name in names) - place.limit
        if over <= 0:
            return chosen
        # The solver keeps to a limit up to a millionth of it.
        limit -= over


def _solved(
    sizes: Mapping[str, Mapping[int, int]], limit: float, losses: Mapping[str, Mapping[int, float]]
) -> dict[str, int]:
    # Imported here: it takes time, and most students have one width.
    from scipy.optimize import Bounds, LinearConstraint, milp

    widths = sorted(next(iter(sizes.values())))
    room_of = numpy.array([[own[bits] for bits in widths] for own in sizes.values()], float)
    damage = numpy.array([[losses[name][bits] for bits in widths] for name in sizes])
    # The sizes count so little that they decide between equal sums alone.
    costs = damage / (damage.max() or 1.0) + GAP * room_of / room_of.sum()
    one_each = numpy.kron(numpy.eye(len(sizes)), numpy.ones(len(widths)))
    found = milp(
        costs.ravel(),
        integrality=numpy.ones(costs.size),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(room_of.ravel(), -numpy.inf, limit),
        ],
        options={"mip_rel_gap": GAP},
    )
    if found.x is None:
        raise ModelError(f"no widths were found ({found.message}); raise the budget")
    best = found.x.reshape(costs.shape).argmax(1).tolist()
    return {name: widths[place] for name, place in zip(sizes, best, strict=True)}
