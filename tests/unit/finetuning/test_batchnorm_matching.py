"""BatchNorm layers of the student that give the moments of the teacher's on every batch."""

import copy
from dataclasses import replace

import pytest
import torch
from reference_values import Reference, student, teacher
from torch import nn
from torch.nn import functional

from synq.config.finetune import Finetune
from synq.finetuning.batches import Images
from synq.finetuning.batchnorm import corrected_anew, matched
from synq.finetuning.training import Progress, finetune
from synq.models.hooks import recorded
from synq.quantization.calibration import BatchNormCorrection, batchnorm_layers, moments

REFERENCE = Reference("step")
IMAGES = REFERENCE["images"]
SETTINGS = Finetune(
    epochs=1, batch_size=8, learning_rate=1e-4, holdout=0.5, cam="off", bn_statistics="matched"
)


class Shards:
    """The reference batch in the place of a shard set."""

    labels = REFERENCE["labels"].repeat(2)
    image_shape = (3, 32, 32)

    def images(self, indices):
        return IMAGES.repeat(2, 1, 1, 1)[indices]


def images(settings=SETTINGS):
    return Images(Shards(), settings, torch.device("cpu"))


def outputs(model, batch, names):
    # What follows may work in place.
    with recorded({name: model.get_submodule(name) for name in names}, apart=True) as record:
        model(batch)
    return record


def test_outputs_have_the_moments_of_the_teachers():
    own, network = teacher(), student(REFERENCE, 3)
    names = list(batchnorm_layers(network))
    before = copy.deepcopy(network.state_dict())
    with matched(own, network):
        wanted = outputs(own, IMAGES, names)
        given = outputs(network, IMAGES, names)
    assert len(names) > 10
    for name in names:
        mean, variance = moments(wanted[name].detach())
        found = moments(given[name].detach())
        spread = variance.sqrt().amax()
        assert torch.allclose(found.mean, mean, atol=1e-3 * float(spread))
        assert torch.allclose(found.variance.sqrt(), variance.sqrt(), atol=1e-2 * float(spread))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


def test_without_a_gradient_and_behind_the_block_a_layer_is_what_it_was():
    own, network = teacher(), student(REFERENCE, 3)
    with torch.no_grad():
        plain = network(IMAGES)
        with matched(own, network):
            own(IMAGES)
            assert torch.equal(network(IMAGES), plain)
    with matched(own, network):
        own(IMAGES)
        assert not torch.allclose(network(IMAGES), plain)
    assert torch.equal(network(IMAGES).detach(), plain)
    assert not any("forward" in vars(layer) for layer in network.modules())


@pytest.mark.parametrize("affine", [True, False])
def test_the_output_and_its_gradient_are_those_of_the_equation(affine):
    torch.manual_seed(0)
    layers = [nn.BatchNorm2d(3, affine=affine).eval() for _ in range(2)]
    for layer in layers:
        layer.running_mean.normal_()
        layer.running_var.uniform_(0.5, 2)
        if affine:
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    of_teacher, of_student = torch.randn(4, 3, 5, 5), 2 * torch.randn(4, 3, 5, 5) + 1
    own, network = nn.Sequential(layers[0]), nn.Sequential(layers[1])
    ones = [of_student.clone().requires_grad_() for _ in range(2)]
    with matched(own, network):
        own(of_teacher)
        found = network(ones[0])

    def column(tensor):
        return tensor.view(1, -1, 1, 1)

    variance, mean = torch.var_mean(of_teacher, (0, 2, 3), correction=0)
    normalised = functional.batch_norm(ones[1], None, None, training=True)
    inner = column(variance.sqrt()) * normalised + column(mean - layers[0].running_mean)
    wanted = inner / column((layers[0].running_var + layers[0].eps).sqrt())
    if affine:
        wanted = column(layers[1].weight) * wanted + column(layers[1].bias)
    assert torch.allclose(found, wanted, atol=1e-5)
    weights = torch.randn_like(found)
    for one, result in zip(ones, (found, wanted), strict=True):
        (one.grad,) = torch.autograd.grad((weights * result).sum(), one)
    assert torch.allclose(ones[0].grad, ones[1].grad, atol=1e-5)


def test_a_single_value_a_channel_has_no_moments():
    own, network = (nn.Sequential(nn.BatchNorm2d(3)).eval() for _ in range(2))
    value = torch.randn(1, 3, 1, 1)
    with matched(own, network):
        own(value)
        assert torch.equal(network(value), own(value))


def test_the_statistics_are_corrected_by_the_difference_and_again_to_the_same():
    own, network = teacher(), student(REFERENCE, 3)
    layers = batchnorm_layers(network)
    corrected_anew(own, network, images())
    found = {name: layer.running_var.clone() for name, layer in layers.items()}
    twin = student(REFERENCE, 3)
    correction = BatchNormCorrection(own, twin)
    with torch.no_grad(), correction.following():
        ((batch, _),) = images().batches([images().train])
        own(batch)
        twin(batch)
    for name, layer in batchnorm_layers(twin).items():
        assert torch.allclose(found[name], layer.running_var)
    corrected_anew(own, network, images())
    assert all(torch.allclose(found[name], layer.running_var) for name, layer in layers.items())


def test_a_training_leaves_corrected_statistics():
    """And without it, the statistics as they were."""
    own = teacher()
    for kind in ("matched", "kept"):
        network = student(REFERENCE, 3)
        before = copy.deepcopy(network.state_dict())
        settings = replace(SETTINGS, bn_statistics=kind)
        for _ in finetune(own, network, images(settings), settings, 0, Progress()):
            pass
        twin = copy.deepcopy(network)
        corrected_anew(own, twin, images(settings))
        name = next(reversed(batchnorm_layers(network)))
        after = network.get_submodule(name).running_mean
        assert torch.equal(after, before[f"{name}.running_mean"]) == (kind == "kept")
        if kind == "matched":
            assert torch.allclose(after, twin.get_submodule(name).running_mean, atol=1e-6)
