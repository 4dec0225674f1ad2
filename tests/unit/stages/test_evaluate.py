"""What is said of a selection that the held-out loss and the last epoch disagree on."""

import math

import pytest

from synq.stages.evaluate import disagreement

ACCURACIES = {0: 66.0, 1: 80.0, 2: 71.0}


def remarks(losses, selected):
    history = [{"epoch": epoch, "held_out": loss} for epoch, loss in enumerate(losses)]
    record = {"bits": "w3a3", "method": "synq", "seed": 4, "history": history}
    return list(disagreement({**record, "last": 2, "selected": selected}, ACCURACIES))


def test_a_loss_that_rose_is_remarked_in_numbers():
    (remark,) = remarks([0.5, 0.2, 0.6], selected=1)
    assert remark == (
        "w3a3 synq, seed 4: the held-out loss was 0.2 after epoch 1 and 0.6 after the last, 2; "
        "epoch 1 is shipped (80.00 %, the last one 71.00 %)"
    )


def test_a_small_loss_that_rose_over_the_floor_is_remarked():
    assert len(remarks([0.5, 0.003, 0.0101], selected=2)) == 1


def test_the_last_epoch_is_shipped_with_the_same_remark():
    (remark,) = remarks([0.5, 0.2, 0.6], selected=2)
    assert remark.endswith("the last, 2; the last one is shipped (71.00 %)")


@pytest.mark.parametrize(
    "losses",
    [[0.5, 0.3, 0.2], [0.5, 0.2, 0.249], [math.nan] * 3, [0.0] * 3, [0.5, 0.003, 0.0099]],
)
def test_a_loss_within_the_tolerance_or_none_is_not_remarked(losses):
    assert remarks(losses, selected=2) == []
