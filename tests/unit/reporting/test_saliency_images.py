"""Maps of where a network looks."""

import torch
from torch import nn

from synq.reporting.attention import maps


def network():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 2)
    )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model[0].weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
    model[0].bias.zero_()
    model[4].weight.copy_(torch.eye(2))
    return model.eval()


def test_a_map_is_bright_where_the_class_is():
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, 0, 0], image[0, 0, 3, 3] = 1, -1
    images, labels = image.expand(2, 1, 4, 4), torch.tensor([0, 1])
    found = maps({"original": network()}, "0", images, labels)["original"]
    assert found.shape == (2, 1, 4, 4)
    assert found[0, 0].argmax() == 0
    assert found[1, 0].argmax() == 15
