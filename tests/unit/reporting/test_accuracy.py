import pytest
import torch
from torch import nn

from synq.reporting.accuracy import answers, compared, confused, confusion, doubt, top1
from synq.reporting.changes import Changes


def test_confusion_counts_labels_by_answers_over_all_batches():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False))
    nn.init.eye_(model[1].weight)
    images = torch.eye(3).view(3, 3, 1, 1)
    batches = [(images, torch.tensor([0, 1, 0])), (images[:1], torch.tensor([0]))]
    other = nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False))
    nn.init.zeros_(other[1].weight)
    asked = iter(batches)
    labels, found = answers([model, other], asked)
    counts, others = (confusion(labels, own, 3) for own in found)
    assert next(asked, None) is None
    # The other says 0 of all: of 1 and 2 it says something else, right where the label is 0.
    changes = [compared(labels, found[0], own) for own in found]
    assert changes == [Changes(0, 0, 0), Changes(2, 1, 1)]
    assert others.tolist() == [[3, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert counts.tolist() == [[2, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert top1(counts) == pytest.approx(75.0)


def test_a_network_that_is_right_raises_no_doubt():
    assert doubt(torch.tensor([[30, 70], [20, 80]])) == ""
    assert doubt(torch.eye(10, dtype=torch.long) * 5 + 1) == ""


def test_chance_level_doubts_the_test_set():
    text = doubt(torch.ones(10, 10, dtype=torch.long))
    assert "right on 10.0 %" in text
    assert "mean and std" in text


def test_another_order_of_the_classes_is_recognised():
    counts = torch.eye(10, dtype=torch.long).roll(1, 0) * 9 + torch.eye(10, dtype=torch.long)
    text = doubt(counts)
    assert "90.0 % with the classes in another order" in text
    assert "names of the classes can say it (docs/own-network.md)" in text


@pytest.mark.parametrize("moved", [2, 5, 8])
def test_an_order_in_which_some_classes_are_right_is_recognised_too(moved):
    order = torch.arange(8)
    order[:moved] = order[:moved].roll(1)
    counts = (torch.eye(8, dtype=torch.long) * 9)[order] + torch.ones(8, 8, dtype=torch.long)
    assert "with the classes in another order" in doubt(counts)


def test_a_weak_network_s_own_mistakes_are_no_other_order():
    # One class is taken for another more often than for itself, and some are near to chance.
    counts = torch.eye(8, dtype=torch.long) * 12 + 4
    counts[3] = torch.tensor([2, 2, 20, 14, 2, 2, 1, 1])
    assert doubt(counts) == ""


def test_what_is_taken_for_another_class_is_counted_and_nothing_else():
    counts = torch.tensor([[5, 0, 0], [0, 4, 2], [1, 0, 7]])
    assert confused(counts) == {"1": {"2": 2}, "2": {"0": 1}}
    assert confused(torch.eye(3, dtype=torch.long)) == {}
