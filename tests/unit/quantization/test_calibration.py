import copy
import dataclasses
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synq.config.calibration import Calibration
from synq.errors import DivergenceError
from synq.finetuning.losses import distillation
from synq.quantization.affine import fake_quantize, grid_of_range
from synq.quantization.calibration import (
    CLIPS,
    POWERS,
    SAMPLE,
    BatchNormCorrection,
    best_clips,
    best_range,
    calibrate,
    nearest_power,
)
from synq.quantization.convert import activation_quantizers, quantize
from synq.quantization.quantizers import LearnedStep, Recipe, StaticRange


def passing(bits=3):
    """A network whose one activation sees its input as it is."""
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    return quantize(nn.Sequential(layer, nn.ReLU()), Recipe(8, bits))


def ranges(batches, **settings):
    model = passing(settings.pop("bits", 3))
    calibrate(model, batches, Calibration(**settings))
    (quantizer,) = activation_quantizers(model).values()
    return float(quantizer.lo), float(quantizer.hi)


def uniform(scale):
    return torch.linspace(0, scale, 1000).view(1, 1, 10, 100)


def clip_of(values, bits, power):
    return float(best_clips(values, StaticRange(bits), torch.zeros(()), values.max(), power))


def error_of(values, quantizer, ends, power=3.0):
    return float(
        (fake_quantize(values, quantizer.spanning(*ends)) - values).abs().pow(power).mean()
    )


@pytest.mark.parametrize("kind", [StaticRange, LearnedStep])
@pytest.mark.parametrize(
    ("function", "bits"), [(F.hardswish, 3), (F.silu, 3), (F.hardswish, 4), (F.gelu, 2)]
)
def test_a_signed_activation_keeps_codes_below_0_where_that_is_better(kind, function, bits):
    values = function(1.5 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)))
    quantizer, (lo, hi) = kind(bits), torch.aminmax(values)
    ends = best_range(values, quantizer, lo, hi, 3.0)
    clip = best_clips(values, quantizer, lo, hi, 3.0)
    assert error_of(values, quantizer, ends) <= error_of(values, quantizer, (lo * clip, hi * clip))
    # No grid with any code of 0 and a step in hundredths is much better.
    codes = 2**bits - 1
    steps = torch.linspace(0.05, 1, 96) * (hi - lo) / codes * 2
    every = [
        error_of(values, quantizer, (-zero * step, (codes - zero) * step))
        for zero in range(codes)
        for step in steps
    ]
    assert error_of(values, quantizer, ends) < 1.02 * min(every)


def test_of_3_bits_hardswish_has_one_code_below_0():
    values = F.hardswish(1.5 * torch.randn(20_000, generator=torch.Generator().manual_seed(0)))
    quantizer = LearnedStep(3)
    grid = quantizer.spanning(*best_range(values, quantizer, *torch.aminmax(values), 3.0))
    assert int(grid.zero_point) + 4 == 1


@pytest.mark.parametrize(("lowest", "bits"), [(0.0, 3), (-0.4, 8)])
def test_ranges_from_0_on_and_of_8_bits_have_one_factor(lowest, bits):
    values = torch.linspace(lowest, 3.0, 2000)
    quantizer, (lo, hi) = StaticRange(bits), torch.aminmax(values)
    clip = best_clips(values, quantizer, lo, hi, 3.0)
    assert best_range(values, quantizer, lo, hi, 3.0) == (lo * clip, hi * clip)


@pytest.mark.parametrize("estimator", ["minmax", "ema"])
def test_constant_input_gives_its_range_from_the_first_batch_on(estimator):
    for count in (1, 30):
        assert ranges([uniform(1.0)] * count, range_estimator=estimator) == pytest.approx((0, 1))


def test_minmax_takes_the_extremes_of_all_batches():
    batches = [uniform(1.0), uniform(3.0), uniform(2.0)]
    assert ranges(batches, range_estimator="minmax") == pytest.approx((0, 3))


def test_ema_averages_the_extremes():
    batches = [uniform(1.0), uniform(3.0)]
    found = ranges(batches, range_estimator="ema", range_momentum=0.9)
    assert found == pytest.approx((0, 0.9 * 1 + 0.1 * 3))


def test_mse_clips_outliers_and_beats_minmax():
    values = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0)).relu()
    values[0, 0, 0, 0] = 30.0
    _, clipped = ranges([values], range_estimator="mse", range_power=2.0)
    assert 1.0 < clipped < 10.0
    zero = torch.tensor(0.0)

    def error(hi):
        return float(
            (fake_quantize(values, grid_of_range(zero, torch.tensor(hi), 3)) - values)
            .square()
            .mean()
        )

    assert error(clipped) < 0.3 * error(30.0)
    assert error(clipped) <= min(error(clipped * factor) for factor in (0.8, 1.25))


def test_wider_quantizers_clip_less():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).relu()
    clips = [clip_of(values, bits, 2.4) for bits in (2, 3, 4, 8)]
    assert clips == sorted(clips)
    assert clips[0] < 0.7 < clips[-1]


def test_higher_power_clips_less():
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0)).relu()
    assert clip_of(values, 3, 1.0) < clip_of(values, 3, 4.0)


@pytest.mark.parametrize("ratio", [0.7, 1.3])
def test_clip_ratio_scales_the_range(ratio):
    batches = [uniform(2.0)]
    assert ranges(batches, range_estimator="minmax", clip_ratio=ratio)[1] == pytest.approx(
        2 * ratio
    )


def test_later_layers_see_the_quantized_earlier_ones():
    layers = [nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False), nn.ReLU()]
    for layer in layers[::2]:
        nn.init.ones_(layer.weight)
    model = quantize(nn.Sequential(*layers), Recipe(8, 3))
    calibrate(model, [uniform(1.0)], Calibration(range_estimator="minmax", clip_ratio=0.5))
    first, second = activation_quantizers(model).values()
    assert float(first.hi) == pytest.approx(0.5)
    assert float(second.hi) == pytest.approx(0.25)


def test_activations_that_are_not_finite_are_refused():
    with pytest.raises(DivergenceError, match="not finite"):
        ranges([torch.full((1, 1, 2, 2), torch.inf)])


def test_the_negative_end_is_to_be_finite_too():
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    model = quantize(nn.Sequential(layer, nn.LeakyReLU()), Recipe(8, 3))
    images = torch.zeros(1, 1, 2, 2)
    images[0, 0, 0, 0] = -torch.inf
    with pytest.raises(DivergenceError, match="not finite"):
        calibrate(model, [images], Calibration(range_estimator="minmax"))


def test_a_clip_is_searched_on_all_places_and_the_whole_tensors_extremes():
    """Evenly spaced places would be in step with the rows, and have not the largest value."""
    maps = torch.randn(256, 1, 64, 64, generator=torch.Generator().manual_seed(0)).relu()
    assert maps.numel() // SAMPLE == 16
    maps[..., ::16] = 0.0
    maps[0, 0, 5, 5] = 20.0
    _, found = ranges([maps], range_power=2.4, bits=4)

    def error(hi):
        grid = grid_of_range(torch.tensor(0.0), torch.tensor(hi), 4)
        return float((fake_quantize(maps, grid) - maps).abs().pow(2.4).mean())

    assert error(found) < 1.05 * min(error(20.0 * clip) for clip in CLIPS)


class _Twice(nn.Module):
    """Its second block is called twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU())

    def forward(self, images):
        features = self.first(images)
        return self.second(3 * self.second(features)).mean((2, 3))


def test_a_batchnorm_layer_of_several_calls_keeps_its_statistics():
    torch.manual_seed(0)
    teacher = _Twice()
    images = torch.randn(32, 1, 8, 8)
    with torch.no_grad():
        for _ in range(20):
            teacher.train()(images)
    teacher.eval().requires_grad_(False)
    student = quantize(copy.deepcopy(teacher), Recipe(3, 3), (1, 8, 8)).eval()
    calibrate(student, images.split(8), Calibration(batchnorm="corrected"), teacher)
    moved = {
        name: not torch.equal(layer.running_mean, teacher.get_submodule(name).running_mean)
        for name, layer in student.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
    }
    assert moved == {"first.1": True, "second.1": False}


def test_a_channel_that_rounding_made_constant_keeps_its_variance():
    networks = [nn.Sequential(nn.BatchNorm2d(2)).eval() for _ in range(2)]
    values = torch.randn(8, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    constant = values.clone()
    constant[:, 1] = 0.25
    with BatchNormCorrection(*networks).following(), torch.no_grad():
        networks[0](values)
        networks[1](constant)
    mean, variance = networks[1][0].running_mean, networks[1][0].running_var
    assert torch.allclose(variance, torch.ones(2))
    assert float(mean[1]) == pytest.approx(0.25 - float(values[:, 1].mean()), abs=1e-6)


NEARNESS = partial(distillation, temperature=4.0)


def searched(bits, batches=4):
    """Teacher, student and batches of a network whose activations have long tails."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3)]
    teacher = nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(128, 5)).eval()
    student = quantize(copy.deepcopy(teacher), Recipe(*bits, weights="learned")).eval()
    images = torch.randn(16 * batches, 3, 8, 8, generator=torch.Generator().manual_seed(1)) ** 3
    settings = Calibration(weight_estimator="mse", batchnorm="corrected", weight_rounding="squant")
    return teacher, student, images.split(16), settings


@pytest.mark.parametrize("bits", [(2, 2), (4, 4), (8, 3)])
def test_the_exponent_is_that_of_the_student_nearest_to_its_teacher(bits):
    teacher, student, batches, settings = searched(bits)
    before = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    power = nearest_power(teacher, student, batches, settings, NEARNESS)
    after = student.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())

    def distance(power):
        own = copy.deepcopy(student)
        own_settings = dataclasses.replace(settings, range_power=power)
        calibrate(own, [batches[0], batches[2]], own_settings, teacher)
        with torch.no_grad():
            pairs = [(own(images) / 4, teacher(images) / 4) for images in batches[1::2]]
        return sum(
            float((t.softmax(1) * (t.log_softmax(1) - s.log_softmax(1))).sum()) for s, t in pairs
        )

    distances = {power: distance(power) for power in POWERS}
    assert len({round(value, 6) for value in distances.values()}) > 1
    assert distances[power] == pytest.approx(min(distances.values()), rel=1e-3)


def test_one_batch_is_enough_to_search_and_what_is_no_number_is_not_chosen():
    teacher, student, batches, settings = searched((4, 4), batches=1)
    assert nearest_power(teacher, student, batches, settings, NEARNESS) in POWERS
    losses = iter([float("nan"), float("nan"), 3.0, 5.0])

    def given(own, wanted):
        return 0 * NEARNESS(own, wanted) + next(losses)

    assert nearest_power(teacher, student, batches, settings, given) == POWERS[2]
