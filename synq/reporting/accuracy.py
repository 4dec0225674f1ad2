"""How often a classifier is right, and signs that the test set is not the one it was made for."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

# A network that is right less often than chance and this share of the rest was not made for these
# images, or their classes are in another order.
SHARE_ABOVE_CHANCE = 0.1


def confusion(
    models: Sequence[nn.Module], batches: Iterable[tuple[Tensor, Tensor]], classes: int
) -> Tensor:
    """Counts ``[models, classes, classes]``: row the label, column the largest logit of the images.

    Each batch is asked for once, and shown to all models, which are on one device.
    """
    device = next(models[0].parameters()).device
    counts = torch.zeros(len(models), classes * classes, dtype=torch.long)
    with torch.inference_mode():
        for images, labels in batches:
            seen = images.to(device)
            for place, model in enumerate(models):
                cells = labels * classes + model(seen).argmax(1).cpu()
                counts[place] += torch.bincount(cells, minlength=classes * classes)
    return counts.view(-1, classes, classes)


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
    if accuracy >= chance + SHARE_ABOVE_CHANCE * (100 - chance):
        return ""
    # Imported here: it is needed where something is wrong.
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-counts.numpy())
    reordered = 100 * int(counts[rows, columns].sum()) / int(counts.sum())
    if reordered >= 50:
        return (
            f"the teacher is right on {accuracy:.1f} % of the test images, and would be on "
            f"{reordered:.1f} % with the classes in another order; is it the network's order? Of a "
            "test folder, names of the classes can say it (docs/own-network.md)"
        )
    return (
        f"the teacher is right on {accuracy:.1f} % of the test images, where guessing gives "
        f"{chance:.1f} %; do test set, mean and std belong to this network?"
    )
