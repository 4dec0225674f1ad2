"""The learning rate of the images by their loss."""

import pytest
import torch

from synq.synthesis.canvas import Plateaus


def optimizer():
    return torch.optim.Adam([torch.zeros(1, requires_grad=True)], 0.5)


def rates(scheduler, own, losses):
    found = []
    for loss in losses:
        scheduler.step(loss)
        found.append(own.param_groups[0]["lr"])
    return found


@pytest.mark.parametrize("patience", [0, 3, 10])
def test_of_positive_losses_it_is_torchs(patience):
    draw = torch.Generator().manual_seed(patience)
    losses = (2 + torch.randn(400, generator=draw).cumsum(0).abs()).tolist()
    losses += [losses[-1] * (1 - 0.5e-4) ** step for step in range(100)]
    own, torchs = optimizer(), optimizer()
    theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(
        torchs, factor=0.1, patience=patience, min_lr=1e-4
    )
    ours = rates(Plateaus(own, patience), own, losses)
    assert ours == rates(theirs, torchs, losses)
    assert 0.5 in ours or patience == 0
    assert ours[-1] == 1e-4


@pytest.mark.parametrize("level", [5.0, 0.0, -5.0])
def test_a_loss_that_stays_lowers_the_rate_whatever_its_sign(level):
    own = optimizer()
    found = rates(Plateaus(own, 9), own, [level] * 51)
    assert found[9] == 0.5
    assert found[10] == pytest.approx(0.05)
    assert found[50] == 1e-4


def test_a_negative_loss_that_falls_keeps_the_rate():
    own = optimizer()
    losses = [-1 - 0.001 * step for step in range(50)]
    assert set(rates(Plateaus(own, 3), own, losses)) == {0.5}
