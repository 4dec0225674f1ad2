"""The benchmark that looks for a measure which needs no real image."""

import math

import pytest
import torch

from benchmarks.proxy import correlations, measures


def test_a_student_that_answers_as_its_teacher_has_all_of_the_agreement_and_no_divergence():
    logits = torch.randn(8, 5, generator=torch.Generator().manual_seed(0))
    same = measures(logits, logits)
    assert same == {"agreement": 1.0, "-KL": pytest.approx(0, abs=1e-6)}
    other = measures(-logits, logits)
    assert other["agreement"] == 0
    assert other["-KL"] < 0


def test_the_divergence_is_that_of_the_student_from_the_teacher():
    teacher, student = torch.tensor([[0.0, math.log(3)]]), torch.zeros(1, 2)
    wanted = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert measures(student, teacher)["-KL"] == pytest.approx(-wanted)


def row(top1, bits="w2a2", **values):
    return {"model": "net", "bits": bits, "method": "a", "seed": 0, "top1": top1, **values}


def test_ranks_are_compared_within_a_width_and_few_students_tell_nothing():
    rising, falling = (0.1, 0.2, 5.0, 9.0), (4.0, 3.0, 2.0, 1.0)
    rows = [
        row(70.0 + i, rises=up, falls=down)
        for i, (up, down) in enumerate(zip(rising, falling, strict=True))
    ]
    few = [row(80.0 + i, "w3a3", rises=0.0, falls=0.0) for i in range(3)]
    (found,) = correlations([*rows, *few])
    assert found == {"model": "net", "bits": "w2a2", "students": 4, "rises": 1.0, "falls": -1.0}
