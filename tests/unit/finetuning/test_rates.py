"""How fast each tensor is trained: by its bits, and by its size."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from synq.config.finetune import Finetune
from synq.finetuning.rates import optimizer_for, sizes
from synq.quantization.convert import quantize
from synq.quantization.quantizers import Recipe

ADAM = Finetune(optimizer="adam", learning_rate=1e-2)
SGD = Finetune(optimizer="sgd", learning_rate=1e-2)


@pytest.mark.parametrize(("kind", "power"), [("grid", 1), ("squared", 2)])
def test_rates_follow_the_bits_of_each_layer(kind, power):
    """Steps of 2 bits over those of the layer; of what is no weight, by the mean of the bits."""
    settings = replace(ADAM, rates=kind, learning_rate=1.0, scale_learning_rate=10.0)
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 1, 3), nn.ReLU())
    recipe = Recipe(2, 4, "learned", "learned", keep={"2": 4})
    network = quantize(network, recipe)
    names = {parameter: name for name, parameter in network.named_parameters()}
    rates = {
        names[parameter]: group["lr"]
        for group in optimizer_for(network, settings, network).param_groups
        for parameter in group["params"]
    }
    other = (3 / (2**3 - 1)) ** power  # 18 numbers of 2 bits and 18 of 4
    assert rates == pytest.approx(
        {
            "0.weight": 1.0,
            "0.weight_quantizer.log_scale": 10.0,
            "2.weight": (3 / 15) ** power,
            "2.weight_quantizer.log_scale": 10 * (3 / 15) ** power,
            "0.bias": other,
            "2.bias": other,
            "1.quantizer.log_scale": 10 * other,
            "3.quantizer.log_scale": 10 * other,
        }
    )


def filled(module, **values):
    for name, value in values.items():
        getattr(module, name).data.copy_(torch.tensor(value))
    return module


def test_the_size_of_a_channel_is_its_root_mean_square():
    network = nn.Sequential(
        filled(nn.Linear(2, 2), weight=[[3.0, -3.0], [0.0, 0.0]], bias=[0.0, 4.0]),
        filled(nn.LayerNorm(2), weight=[0.5, -0.5], bias=[0.0, 0.0]),
        filled(nn.Linear(4, 2), weight=[[2.0, 2.0, -2.0, 2.0], [1.0] * 4], bias=[0.0, 0.0]),
        filled(nn.Linear(4, 2), weight=[[2.0] * 4, [1.0] * 4], bias=[0.4, -0.2]),
    )
    found = {name: size.squeeze().tolist() for name, size in sizes(network).items()}
    assert found.pop("0.bias")[1] == 0
    assert {name: pytest.approx(size) for name, size in found.items()} == {
        "0.weight": [3.0, 0.0],
        "1.weight": 0.5,
        "1.bias": 0.5,
        "2.weight": [2.0, 1.0],
        "2.bias": [4.0, 2.0],  # of inputs of deviation 1
        "3.weight": [2.0, 1.0],
        "3.bias": [0.4, 0.2],  # a tenth of that in both
    }
    assert sizes(network)["2.weight"].shape == (2, 1)
    assert sizes(nn.Conv2d(3, 5, 2))["weight"].shape == (5, 1, 1, 1)


def moved(settings, factor, gradients):
    """A weight of this size after steps, as a share of what it is scaled by, quantized or not."""
    network = nn.Sequential(nn.Linear(3, 2, bias=False), nn.ReLU())
    torch.manual_seed(0)
    network[0].weight.data.normal_().mul_(factor)
    student = quantize(network, Recipe(4, 4, "learned", "learned"))
    optimizer = optimizer_for(student, settings, network)
    weight = student[0].weight
    before = weight.detach().clone()
    for gradient in gradients:
        weight.grad = gradient / factor
        optimizer.step()
    return (weight.detach() - before) / factor


@pytest.mark.parametrize(
    "factor",
    [2.0**-12, 2.0**-5, 2.0**9, torch.tensor([[2.0**-9], [2.0**3]])],
    ids=["smallest", "small", "large", "by channel"],
)
@pytest.mark.parametrize("settings", [ADAM, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_a_step_is_the_same_share_of_a_weight_however_it_is_scaled(settings, factor, decay):
    # In front of a BatchNorm layer that scale means nothing, and the gradient has its inverse.
    settings = replace(settings, weight_decay=decay, rate_unit="size")
    gradients = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(1))
    wanted = moved(settings, 1.0, gradients)
    torch.testing.assert_close(moved(settings, factor, gradients), wanted, rtol=1e-5, atol=1e-7)
    other = moved(replace(settings, rate_unit="one"), factor, gradients)
    assert not torch.allclose(other, wanted, rtol=0.5)


def test_what_is_nothing_is_not_trained():
    network = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU())
    network[1].weight.data.zero_()
    student = quantize(network, Recipe(4, 4, "learned", "learned"))
    optimizer = optimizer_for(student, replace(ADAM, rate_unit="size"), network)
    for parameter in student.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert not student[1].weight.any()
    assert not student[1].bias.any()
    assert all(parameter.isfinite().all() for parameter in student.parameters())
