"""Which layers a network has, found by their roles and not by their names."""

import pytest
import torch
from torch import nn

from synq.errors import ModelError
from synq.models.build import build
from synq.models.structure import residual_units


def test_residual_units_are_the_modules_that_add():
    model = build("resnet20_cifar10", 10, 3, 32)
    units = [f"features.stage{stage}.unit{unit}" for stage in (1, 2, 3) for unit in (1, 2, 3)]
    assert residual_units(model, (3, 32, 32)) == units
    assert not any(module._forward_hooks for module in model.modules())


def test_without_sums_the_activations_stand_for_blocks():
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.SiLU(), nn.Flatten()),
        *(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2)),
    )
    assert residual_units(model, (3, 6, 6)) == ["1", "3"]


def test_a_sum_outside_of_all_modules_is_no_unit():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.act = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.ReLU()

        def forward(self, images):
            return self.act(self.first(images) + self.second(images)).mean((2, 3))

    assert residual_units(Bare(), (3, 6, 6)) == ["act"]


def test_a_network_without_blocks_is_refused():
    with pytest.raises(ModelError, match=r"finetune\.block_weight: 0"):
        residual_units(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2))
    assert torch.is_grad_enabled()
