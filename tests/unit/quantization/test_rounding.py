"""SQuant's rounding: what it promises of every weight, kernel and output channel."""

import pytest
import torch
from torch import nn

from synq.config.calibration import Calibration
from synq.quantization.affine import channel_ranges, grid_of_range
from synq.quantization.calibration import calibrate
from synq.quantization.convert import quantize, weight_quantizers
from synq.quantization.quantizers import Recipe
from synq.quantization.rounding import flip_in_kernels, flipped_codes
from synq.runtime.process import generator_for

HALF = 0.5 + 1e-9
SHAPES = [(8, 16, 3, 3), (5, 64, 1, 1), (7, 40), (6, 1, 5, 5), (1, 1, 1, 1)]


def parts(shape, bits, *, wide):
    """A weight, its grid, and weight and nearest codes in units of codes, ``[M, N, K]``.

    With a wide grid every weight has a code on both of its sides.
    """
    weight = torch.randn(shape, generator=generator_for(0))
    lo, hi = channel_ranges(weight)
    if wide:
        margin = 2 * (hi - lo).clamp_min(1) / (2**bits - 1)
        lo, hi = lo - margin, hi + margin
    grid = grid_of_range(lo, hi, bits)
    places = weight.double() * grid.inverse.double() + grid.zero_point.double()
    view = (*shape[:2], -1)
    return weight, grid, places.reshape(view), grid.codes(weight.clone()).double().reshape(view)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_errors_of_a_kernel_add_up_to_half_a_step(shape, bits):
    _, grid, places, nearest = parts(shape, bits, wide=True)
    codes = flip_in_kernels(nearest, places, grid)
    assert float((codes - places).sum(2).abs().max()) <= HALF
    assert float((codes - places).abs().max()) <= 1
    # As few flips as that takes.
    needed = (nearest - places).sum(2).abs().round()
    assert torch.equal((codes != nearest).sum(2), needed)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_errors_of_an_output_channel_add_up_to_half_a_step(shape, bits):
    weight, grid, places, nearest = parts(shape, bits, wide=True)
    errors = flipped_codes(weight, grid).reshape(places.shape) - places
    assert float(errors.sum((1, 2)).abs().max()) <= HALF
    assert float(errors.sum(2).abs().max()) <= 1 + 1e-9
    assert float(errors.abs().max()) <= 1
    assert float((flipped_codes(weight, grid).reshape(places.shape) - nearest).abs().max()) <= 1


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("shape", SHAPES)
def test_codes_stay_in_the_grid_and_next_to_the_nearest(shape, bits):
    weight, grid, places, nearest = parts(shape, bits, wide=False)
    codes = flipped_codes(weight, grid)
    assert torch.equal(codes, codes.round())
    assert codes.min() >= -grid.half
    assert codes.max() <= grid.half - 1
    assert float((codes.reshape(places.shape) - nearest).abs().max()) <= 1
    # Never worse than the nearest codes.
    before = (nearest - places).sum((1, 2)).abs()
    after = (codes.reshape(places.shape) - places).sum((1, 2)).abs()
    assert bool((after <= before.clamp_min(0.5) + 1e-9).all())


def test_a_kernel_is_flipped_where_its_errors_are_largest():
    grid = grid_of_range(torch.tensor(-8.0), torch.tensor(7.0), 4)  # steps of 1 from -8 on
    weight = torch.tensor([[[0.4, 0.3, 0.45, -0.1, 0.2]]])
    # Rounded to 0 the errors add up to -1.25: the largest goes up.
    assert flipped_codes(weight, grid).tolist() == [[[0, 0, 1, 0, 0]]]


def test_a_channel_takes_a_flip_back_that_its_kernels_have_made():
    grid = grid_of_range(torch.tensor(-8.0), torch.tensor(7.0), 4)
    # Three kernels with sums of errors of -0.6: each flips one, and has +0.4; together 1.2.
    weight = torch.tensor([[[0.31, 0.29], [0.33, 0.27], [0.32, 0.28]]])
    codes = flipped_codes(weight, grid)
    assert codes.sum() == 2
    assert float((codes - weight).sum().abs()) <= 0.5


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)),
    ).eval()


@pytest.mark.parametrize("estimator", ["minmax", "mse"])
def test_calibration_rounds_the_weights_once_and_for_all(estimator):
    model, settings = quantize(network(), Recipe(3, 8, weights="squant")), Calibration
    floats = {name: layer.weight.clone() for name, layer in weight_quantizers(model).items()}
    images = torch.randn(4, 3, 12, 12, generator=generator_for(1))
    calibrate(model, [images], settings(weights="squant", weight_estimator=estimator))
    for name, layer in weight_quantizers(model).items():
        assert not torch.equal(layer.weight, floats[name])
        torch.testing.assert_close(layer.quantized_weight(), layer.weight, rtol=1e-5, atol=1e-6)
        grid = layer.weight_quantizer.grid(layer.weight)
        own = layer.by_output(floats[name])
        wanted = grid.values(flipped_codes(own, grid))
        torch.testing.assert_close(layer.by_output(layer.weight), wanted)


@pytest.mark.parametrize("bits", [2, 4])
def test_learned_grids_begin_with_its_codes_and_as_little_moved_as_that_takes(bits):
    model = quantize(network(), Recipe(bits, 8, weights="learned"))
    layers = weight_quantizers(model)
    floats = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    settings = {"weights": "learned", "weight_estimator": "mse"}
    images = torch.randn(4, 3, 12, 12, generator=generator_for(1))
    calibrate(model, [images], Calibration(**settings))
    assert all(torch.equal(layer.weight, floats[name]) for name, layer in layers.items())
    calibrate(model, [images], Calibration(**settings, weight_rounding="squant"))
    flips = 0
    for name, layer in layers.items():
        own, now = layer.by_output(floats[name]), layer.by_output(layer.weight.detach())
        grid = layer.weight_quantizer.grid(own)
        wanted = flipped_codes(own, grid)
        assert torch.equal(grid.codes(now), wanted)
        torch.testing.assert_close(layer.by_output(layer.quantized_weight()), grid.values(wanted))
        kept = wanted == grid.codes(own)
        assert torch.equal(now[kept], own[kept])
        assert float(((now - own) / grid.scale).abs().max()) <= 0.55 + 1e-4
        flips += int((~kept).sum())
    assert flips > 0


def test_outputs_are_nearer_than_with_nearest_codes_where_inputs_are_alike():
    """A kernel that sees nearly one value answers with its sum, which is what is kept."""
    layer = nn.Conv2d(16, 32, 3, bias=False)
    images = 1 + 0.1 * torch.randn(4, 16, 8, 8, generator=generator_for(2))
    whole = nn.Sequential(layer, nn.ReLU())
    wanted = layer(images)
    errors = []
    for kind in ("squant", "minmax"):
        model = quantize(
            nn.Sequential(nn.Conv2d(16, 32, 3, bias=False), nn.ReLU()), Recipe(4, 8, weights=kind)
        )
        model[0].weight.data.copy_(whole[0].weight.data)
        calibrate(model, [images], Calibration(weights=kind))
        errors.append(float((model[0](images) - wanted).square().mean()))
    assert errors[0] < 0.5 * errors[1]
