import dataclasses

import pytest
import torch
from torch import nn

from synq.config.calibration import Calibration
from synq.errors import DivergenceError
from synq.models.build import build, frozen
from synq.quantization.calibration import calibrate
from synq.quantization.convert import activation_quantizers, quantize
from synq.quantization.quantizers import Recipe
from synq.runtime.process import generator_for
from synq.synthesis.gdfq import GeneratorTraining
from synq.synthesis.generators import CONDITIONAL_LATENT, ConditionalGenerator

SHAPE = (3, 32, 32)
SHORT = Calibration(generator_steps=8, range_estimator="ema", range_source="generator")


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    return frozen(build("resnet20_cifar10", 10, 3, 32))


def training(teacher, settings=SHORT, seed=0):
    return GeneratorTraining(teacher, 10, SHAPE, settings, generator_for(seed, "test"))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 33, 45)])
def test_images_have_the_shape_of_the_input_and_its_normalisation(shape):
    network = ConditionalGenerator(7, shape, generator_for(0))
    labels = torch.arange(14) % 7
    images = network(torch.randn(14, CONDITIONAL_LATENT, generator=generator_for(1)), labels)
    assert images.shape == (14, *shape)
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.var((0, 2, 3)) - 1).abs().max() < 1e-2


def test_its_layers_and_their_optimizer_are_those_of_the_released_program(teacher):
    run = training(teacher)
    layers = [module for module in run.network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [layer.eps for layer in layers] == [1e-5, 0.8, 0.8, 1e-5]
    assert run.optimizer.defaults["betas"] == (0.5, 0.999)


def test_the_label_decides_the_image():
    network = ConditionalGenerator(2, SHAPE, generator_for(0)).eval()
    noise = torch.randn(1, CONDITIONAL_LATENT, generator=generator_for(1))
    first, second = (network(noise, torch.tensor([label])) for label in (0, 1))
    assert not torch.allclose(first, second)


def test_no_global_randomness_is_used_and_the_seed_decides(teacher):
    settings = dataclasses.replace(SHORT, generator_steps=3)
    before = torch.random.get_rng_state()
    first = list(training(teacher, settings).batches())
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        second = list(training(teacher, settings).batches())
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
    assert not torch.equal(first[0], training(teacher, seed=1).step()[0])


def test_training_makes_the_teacher_know_the_images(teacher):
    run = training(teacher)

    def entropy():
        images, labels = run.step()
        return float(torch.nn.functional.cross_entropy(teacher(images), labels))

    first = entropy()
    for _ in range(40):
        run.step()
    assert entropy() < 0.5 * first


def test_the_student_s_ranges_come_from_its_batches(teacher):
    student = quantize(build("resnet20_cifar10", 10, 3, 32), Recipe(4, 4)).eval()
    calibrate(student, training(teacher).batches(), SHORT)
    assert all(module.hi > module.lo for module in activation_quantizers(student).values())


def test_the_number_of_steps_is_that_of_the_settings(teacher):
    settings = dataclasses.replace(SHORT, generator_steps=3, generator_batch_size=5)
    batches = list(training(teacher, settings).batches())
    assert [len(batch) for batch in batches] == [5, 5, 5]


def test_teacher_is_left_as_it_was(teacher):
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    list(training(teacher).batches())
    assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert not any(module._forward_hooks for module in teacher.modules())


def test_divergence_says_what_to_lower(teacher):
    settings = dataclasses.replace(SHORT, generator_learning_rate=1e30)
    with pytest.raises(DivergenceError, match="generator_learning_rate"):
        list(training(teacher, settings).batches())
