"""Which order of tensors a network's own code allows."""

import pytest
import torch
from torch import nn

from synq.models.build import build
from synq.models.layout import arranged, layout_of

SHAPE = (3, 8, 8)


class Viewing(nn.Module):
    """Takes it for granted that a feature map lies channel by channel."""

    def __init__(self, flatten):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.output = nn.Linear(4 * 64, 5)
        self.flatten = flatten

    def forward(self, images):
        return self.output(self.flatten(self.conv(images)))


FLATTENS = {
    "view": lambda x: x.view(x.size(0), -1),
    "another order": lambda x: torch.as_strided(x, (len(x), 256), (256, 1)),
    "flatten": lambda x: x.flatten(1),
}


@pytest.mark.parametrize("name", FLATTENS)
def test_channels_last_is_for_networks_that_compute_the_same_with_it(name):
    network = Viewing(FLATTENS[name]).eval()
    before = network.conv.weight.stride()
    wanted = "channels_last" if name == "flatten" else "contiguous"
    assert layout_of(network, SHAPE) == wanted
    assert network.conv.weight.stride() == before
    assert layout_of(network, SHAPE) == wanted


def test_a_convolutional_network_of_the_zoo_has_its_channels_last():
    assert layout_of(build("resnet20_cifar10", 10, 3, 32), (3, 32, 32)) == "channels_last"


@pytest.mark.parametrize("order", [torch.contiguous_format, torch.channels_last])
def test_a_contiguous_network_takes_images_in_any_order(order):
    network = Viewing(FLATTENS["view"]).eval()
    images = torch.rand(2, *SHAPE)
    wanted = network(images)
    assert torch.equal(
        arranged(network, "contiguous")(images.contiguous(memory_format=order)), wanted
    )
