"""How the answers of two networks to the same images differ."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

# What students are measured on, as a metrics.json says it.
TESTED = "test images"
UNLABELLED = "real images without labels"
HELD_OUT = "held-out synthetic images"


class Changes(NamedTuple):
    """On how many images a network names another class than a first one does.

    ``lost``: of these, how many the first is right on; ``gained``: on how many the other is.
    Counts, or means of them over seeds.
    """

    other: float
    lost: float
    gained: float


def measured_on(metrics: Mapping[str, Any]) -> str:
    """One of the above, of the content of a metrics.json, which did not always say it."""
    known = TESTED if metrics["teacher"]["top1"] is not None else HELD_OUT
    return str(metrics.get("measured_on", known))


def changed(changes: Changes, images: int) -> str:
    """In words, of so many test images: what a student names in place of the original's class."""
    return (
        f"another class than the original on {100 * changes.other / images:.2f} % of the test "
        f"images: of {images}, {changes.lost:.0f} became wrong and {changes.gained:.0f} became "
        "right"
    )


def standard_error(lost: float, gained: float, images: int) -> float:
    """Standard error, in points, of the difference of two networks' top-1 on the same images.

    On ``lost`` of them the first alone is right, on ``gained`` the second alone: only these say
    anything of the difference (McNemar, 1947). With half an image more in each of the four cells
    (Agresti and Min, 2005), so that it does not vanish where the answers are the same.
    """
    count = images + 2
    share = (lost + gained + 1) / count
    return 100 * math.sqrt((share - ((gained - lost) / count) ** 2) / count)


def difference_error(one: Changes, other: Changes, images: int) -> float:
    """Standard error at most, in points, of the difference of two students' top-1.

    Each was compared with the same network alone. Where the one is right and the other is not, one
    of the two differs from the network, so there are no more such images than these counts.
    """
    return standard_error(one.gained + other.lost, one.lost + other.gained, images)
