"""Soft rounding: it begins as the weight, learns up or down, and ends on the grid."""

import math

import pytest
import torch
from torch import nn

from synq.config.calibration import Calibration
from synq.errors import ConfigError
from synq.quantization.adaround import SoftRounding, exponent_at, softened
from synq.quantization.calibration import set_weight_ranges
from synq.quantization.convert import quantize_layers, weight_quantizers
from synq.quantization.quantizers import Recipe
from synq.runtime.process import generator_for

BITS = 3


def layer(kind=nn.Conv2d, weights="learned"):
    model = nn.Sequential(kind(4, 6, 3))
    weight = torch.randn(model[0].weight.shape, generator=generator_for(0))
    model[0].weight.data.copy_(weight)
    quantize_layers(model, Recipe(BITS, BITS, weights=weights))
    set_weight_ranges(model, Calibration(weights=weights))
    (found,) = weight_quantizers(model).values()
    return model, found


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_it_begins_as_the_weight_where_that_is_not_clipped(kind):
    _, own = layer(kind)
    weight = own.by_output(own.weight.detach())
    soft = SoftRounding(own)(weight).detach()
    low, high = (end.expand_as(weight) for end in own.weight_quantizer.grid(weight).ends)
    torch.testing.assert_close(soft, weight.clamp(low, high), rtol=1e-4, atol=1e-5)


def test_what_it_computes_is_the_equation():
    _, own = layer()
    one = SoftRounding(own)
    one.up.data.copy_(3 * torch.randn(one.up.shape, generator=generator_for(1)))
    scale = own.weight_quantizer.log_scale.detach().exp().flatten()
    zero_point = own.weight_quantizer.zero_point.flatten()
    found = one(own.weight)
    penalty = 0.0
    for place, up in enumerate(one.up.detach().flatten().tolist()):
        channel = place // own.weight[0].numel()
        s, z = float(scale[channel]), float(zero_point[channel])
        h = min(max(1.2 / (1 + math.exp(-up)) - 0.1, 0), 1)
        below = math.floor(float(own.weight.detach().flatten()[place]) / s + z)
        wanted = s * (min(max(below + h, -(2 ** (BITS - 1))), 2 ** (BITS - 1) - 1) - z)
        assert float(found.detach().flatten()[place]) == pytest.approx(wanted, rel=1e-4, abs=1e-5)
        penalty += 1 - abs(2 * h - 1) ** 5
    assert float(one.penalty(5.0).detach()) == pytest.approx(penalty, rel=1e-4)


def test_scales_and_roundings_have_a_gradient():
    _, own = layer()
    one = SoftRounding(own)
    one(own.weight).square().sum().backward()
    quantizer = own.weight_quantizer
    # d/ds sum (s c)^2 = 2 s sum c^2 for each channel; the logarithm's is s times that.
    wanted = 2 * one(own.weight).detach().square().flatten(1).sum(1)
    torch.testing.assert_close(quantizer.log_scale.grad.flatten(), wanted)
    assert one.up.grad.abs().sum() > 0
    assert own.weight.grad is None


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_it_settles_on_the_code_below_or_above(kind):
    model, own = layer(kind)
    before = own.by_output(own.weight.detach()).clone()
    grid = own.weight_quantizer.grid(before)
    with softened(model) as (one,):
        up = torch.randn(one.up.shape, generator=generator_for(1))
        one.up.data.copy_(up)
    assert "rounded" not in vars(own.weight_quantizer)
    after = own.by_output(own.weight.detach())
    places = before / grid.scale + grid.zero_point
    wanted = (places.floor() + (up >= 0)).clamp(-grid.half, grid.half - 1)
    assert torch.equal(grid.codes(after), wanted)
    # Every value is the grid's own: to round it again changes nothing.
    assert torch.equal(own.weight_quantizer(after), after)


def test_the_penalty_is_nothing_where_all_are_up_or_down_and_drives_them_there():
    _, own = layer()
    one = SoftRounding(own)
    optimizer = torch.optim.Adam([one.up], 0.1)
    begun = float(one.penalty(2.0).detach())
    for _ in range(100):
        optimizer.zero_grad()
        one.penalty(2.0).backward()
        optimizer.step()
    assert float(one.penalty(2.0).detach()) < 0.01 * begun
    assert set(one.shares().detach().round(decimals=1).flatten().tolist()) <= {0.0, 1.0, 0.5}


def test_the_exponent_falls_after_a_fifth_of_the_steps():
    assert exponent_at(0.1) is None
    assert exponent_at(0.2) == 20.0
    assert exponent_at(0.6) == pytest.approx(11.0)
    assert exponent_at(1.0) == pytest.approx(2.0)


def test_steps_that_are_not_learned_are_refused():
    model, _ = layer(weights="minmax")
    with (
        pytest.raises(ConfigError, match=r"reconstruct: rounding.*weights: learned"),
        softened(model),
    ):
        pass
