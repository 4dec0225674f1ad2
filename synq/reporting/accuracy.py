"""How often a classifier is right, and signs that the test set is not the one it was made for."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from synq.reporting.changes import Changes

# A network that is right less often than chance and this share of the rest was not made for these
# images.
SHARE_ABOVE_CHANCE = 0.1
# Classes are in another order where those that it moves are right so often by it, and more than
# twice as often as they are now. No network takes two classes for one another like that.
SHARE_OF_MOVED = 0.5


def answers(
    models: Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Labels ``[images]``, and the class of each model's largest logit ``[models, images]``.

    Each batch is asked for once, and shown to all models, which are on one device.
    """
    device = next(models[0].parameters()).device
    labels = [torch.empty(0, dtype=torch.long)]
    found = [torch.empty(len(models), 0, dtype=torch.long)]
    with torch.inference_mode():
        for images, own in batches:
            seen = images.to(device)
            labels.append(own)
            found.append(torch.stack([model(seen).argmax(1) for model in models]).cpu())
    return torch.cat(labels), torch.cat(found, 1)


def confusion(labels: Tensor, found: Tensor, classes: int) -> Tensor:
    """Counts ``[classes, classes]`` of labels and answers ``[images]``: row the label."""
    return torch.bincount(labels * classes + found, minlength=classes**2).view(classes, classes)


def compared(labels: Tensor, first: Tensor, found: Tensor) -> Changes:
    """Of the answers ``first`` and ``found`` ``[images]`` to images of these labels."""
    other = first != found
    kinds = (other, other & (first == labels), other & (found == labels))
    return Changes(*(int(kind.sum()) for kind in kinds))


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
