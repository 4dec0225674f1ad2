import pytest
import torch
from reference_values import BITS, Reference
from torch import nn

from synq.errors import ModelError
from synq.quantization.affine import channel_ranges, fake_quantize, grid_of_range
from synq.quantization.convert import activation_quantizers, observing, packed_bytes, quantize
from synq.quantization.layers import QuantConv2d
from synq.quantization.quantizers import Recipe

REFERENCE = Reference("quant")


def small():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["conv_weight", "linear_weight"])
def test_weights_are_those_of_the_reference(name, bits):
    weight = REFERENCE[name]
    ours = fake_quantize(weight, grid_of_range(*channel_ranges(weight), bits))
    assert torch.equal(ours, REFERENCE[f"{name}_w{bits}"])  # bit for bit


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("name", ["activation", "activation_signed"])
def test_activations_are_those_of_the_reference(name, bits):
    lo, hi = REFERENCE[f"{name}_range"]
    ours = fake_quantize(REFERENCE[name], grid_of_range(lo, hi, bits))
    assert torch.equal(ours, REFERENCE[f"{name}_a{bits}"])  # bit for bit


def test_reference_weights_hold_the_awkward_channels():
    lo, hi = (end.flatten() for end in channel_ranges(REFERENCE["conv_weight"]))
    assert ((lo == 0) & (hi == 0)).any()
    assert (lo * hi > 0).any()


@pytest.mark.parametrize("bits", BITS)
def test_a_channel_has_at_most_two_to_the_bits_values(bits):
    weight = torch.randn(3, 400)
    rounded = fake_quantize(weight, grid_of_range(*channel_ranges(weight), bits))
    assert max(len(channel.unique()) for channel in rounded) <= 2**bits


def test_gradient_passes_straight_through_also_outside_the_range():
    values = torch.tensor([-5.0, 0.1, 0.7, 9.0], requires_grad=True)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    (
        fake_quantize(values, grid_of_range(torch.tensor(0.0), torch.tensor(1.0), 3)) * weights
    ).sum().backward()
    assert torch.equal(values.grad, weights)


def test_quantized_network_keeps_names_and_full_precision_weights():
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    after = quantize(model, Recipe(3, 4)).state_dict()
    assert set(after) - set(before) == {"2.quantizer.lo", "2.quantizer.hi"}
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_widths_of_weights_and_activations_act_separately():
    model = quantize(small(), Recipe(2, 8))
    assert isinstance(model[0], QuantConv2d)
    assert all(len(channel.unique()) <= 4 for channel in model[0].quantized_weight())
    model[2].quantizer.hi.fill_(4.0)
    assert len(model[:3](torch.randn(8, 3, 8, 8)).unique()) > 16


def test_more_bits_are_closer_to_full_precision():
    images = torch.randn(8, 3, 8, 8)
    exact = small()(images)
    errors = []
    for bits in (2, 4, 8):
        model = quantize(small(), Recipe(bits, bits))
        model[2].quantizer.hi.fill_(4.0)
        errors.append(float((model(images) - exact).abs().mean().detach()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


def test_observers_see_activations_inside_the_block_alone():
    model, seen = quantize(small(), Recipe(4, 4)), []
    images = torch.randn(2, 3, 8, 8)
    with observing(model, {"2.quantizer": seen.append}):
        model(images)
    model(images)
    with pytest.raises(RuntimeError), observing(model, {"2.quantizer": seen.append}):
        model(images[:, :2])
    model(images)
    assert len(seen) == 1
    assert seen[0].shape == (2, 4, 6, 6)
    assert list(activation_quantizers(model)) == ["2.quantizer"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (nn.Sequential(nn.ReLU()), "no convolution or linear layer"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh()), "no activation to quantize"),
    ],
)
def test_a_model_without_anything_to_quantize_is_refused(model, reason):
    with pytest.raises(ModelError, match=reason):
        quantize(model, Recipe(4, 4))


def test_packed_size_counts_codes_scales_and_the_rest():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    assert packed_bytes(model, 32) == 4 * (108 + 4)
    assert packed_bytes(model, 3) == 41 + 8 * 4 + 4 * 4  # 108 * 3 bits, 4 channels, 4 biases
