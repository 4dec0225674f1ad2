"""How often a classifier is right, and signs that the test set is not the one it was made for."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from synq.reporting.changes import Changes

# A network that is right less often than chance and this share of the rest was not made for these
# images.
SHARE_ABOVE_CHANCE = 0.1
# Classes are in another order where those that it moves are right so often by it, and more than
# twice as often as they are now. No network takes two classes for one another like that.
SHARE_OF_MOVED = 0.5


class Answers(NamedTuple):
    """What networks say of the same labelled images.

    ``confusion`` ``[networks, classes, classes]`` counts them: a row is the label, a column the
    class of the largest logit. ``changes`` are of each network against the first.
    """

    confusion: Tensor
    changes: list[Changes]


def answers(
    models: Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]], classes: int
) -> Answers:
    """What all models, which are on one device, say of the images of ``batches``.

    Each batch is asked for once.
    """
    device = next(models[0].parameters()).device
    counts = torch.zeros(len(models), classes * classes, dtype=torch.long)
    changes = torch.zeros(len(models), len(Changes._fields), dtype=torch.long)
    with torch.inference_mode():
        for images, labels in batches:
            seen = images.to(device)
            found = torch.stack([model(seen).argmax(1) for model in models]).cpu()
            for place, own in enumerate(found):
                cells = labels * classes + own
                counts[place] += torch.bincount(cells, minlength=classes * classes)
                other = own != found[0]
                kinds = (other, other & (found[0] == labels), other & (own == labels))
                changes[place] += torch.stack([kind.sum() for kind in kinds])
    return Answers(counts.view(-1, classes, classes), [Changes(*own) for own in changes.tolist()])


def top1(counts: Tensor) -> float:
    """Share of images, in percent, whose largest logit is that of the label."""
    return 100 * int(counts.diagonal().sum()) / int(counts.sum())


def per_class(counts: Tensor) -> dict[str, list[int]]:
    """How many images each class has, and on how many of them the largest logit is its own."""
    return {"images": counts.sum(1).tolist(), "right": counts.diagonal().tolist()}


def confused(counts: Tensor) -> dict[str, dict[str, int]]:
    """How many images of a class have another class's largest logit, where any have.

    ``{"3": {"5": 2}}``: two images of class 3 are taken for 5. Of many classes most pairs never
    occur.
    """
    wrong = counts - torch.diag(counts.diagonal())
    found: dict[str, dict[str, int]] = {}
    for label, taken in wrong.nonzero().tolist():
        found.setdefault(str(label), {})[str(taken)] = int(wrong[label, taken])
    return found


def doubt(counts: Tensor) -> str:
    """Why this test set does not seem to be the network's own, or nothing."""
    classes = len(counts)
    chance = 100 / classes
    accuracy = top1(counts)
    reordered = _reordered(counts)
    if reordered is not None:
        return (
            f"the teacher is right on {accuracy:.1f} % of the test images, and would be on "
            f"{reordered:.1f} % with the classes in another order; is it the network's order? Of a "
            "test folder, names of the classes can say it (docs/own-network.md)"
        )
    if accuracy >= chance + SHARE_ABOVE_CHANCE * (100 - chance):
        return ""
    return (
        f"the teacher is right on {accuracy:.1f} % of the test images, where guessing gives "
        f"{chance:.1f} %; do test set, mean and std belong to this network?"
    )


def _reordered(counts: Tensor) -> float | None:
    """The top-1 with the classes in the order that they seem to have, if that is another one."""
    own = torch.arange(len(counts))
    if bool((counts.argmax(1) == own).all()):
        return None  # no order is better
    # Imported here: it is needed where something is wrong.
    from scipy.optimize import linear_sum_assignment

    columns = torch.from_numpy(linear_sum_assignment(-counts.numpy())[1])
    moved = columns != own
    right, before = (int(counts[own, place][moved].sum()) for place in (columns, own))
    if right < SHARE_OF_MOVED * int(counts[moved].sum()) or right <= 2 * before:
        return None
    return 100 * int(counts[own, columns].sum()) / int(counts.sum())
