import pytest
import torch
from torch import nn

from synq.evaluation import top1


def test_top1_is_the_share_of_right_answers_over_all_batches():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False))
    nn.init.eye_(model[1].weight)
    images = torch.eye(3).view(3, 3, 1, 1)
    batches = [(images, torch.tensor([0, 1, 0])), (images[:1], torch.tensor([0]))]
    assert top1(model, batches) == pytest.approx(75.0)
