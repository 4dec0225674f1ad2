"""Layers of a subclass that computes what torch's own does."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from synq.models.structure import plain


class Same(nn.Linear):
    """As timm has it."""

    def forward(self, x):
        return functional.linear(x, self.weight, self.bias)


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Adapted(nn.Linear):
    """What is added is zero before it is trained."""

    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.more = nn.Parameter(torch.zeros(sizes[1], sizes[0]))

    def forward(self, x):
        return super().forward(x) + functional.linear(x, self.more)


class Noted(nn.Linear):
    def __init__(self, *sizes):
        super().__init__(*sizes)
        self.scale = 1.0

    def forward(self, x):
        return super().forward(x) * self.scale


class Picky(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1, 3))


@pytest.mark.parametrize(
    ("kind", "made"), [(Same, True), *((k, False) for k in (Scaled, Adapted, Noted, Picky))]
)
def test_a_subclass_becomes_linear_only_where_it_computes_the_same(kind, made):
    network = nn.Sequential(nn.Linear(4, 3), kind(3, 2))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert plain(network) is network
    assert (type(network[1]) is nn.Linear) == made
    assert type(network[1]) in (nn.Linear, kind)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
