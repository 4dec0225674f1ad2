"""Layers of a subclass that computes what torch's own does."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import synq
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


class Swish(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(x)


class Gate(nn.Module):
    """As many MobileNetV3s have it, in place."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU6(inplace=True)

    def forward(self, x):
        return self.relu(x + 3) / 6


class Gated(nn.Module):
    def __init__(self, gate=None):
        super().__init__()
        self.gate = gate or Gate()

    def forward(self, x):
        return x * self.gate(x)


class Shared(torch.autograd.Function):
    """As EfficientNets have it, which saves memory."""

    @staticmethod
    def forward(ctx, x):
        return x * torch.sigmoid(x)


class Saving(nn.Module):
    def forward(self, x):
        return Shared.apply(x)


class Tilted(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return x * torch.sigmoid(self.slope * x)


class Quick(nn.Module):
    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x + self.calls


@pytest.mark.parametrize(
    ("make", "known"),
    [
        (Swish, nn.SiLU),
        (Saving, nn.SiLU),
        (Gate, nn.Hardsigmoid),
        (Gated, nn.Hardswish),
        (lambda: Gated(nn.Sigmoid()), nn.SiLU),
        (nn.RReLU, nn.LeakyReLU),
        *((kind, kind) for kind in (Tilted, Quick, Counting, nn.ReLU6, nn.Dropout)),
    ],
)
def test_an_activation_that_is_written_out_becomes_torchs_own(make, known):
    shared = make()
    network = nn.Sequential(nn.Conv2d(3, 4, 3), shared, nn.Sequential(shared)).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted, keys = network(images.clone()), [*network.state_dict()]
        if make is Counting:
            network[1].calls = 0
        assert plain(network) is network
        torch.testing.assert_close(network(images.clone()), wanted)
    assert type(network[1]) is known
    assert network[1] is network[2][0]
    assert [*network.state_dict()] == keys


def test_a_network_of_written_activations_is_quantized_as_one_of_torchs_own():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Gated(), nn.Conv2d(4, 4, 3), Swish()
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    found = synq.inspect(network, image_shape=(3, 12, 12)).found
    own = [part for part in found["parts"] if part["role"] == "activation"]
    assert [part["kind"] for part in own] == ["Hardswish", "SiLU"]
    assert type(network[2]) is Gated
