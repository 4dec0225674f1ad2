"""Quantizers own their grids: what each kind rounds to, learns, and keeps."""

import pytest
import torch
from torch import nn

from synq.config.calibration import Calibration
from synq.errors import ConfigError
from synq.quantization.affine import (
    channel_ranges,
    fake_quantize,
    grid_of_range,
    learned_quantize,
)
from synq.quantization.calibration import (
    BatchNormCorrection,
    best_clips,
    calibrate,
    set_weight_ranges,
)
from synq.quantization.convert import activation_quantizers, quantize, weight_quantizers
from synq.quantization.quantizers import LearnedStep, MinMax, Recipe, StaticRange
from synq.runtime.process import generator_for

LEARNED = {"weights": "learned", "activations": "learned"}


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    ).eval()


def images(count=16):
    return torch.randn(count, 3, 12, 12, generator=generator_for(0))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_learned_step_begins_at_the_grid_of_its_range(bits):
    values = torch.randn(500, generator=generator_for(0)).relu()
    quantizer = LearnedStep(bits)
    quantizer.set_range(torch.tensor(0.0), torch.tensor(2.0))
    grid = grid_of_range(torch.tensor(0.0), torch.tensor(2.0), bits)
    torch.testing.assert_close(quantizer(values), fake_quantize(values, grid))
    torch.testing.assert_close(quantizer.grid(values).scale, grid.scale)
    assert torch.equal(quantizer.grid(values).zero_point, grid.zero_point)
    assert float(quantizer(torch.zeros(1)).detach()) == 0.0


def test_the_gradient_of_a_learned_step_is_lsqs():
    values = torch.tensor([-1.0, 0.1, 0.26, 0.9, 5.0], requires_grad=True)
    log_scale = torch.tensor(0.5).log().requires_grad_()
    zero_point = torch.tensor(-2.0)  # codes -2 to 1: values 0, 0.5, 1 and 1.5
    rounded = learned_quantize(values, log_scale, zero_point, 2)
    assert rounded.tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.5])
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (rounded * weights).sum().backward()
    # Clipped values have none.
    assert values.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0]
    # round(v / s) - v / s inside, and the code, from the zero point, outside.
    slopes = torch.tensor([0.0, 0 - 0.2, 1 - 0.52, 2 - 1.8, 3.0])
    wanted = 0.5 * float((slopes * weights).sum())
    assert float(log_scale.grad) == pytest.approx(wanted, rel=1e-5)


def test_a_scaled_gradient_is_larger_where_it_leads_to_the_code():
    values = torch.tensor([-1.0, 0.1, 0.4, 0.9, 5.0], requires_grad=True)
    log_scale = torch.tensor(0.5).log().requires_grad_()
    rounded = learned_quantize(values, log_scale, torch.tensor(-2.0), 2, 0.5)
    assert rounded.tolist() == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.5])
    # A descent moves the second and third down, the fourth up.
    (rounded * torch.tensor([1.0, 2.0, 3.0, -4.0, 5.0])).sum().backward()
    # They are 0.2 steps above their code, 0.2 below and 0.2 below it.
    wanted = [0.0, 2 * 1.1, 3 * 0.9, -4 * 1.1, 0.0]
    assert values.grad.tolist() == pytest.approx(wanted, rel=1e-5)


def test_a_learned_grid_has_a_scale_per_output_channel():
    model = quantize(network(), Recipe(3, 3, **LEARNED))
    assert model[0].weight_quantizer.log_scale.shape == (8, 1, 1, 1)
    assert model[8].weight_quantizer.log_scale.shape == (5, 1)
    assert model[2].quantizer.log_scale.shape == ()
    calibrate(model, [images()], Calibration(**LEARNED))
    model.requires_grad_(True)(images()).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_training_lowers_the_error_that_the_steps_begin_with():
    weight = torch.randn(4, 200, generator=generator_for(0))
    quantizer = LearnedStep(2, (4, 1))
    quantizer.set_range(weight.amin(1, keepdim=True), weight.amax(1, keepdim=True))
    optimizer = torch.optim.Adam(quantizer.parameters(), 0.02)
    errors = []
    for _ in range(100):
        error = (quantizer(weight) - weight).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()))
    assert errors[-1] < 0.6 * errors[0]


def test_searched_clips_of_weights_are_better_than_extremes():
    weight = torch.randn(6, 300, generator=generator_for(0))
    lo, hi = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    clips = best_clips(weight, MinMax(2, (6, 1)), lo, hi, 2.0)
    assert clips.shape == (6, 1)
    assert float(clips.max()) < 0.9
    errors = [
        (fake_quantize(weight, grid_of_range(lo * c, hi * c, 2)) - weight).square().mean()
        for c in (clips, torch.ones_like(clips))
    ]
    assert float(errors[0]) < 0.7 * float(errors[1])


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_clips_are_searched_on_the_grid_that_is_used(bits):
    """A learned grid holds 0, which the range of a channel of one sign does not."""
    weight = 0.2 + torch.rand(50, 1, 3, 3, generator=generator_for(0))
    lo, hi = channel_ranges(weight)
    quantizer = LearnedStep(bits, (50, 1, 1, 1))

    def errors(clips):
        quantizer.set_range(lo * clips, hi * clips)
        with torch.no_grad():
            return (quantizer(weight) - weight).square().flatten(1).mean(1)

    found = errors(best_clips(weight, quantizer, lo, hi, 2.0))
    assert (found <= errors(torch.ones_like(lo)) * (1 + 1e-5)).all()


@pytest.mark.parametrize("estimator", ["minmax", "mse"])
def test_awkward_channels_have_a_learned_grid(estimator):
    """All positive, dead, of one value: every scale is positive, and zero stays zero."""
    model = quantize(network(), Recipe(3, 3, **LEARNED))
    weight = model[3].weight.data
    weight[0], weight[1] = weight[0].abs() + 3, 0.0
    weight[2], weight[3] = 0.75, -0.25
    set_weight_ranges(model, Calibration(weight_estimator=estimator))
    rounded = model[3].quantized_weight()
    assert torch.isfinite(rounded).all()
    assert not rounded[1].any()
    assert float((rounded[2:4] - weight[2:4]).abs().max()) < 0.1
    assert model[3].weight_quantizer.grid(weight).scale.min() > 0


def test_a_recipe_gives_ends_and_kept_layers_their_own_bits():
    recipe = Recipe(2, 2, ends=8, keep={"3": 5})
    found = weight_quantizers(quantize(network(), recipe))
    bits = {name: layer.weight_quantizer.bits for name, layer in found.items()}
    assert bits == {"0": 8, "3": 5, "8": 8}
    assert all(isinstance(layer.weight_quantizer, MinMax) for layer in found.values())
    kinds = activation_quantizers(quantize(network(), recipe)).values()
    assert all(isinstance(kind, StaticRange) for kind in kinds)


def test_a_recipe_is_rebuilt_from_its_record():
    recipe = Recipe(4, 3, weights="learned", ends=8, keep={"a.*": 2})
    assert Recipe(**recipe.record()) == recipe


def test_an_unknown_quantizer_is_refused_with_the_nearest_one():
    with pytest.raises(ConfigError, match=r"weights is 'minmx'; did you mean minmax\?"):
        quantize(network(), Recipe(4, 4, weights="minmx"))


def test_settings_offer_the_quantizers_that_there_are():
    from synq.config.fields import settings_of
    from synq.quantization.quantizers import ACTIVATIONS, WEIGHTS

    fields = settings_of(Calibration)
    # What is open rounds nothing, and is in no student.
    assert set(fields["weights"][0].metadata["choices"]) == set(WEIGHTS) - {"open"}
    assert set(fields["activations"][0].metadata["choices"]) == set(ACTIVATIONS) - {"open"}


def moments(model, names, batch):
    found = {}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: found.update({name: args[0].detach()})
        )
        for name in names
    ]
    with torch.no_grad():
        model(batch)
    for hook in hooks:
        hook.remove()
    return {name: (v.mean((0, 2, 3)), v.var((0, 2, 3), correction=0)) for name, v in found.items()}


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_of_a_learned_step_are_those_that_its_forward_rounds_to(bits):
    # Halfway between two codes a product with the inverse of the scale is rounded otherwise.
    quantizer = LearnedStep(bits, (500, 1))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        quantizer.log_scale.copy_(torch.randn(500, 1, generator=generator))
    values = (torch.arange(-(2.0**bits), 2.0**bits) + 0.5) * quantizer.log_scale.detach().exp()
    grid = quantizer.grid(values)
    assert torch.equal(grid.values(grid.codes(values)), quantizer.rounded(values).detach())
    lo, hi = grid.ends
    assert torch.equal(quantizer.rounded(values).amin(1, keepdim=True), lo)
    assert torch.equal(quantizer.rounded(values).amax(1, keepdim=True), hi)


def test_corrected_batchnorm_gives_each_layer_the_statistics_it_expects():
    teacher, batch = network(), images(64)

    def measure(layer, args):
        layer.running_var, layer.running_mean = torch.var_mean(args[0], (0, 2, 3), correction=0)

    # Running statistics that are those of the images, to the last digit.
    norms = [layer for layer in teacher.modules() if isinstance(layer, nn.BatchNorm2d)]
    hooks = [layer.register_forward_pre_hook(measure) for layer in norms]
    with torch.no_grad():
        teacher(batch)
    for hook in hooks:
        hook.remove()
    distances = {}
    for kind in ("kept", "corrected"):
        student = quantize(network(), Recipe(2, 8))
        student.load_state_dict(teacher.state_dict(), strict=False)
        calibrate(student, [batch], Calibration(batchnorm=kind), teacher)
        seen = moments(student, ["1", "4"], batch)
        distances[kind] = max(
            float((student.get_submodule(name).running_mean - mean).abs().max())
            for name, (mean, _) in seen.items()
        )
    assert distances["corrected"] < 0.01 * distances["kept"]


def test_equal_networks_need_no_correction():
    teacher, student = network(), network()
    correction = BatchNormCorrection(teacher, student)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with correction.following(), torch.no_grad():
        for batch in images(16).split(8):
            teacher(batch)
            student(batch)
            correction.batches += 1
    for name, value in student.state_dict().items():
        torch.testing.assert_close(value, before[name])
    assert not any(module._forward_pre_hooks for module in student.modules())
