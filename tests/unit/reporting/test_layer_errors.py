"""Errors by layer, of networks whose errors are known."""

import torch
from torch import nn

from synq.quantization.convert import quantize
from synq.quantization.quantizers import Recipe
from synq.reporting.layers import errors

IMAGES = torch.rand(3, 1, 6, 6, generator=torch.Generator().manual_seed(0))


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True), nn.ConvTranspose2d(4, 2, 3, groups=2)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)).eval()


def student(bits):
    made = quantize(
        network(), Recipe(bits, bits, weights="minmax", activations="static"), (1, 6, 6)
    )
    for module in made.modules():
        if hasattr(module, "set_range") and module not in weights_of(made):
            module.set_range(torch.tensor(0.0), torch.tensor(1.0))
    return made.eval()


def weights_of(model):
    return {
        module.weight_quantizer for module in model.modules() if hasattr(module, "weight_quantizer")
    }


def test_every_layer_has_its_error_by_its_name_and_more_bits_have_less():
    found = errors(network(), {"two": student(2), "eight": student(8)}, IMAGES)
    assert list(found["two"].weights) == ["0", "2", "5"]
    assert list(found["two"].activations) == ["1", "3"]
    for two, eight in zip(found["two"], found["eight"], strict=True):
        assert all(0 < eight[name] < two[name] for name in two)


def test_what_is_not_quantized_by_much_has_the_error_of_its_rounding():
    found = errors(network(), {"student": student(8)}, IMAGES)["student"]
    # A twelfth of a step squared, and a step is a 255th of the range.
    assert all(error < 1e-3 for error in found.weights.values())


def test_a_weight_that_is_doubled_is_wrong_by_its_own_square():
    own = student(8)
    with torch.no_grad():
        own[5].weight.copy_(2 * network()[5].weight)
    found = errors(network(), {"student": own}, IMAGES)["student"]
    assert abs(found.weights["5"] - 1) < 0.05


def test_the_networks_stay_as_they_are():
    whole, own = network(), student(4)
    before = [whole(IMAGES), own(IMAGES)]
    errors(whole, {"student": own}, IMAGES)
    assert all(
        torch.equal(*pair) for pair in zip(before, [whole(IMAGES), own(IMAGES)], strict=True)
    )
