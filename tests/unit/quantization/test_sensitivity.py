"""Sensitivities: those of a student in which all other layers are kept in full precision."""

import copy

import pytest
import small_transformers
import torch
from torch import nn
from torch.nn import functional

from synq.config.calibration import FLOAT, Calibration
from synq.errors import DivergenceError
from synq.models.build import frozen
from synq.quantization.calibration import calibrate
from synq.quantization.convert import quantize, quantized_names
from synq.quantization.quantizers import Recipe
from synq.quantization.sensitivity import Trial, losses_alone
from synq.runtime.process import generator_for

LEARNED = {"weights": "learned", "activations": "learned"}
SETTINGS = {
    "minmax": Calibration(),
    "learned": Calibration(**LEARNED, weight_estimator="mse"),
    "squant": Calibration(weights="squant"),
    "corrected": Calibration(batchnorm="corrected"),
}
SHAPE = (3, 12, 12)


class Net(nn.Module):
    """One of its activations is a function, which a student quantizes at a site."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.relu = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.second, self.other = nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)
        self.last = nn.Linear(8, 5)

    def forward(self, images):
        seen = self.relu(self.norm(self.first(images)))
        return self.last(functional.relu(self.other(self.second(seen))).mean((2, 3)))


def network():
    torch.manual_seed(0)
    model = Net()
    model.last.weight.data *= 30  # answers that differ
    return frozen(model)


def images(count=12, shape=SHAPE):
    return torch.randn(count, *shape, generator=generator_for(0))


def recipe(settings):
    return Recipe(3, 3, weights=settings.weights, activations=settings.activations)


def distances(found, wanted):
    """By the formulas."""
    p, q = wanted.double().softmax(1), found.double().softmax(1)
    divergence = float((p * (p.log() - q.log())).sum(1).mean())
    return divergence, float((found - wanted).double().square().mean())


@pytest.mark.parametrize("name", ["first", "second", "last"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_a_weight_alone_is_a_student_with_all_else_in_full_precision(settings, name):
    settings, teacher, batch = SETTINGS[settings], network(), images()
    others = [
        other
        for other in quantized_names(quantize(network(), Recipe(3, 3), SHAPE))
        if other != name
    ]
    alone = Recipe(3, 3, settings.weights, settings.activations, keep=dict.fromkeys(others, FLOAT))
    student = quantize(network(), alone, SHAPE).eval()
    calibrate(student, [batch], settings, teacher)
    wanted = distances(student(batch).detach(), teacher(batch))
    (found,) = losses_alone(teacher, recipe(settings), settings, [batch], [Trial(name, 3)])
    assert wanted[0] > 1e-6
    assert found == pytest.approx(wanted, rel=1e-3)


def test_an_input_alone_is_rounded_for_this_layer():
    teacher, batch, settings = network(), images(), SETTINGS["minmax"]
    keep = dict.fromkeys(("first", "second", "last", "relu/0"), FLOAT)
    keep["last"] = 8  # a student has a weight that is quantized
    student = quantize(network(), Recipe(3, 3, keep=keep), SHAPE).eval()
    calibrate(student, [batch], settings)
    student.last.weight_quantizer.bits = 24  # and this one does not count
    wanted = distances(student(batch).detach(), teacher(batch))
    (found,) = losses_alone(teacher, recipe(settings), settings, [batch], [Trial("second", 0, 3)])
    assert wanted[0] > 1e-6
    assert found == pytest.approx(wanted, rel=1e-3)


def test_trials_do_not_know_of_each_other_and_the_teacher_stays():
    settings, teacher, batch = SETTINGS["corrected"], network(), images()
    before = copy.deepcopy(teacher.state_dict())
    trials = [Trial("second", 2), Trial("first", 2), Trial("last", 3, 3), Trial("first", 8)]
    together = losses_alone(teacher, recipe(settings), settings, [batch], trials)
    for trial, loss in zip(trials, together, strict=True):
        (alone,) = losses_alone(teacher, recipe(settings), settings, [batch], [trial])
        assert alone == pytest.approx(loss, rel=1e-4)
    assert together[3].divergence < together[1].divergence
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in teacher.modules())


def test_a_mean_is_over_all_images_of_all_batches():
    settings, teacher, batch = SETTINGS["minmax"], network(), images(12)
    trials = [Trial("first", 2)]
    (whole,) = losses_alone(teacher, recipe(settings), settings, [batch], trials)
    (parts,) = losses_alone(teacher, recipe(settings), settings, batch.split([5, 7]), trials)
    assert parts == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("make", [small_transformers.small, lambda: small_transformers.fused(True)])
def test_layers_that_an_attention_reads_are_quantized_too(make):
    teacher, batch = make(), images(8, small_transformers.SHAPE)
    names = [name for name, m in teacher.named_modules() if "attention" in name and m._parameters]
    assert len(names) >= 2
    trials = [trial for name in names for trial in (Trial(name, 2), Trial(name, 0, 2))]
    found = losses_alone(teacher, Recipe(2, 2), Calibration(), [batch], trials)
    assert all(loss.divergence > 0 for loss in found)


def test_answers_that_are_not_finite_are_told():
    teacher = network()
    teacher.norm.running_var.fill_(float("nan"))
    with pytest.raises(DivergenceError, match="answers to the synthetic images are not finite"):
        losses_alone(teacher, Recipe(3, 3), Calibration(), [images()], [Trial("first", 3)])
