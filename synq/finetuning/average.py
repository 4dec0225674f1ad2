"""Averages over the steps of a training in the place of the newest parameters.

A weight that sits between two codes changes sides from step to step; its average, which is rounded
once, does not.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

# Names of entries beside those of an optimizer's state; the last is under no parameter.
AVERAGE, TRAINED, STEPS = "average", "trained", "steps"
ENTRIES = (AVERAGE, TRAINED, STEPS)


class Average:
    """The exponential averages of a student's parameters, learned scales among them."""

    def __init__(self, named: Mapping[str, nn.Parameter], share: float) -> None:
        self.named, self.share, self.steps = named, share, 0
        self.values = {name: parameter.detach().clone() for name, parameter in named.items()}
        self._trained: Mapping[str, Tensor] = {}

    def follow(self) -> None:
        """Take in the parameters of one more step, t: mean <- a mean + (1 - a) parameter.

        a = min(share, (1 + t) / (10 + t)), so that a short training forgets where it began, too.
        """
        self.steps += 1
        kept = min(self.share, (1 + self.steps) / (10 + self.steps))
        parameters = [self.named[name].detach() for name in self.values]
        torch._foreach_lerp_([*self.values.values()], parameters, 1 - kept)

    def tensors(self) -> dict[str, Tensor]:
        """All that a resumed training needs, on the CPU."""
        found = {f"/{STEPS}": torch.tensor(self.steps)}
        for name, parameter in self.named.items():
            found[f"{name}/{AVERAGE}"] = self.values[name].cpu().clone()
            found[f"{name}/{TRAINED}"] = parameter.detach().cpu().clone()
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on with these, if there are any: ``hide`` has the trained parameters then."""
        if f"/{STEPS}" not in tensors:
            return
        self.steps = int(tensors[f"/{STEPS}"])
        for name in self.values:
            self.values[name].copy_(tensors[f"{name}/{AVERAGE}"])
        self._trained = {name: tensors[f"{name}/{TRAINED}"] for name in self.values}

    def show(self) -> None:
        """Let the student have the averages, until ``hide``."""
        self._trained = {name: p.detach().clone() for name, p in self.named.items()}
        self._give(self.values)

    def hide(self) -> None:
        """Let the student have the trained parameters again, where they were put away."""
        self._give(self._trained)
        self._trained = {}

    def _give(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self.named[name].detach().copy_(value)
