"""Times as ratios of functions that are run in turns, so that a busy machine slows all alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch


class Ratio(NamedTuple):
    """Median over the repeats, and the distance from the 25th to the 75th percentile."""

    median: float
    spread: float


def seconds(
    function: Callable[[], object], clock: Callable[[], float] = time.perf_counter
) -> float:
    """Time of one call by a clock, with all work of a GPU done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = clock()
    function()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return clock() - start


def ratios(
    unit: Callable[[], object],
    functions: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[dict[str, Ratio], float]:
    """Each function's time in units of ``unit``'s, round by round; and the unit's median seconds.

    In a round everything is run once, the unit before each function. The first round warms up.
    """
    rounds: dict[str, list[float]] = {name: [] for name in functions}
    units = []
    for index in range(repeats + 1):
        for name, function in functions.items():
            one = seconds(unit, clock)
            ratio = seconds(function, clock) / one
            if index:
                units.append(one)
                rounds[name].append(ratio)
    return {name: summary(values) for name, values in rounds.items()}, statistics.median(units)


def summary(values: list[float]) -> Ratio:
    """Median and interquartile range."""
    if len(values) < 2:
        return Ratio(values[0], 0.0)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Ratio(middle, high - low)
