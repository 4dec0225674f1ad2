"""Quantized layers and activations of every supported kind, one by one and in whole networks."""

import copy
import pickle
from functools import partial

import pytest
import torch
from pytorchcv.models.common.activ import HSigmoid, HSwish, Swish
from torch import nn

from synq.config.calibration import Calibration
from synq.config.finetune import Finetune
from synq.finetuning.objective import Objective
from synq.models.build import build, frozen
from synq.quantization.activations import QUANTIZABLE
from synq.quantization.affine import fake_quantize, grid_of_range
from synq.quantization.calibration import calibrate
from synq.quantization.convert import (
    activation_quantizers,
    packed_bytes,
    quantize,
    weight_quantizers,
)
from synq.quantization.layers import swap_channels
from synq.quantization.quantizers import Recipe

# How deep each goes below zero; SELU and CELU are an ELU with other constants.
LOWEST = {
    **dict.fromkeys([nn.ReLU, nn.ReLU6], 0.0),
    **dict.fromkeys([nn.Hardswish, HSwish], -0.375),
    **dict.fromkeys([nn.SiLU, Swish], -0.278),
    nn.Hardtanh: -1.0,
    nn.GELU: -0.17,
    nn.Mish: -0.309,
    nn.LeakyReLU: -0.06,
    nn.PReLU: -1.5,
    nn.ELU: -0.9975,
    nn.CELU: -0.9975,
    nn.SELU: -1.7537,
}


def by_hand(weight, groups, bits, transposed):
    """Each output channel on its own, by its index alone."""
    result = torch.empty_like(weight)
    if not transposed:
        for channel, own in enumerate(weight):
            result[channel] = fake_quantize(own, grid_of_range(own.min(), own.max(), bits))
        return result
    inputs, outputs = weight.shape[0] // groups, weight.shape[1]
    for group in range(groups):
        rows = slice(group * inputs, (group + 1) * inputs)
        for channel in range(outputs):
            own = weight[rows, channel]
            result[rows, channel] = fake_quantize(own, grid_of_range(own.min(), own.max(), bits))
    return result


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(8, 12, 3, groups=4),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.Conv2d(8, 16, 3, groups=8, dilation=2, padding_mode="reflect", padding=1),
        nn.ConvTranspose2d(8, 6, 3),
        nn.ConvTranspose2d(8, 12, 4, stride=2, padding=1, output_padding=1, groups=4),
        nn.ConvTranspose2d(8, 8, 2, stride=2, groups=8, bias=False),
    ],
    ids=str,
)
def test_each_output_channel_has_its_own_grid(layer, bits):
    transposed = isinstance(layer, nn.ConvTranspose2d)
    expected = copy.deepcopy(layer)
    expected.weight.data = by_hand(layer.weight.data, layer.groups, bits, transposed)
    ours = quantize(nn.Sequential(copy.deepcopy(layer), nn.ReLU()), Recipe(bits, 8))[0]
    torch.testing.assert_close(ours.quantized_weight(), expected.weight, rtol=0, atol=0)
    images = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(ours(images), expected(images))
    ours(images).sum().backward()
    assert ours.weight.grad.shape == layer.weight.shape


def test_a_transposed_convolution_takes_an_output_size():
    layer = nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1)
    ours = quantize(nn.Sequential(copy.deepcopy(layer), nn.ReLU()), Recipe(8, 8))[0]
    images = torch.randn(1, 3, 6, 6)
    for size in (11, 12):
        assert ours(images, output_size=[size, size]).shape == (1, 4, size, size)


def test_swapping_the_channels_twice_gives_the_weight_back():
    weight = torch.randn(6, 4, 3, 3)
    swapped = swap_channels(weight, 3)
    assert swapped.shape == (12, 2, 3, 3)
    assert torch.equal(swap_channels(swapped, 3), weight)
    # Output 5 is the second of group 1, whose inputs are 2 and 3.
    assert torch.equal(swapped[5], weight[2:4, 1])


def test_packed_size_counts_the_scales_of_every_output_channel():
    model = nn.Sequential(nn.ConvTranspose2d(8, 12, 2, groups=4, bias=False), nn.ReLU())
    weights = 8 * 3 * 4
    assert packed_bytes(model, 32) == 4 * weights
    assert packed_bytes(model, 4) == weights // 2 + 8 * 12
    assert packed_bytes(quantize(model, Recipe(4, 4)), 4) == weights // 2 + 8 * 12 + 8


def test_layers_that_are_not_quantized_are_not_packed():
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), Own(3, 3, 1), nn.Conv1d(3, 3, 1))
    size = packed_bytes(model, 2)
    assert packed_bytes(quantize(model, Recipe(2, 2)), 2) == size + 8
    assert size == 3 + 8 * 3 + 4 * 3 + 2 * 4 * 12


def test_every_activation_is_in_the_table():
    assert set(LOWEST) == set(QUANTIZABLE)


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_an_activation_is_calibrated_from_its_lowest_value(kind):
    activation = kind()
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    values = torch.linspace(-6, 6, 12001).view(1, 1, 1, -1)
    exact = copy.deepcopy(activation)(values)
    model = quantize(nn.Sequential(layer, activation), Recipe(8, 8))
    assert type(model[1]) is kind
    assert isinstance(model[1], kind)
    calibrate(model, [values], Calibration(range_estimator="minmax"))
    lo, hi = float(model[1].quantizer.lo), float(model[1].quantizer.hi)
    # The weight of 1 and nothing else is exact at any width, so the input is the image.
    assert lo == pytest.approx(LOWEST[kind], abs=2e-3)
    assert hi == pytest.approx(float(exact.detach().max()), abs=1e-3)
    error = (model[1](values) - exact).abs().detach()
    assert float(error.max()) <= 0.51 * (hi - lo) / 255
    assert len(model[1](values).unique()) <= 256


def test_the_default_estimator_keeps_the_negative_end_of_a_swish():
    values = torch.randn(1, 1, 100, 100, generator=torch.Generator().manual_seed(0))
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(layer.weight)
    model = quantize(nn.Sequential(layer, nn.SiLU()), Recipe(8, 8))
    calibrate(model, [values], Calibration())
    assert -0.2785 < float(model[1].quantizer.lo) < -0.2
    exact = nn.functional.silu(values)
    assert float((model(values).detach() - exact).square().mean() / exact.square().mean()) < 1e-4


@pytest.mark.parametrize("kind", QUANTIZABLE)
def test_a_student_can_be_copied_and_pickled(kind):
    model = quantize(nn.Sequential(nn.Conv2d(3, 4, 1), kind()), Recipe(4, 4))
    model[1].quantizer.hi.fill_(2.0)
    images = torch.randn(1, 3, 4, 4)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(other[1]) is type(model[1])
        assert torch.equal(other(images), model(images))


@pytest.mark.parametrize("gate", [nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, HSigmoid])
def test_gates_stay_as_they_are(gate):
    model = quantize(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), gate()), Recipe(4, 4))
    assert type(model[2]) is gate
    assert list(activation_quantizers(model)) == ["1.quantizer"]


class Gated(nn.Module):
    """Squeeze and excitation around a depthwise convolution, and a residual sum."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Hardswish())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.BatchNorm2d(8))
        self.squeeze = nn.Sequential(
            *(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.SiLU(), nn.Conv2d(4, 8, 1)),
            nn.Hardsigmoid(),
        )
        self.grow = nn.ConvTranspose2d(8, 6, 2, stride=2, groups=2)
        self.activation = nn.PReLU()
        self.head = nn.Linear(6, 7)

    def forward(self, images):
        images = self.stem(images)
        body = self.body(images)
        images = images + body * self.squeeze(body)
        return self.head(self.activation(self.grow(images)).mean((2, 3)))


def seresnet():
    return build("seresnet20_cifar10", 10, 3, 32), (3, 32, 32)


def mobilenetv3():
    return small_pool(build("mobilenetv3_small_w7d20", 5, 3, 224)), (3, 64, 64)


def mobilenetv2():
    """Its classifier is a convolution: there is no linear layer."""
    model = small_pool(build("mobilenetv2_w1", 5, 3, 224))
    assert not any(isinstance(module, nn.Linear) for module in model.modules())
    return model, (3, 64, 64)


def small_pool(model):
    """pytorchcv's pooling is of 7x7 and no other size; random weights need no 224 pixels."""
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)
    return model


@pytest.mark.parametrize(
    "make",
    [lambda: (Gated(), (1, 28, 28)), seresnet, mobilenetv3, mobilenetv2],
    ids=["own", "seresnet", "mobilenetv3", "mobilenetv2"],
)
def test_a_network_is_quantized_calibrated_and_takes_a_step(make):
    torch.manual_seed(0)
    teacher, shape = make()
    teacher = frozen(teacher)
    images = torch.randn(4, *shape)
    errors = []
    # Random weights carry rounding far (a quarter of MobileNetV2's output at 8 bits), so that what
    # shows that nothing but rounding differs is how it falls: by 16 for 4 bits.
    for bits in (12, 8):
        student = quantize(copy.deepcopy(teacher), Recipe(bits, bits)).eval().requires_grad_(True)
        calibrate(student, [images], Calibration(range_estimator="minmax"))
        with torch.no_grad():
            exact, ours = teacher(images), student(images)
        errors.append(float((ours - exact).norm() / exact.norm()))
    assert errors[0] < 0.02
    assert errors[0] < errors[1] / 4
    with Objective(teacher, student, Finetune(), shape) as objective:
        terms = objective.backward(images, torch.arange(4))
    assert all(torch.isfinite(term) for term in terms.values())
    weights = [p.grad for p in student.parameters() if p.dim() > 1]
    assert weights
    assert all(gradient is not None for gradient in weights)
    assert sum(float(gradient.abs().sum()) for gradient in weights) > 0


class Held(nn.Module):
    """Layers in a plain list, with hooks, with attributes of their own, as a bound method."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 5)
        self.relu = nn.ReLU()
        self.stages = [(self.conv1, self.bn1), (self.conv2, self.bn2)]
        self.conv2.gain = 2.0
        self.conv2.register_forward_hook(_tripled)
        self.heads = {"out": self.out}

    def forward(self, images):
        for conv, norm in self.stages:
            images = self.relu(norm(conv(images) * getattr(conv, "gain", 1.0)))
        return self.heads["out"](images.mean((2, 3)))


def _tripled(module, args, output):
    return 3 * output


def test_what_else_is_held_hung_on_or_written_on_a_layer_stays():
    torch.manual_seed(0)
    teacher = frozen(Held())
    images = torch.randn(16, 3, 12, 12)
    fine, coarse = (
        quantize(copy.deepcopy(teacher), Recipe(bits, 8), (3, 12, 12)).eval() for bits in (8, 2)
    )
    wanted = teacher(images)
    for student in (fine, coarse):
        calibrate(student, [images], Calibration(range_estimator="minmax"))
        rounded = dict.fromkeys(weight_quantizers(student), 0)
        for name, layer in weight_quantizers(student).items():
            layer.weight_quantizer.register_forward_hook(partial(_count, rounded, name))
        student(images)
        assert rounded == {"conv1": 1, "conv2": 1, "out": 1}
    assert (fine(images) - wanted).abs().max() < 0.03 * wanted.abs().max()
    assert (coarse(images) - wanted).abs().max() > 0.1 * wanted.abs().max()
    assert type(teacher.conv1) is nn.Conv2d


def _count(counts, name, module, args, output):
    counts[name] += 1
