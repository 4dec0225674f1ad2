"""Which images of a set are looked at, where not all are."""

import torch
from torch import Tensor


def evenly_spread(count: int, most: int) -> Tensor:
    """At most ``most`` of the rows 0 to ``count`` - 1, ``[min(count, most)]``, in order.

    Of two or more, the first and the last are among them: a sorted set is seen to its end.
    """
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).long()
