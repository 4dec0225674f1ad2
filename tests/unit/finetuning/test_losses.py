import pytest
import torch
from reference_values import Reference, teacher

from synq.finetuning import losses
from synq.models.judgement import difficulty as difficulty_of
from synq.synthesis.batchnorm import Statistician
from synq.synthesis.losses import Statistics, bn_alignment, deep_alignment, target_loss

REFERENCE = Reference("synth")
SHAPE = (3, 32, 32)


def statistics(images):
    """Statistics of a batch and the logits of the reference network."""
    reader = Statistician(teacher(), SHAPE)
    logits, batch = reader(images)
    return reader, batch, logits


@pytest.mark.parametrize(("beta", "gamma"), [(0.1, 0.5), (1.0, 0.0), (10.0, 2.0)])
def test_synthesis_step_is_that_of_the_reference(beta, gamma):
    images = REFERENCE["images"].requires_grad_()
    reader, batch, logits = statistics(images)
    mean, variance = bn_alignment(batch, reader.running)
    target = beta * target_loss(logits, REFERENCE["labels"], gamma)
    (gradient,) = torch.autograd.grad(mean + variance + target, images)
    key = f"beta{beta}_gamma{gamma}"
    assert float(mean.detach()) == pytest.approx(REFERENCE.number("bn_mean_loss"), rel=1e-5)
    assert float(variance.detach()) == pytest.approx(REFERENCE.number("bn_var_loss"), rel=1e-5)
    assert float(target.detach()) == pytest.approx(REFERENCE.number(f"target_loss_{key}"), rel=1e-5)
    norms = gradient.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, REFERENCE[f"image_grad_l2_{key}"], rtol=1e-4, atol=1e-7)


def test_deep_layer_statistics_are_those_of_the_reference():
    _, centres, _ = statistics(REFERENCE["lbns_images"])
    centres = Statistics(*([tensor.detach() for tensor in part] for part in centres))
    images = REFERENCE["images"].requires_grad_()
    reader, batch, logits = statistics(images)
    assert reader.count == int(REFERENCE.number("num_bn_layers"))
    assert reader.first_deep == int(REFERENCE.number("lbns_first_layer"))
    divisor = reader.count * len(images)
    deep = deep_alignment(batch, centres, reader.first_deep, divisor)
    assert float(deep.detach()) == pytest.approx(REFERENCE.number("lbns_loss"), rel=1e-4)
    mean, variance = bn_alignment(batch, reader.running)
    target = 0.1 * target_loss(logits, REFERENCE["labels"], 0.5)
    total = 0.4 * (mean + variance) + target + 0.02 * deep
    assert float(total.detach()) == pytest.approx(
        REFERENCE.number("total_lbns_beta0.1_gamma0.5"), rel=1e-5
    )
    (gradient,) = torch.autograd.grad(total, images)
    norms = gradient.flatten(1).norm(dim=1)
    torch.testing.assert_close(norms, REFERENCE["image_grad_l2_lbns"], rtol=1e-4, atol=1e-7)


def test_objective_of_calibration_centres_is_that_of_the_reference():
    reader, batch, logits = statistics(REFERENCE["images"])
    weights = [0.2 if layer < reader.first_deep else 1.1 for layer in range(reader.count)]
    aligned = sum(bn_alignment(batch, reader.running, weights))
    total = aligned + 5 * target_loss(logits, REFERENCE["labels"], 0)
    assert float(total.detach()) == pytest.approx(REFERENCE.number("centre_total_beta5"), rel=1e-5)


def test_confident_teacher_gives_finite_gradients_below_gamma_one():
    logits = torch.tensor([[60.0, -60.0], [0.0, 0.0]], requires_grad=True)
    target_loss(logits, torch.tensor([0, 1]), 0.5).backward()
    assert torch.isfinite(logits.grad).all()


def test_hard_samples_weigh_more_with_gamma():
    logits = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    labels = torch.tensor([0, 0])
    plain = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    difficulty = difficulty_of(logits, labels)
    expected = (difficulty.square() * plain).mean()
    torch.testing.assert_close(target_loss(logits, labels, 2.0), expected)
    assert difficulty[0] < 0.05 < 0.95 < difficulty[1]


def test_distillation_is_zero_for_equal_logits_and_scales_with_the_temperature():
    logits = torch.randn(4, 10, dtype=torch.float64)
    other = logits + 0.01 * torch.randn(4, 10, dtype=torch.float64)
    assert float(losses.distillation(logits, logits, 20)) == pytest.approx(0, abs=1e-9)
    # Hinton et al.: T^2 makes the loss independent of T for small logits.
    small = [float(losses.distillation(other / 10, logits / 10, t)) for t in (20.0, 40.0)]
    assert small[0] == pytest.approx(small[1], rel=0.05)


def test_masked_cross_entropy_divides_by_the_whole_batch():
    logits, labels = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    mask = torch.tensor([True, False, False, False])
    expected = torch.nn.functional.cross_entropy(logits[:1], labels[:1]) / 4
    torch.testing.assert_close(losses.masked_cross_entropy(logits, labels, mask), expected)


def test_feature_alignment_ignores_the_scale_of_features():
    features = [torch.rand(2, 5, 4, 4)]
    scaled = [3 * features[0]]
    assert float(losses.feature_alignment(features, scaled)) == pytest.approx(0, abs=1e-12)
    assert float(losses.feature_alignment(features, [torch.rand(2, 5, 4, 4)])) > 1e-4


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_energies_and_statistics_have_torchs_gradient_in_the_format_of_the_features(layout):
    x = torch.randn(4, 3, 5, 6, dtype=torch.float64).to(memory_format=layout)
    weights = torch.randn(4, 3, dtype=torch.float64)

    def gradients(energy):
        features = x.clone().requires_grad_()
        (energy(features) * weights).sum().backward()
        return features.grad

    ours = gradients(losses.channel_energy)
    plain = gradients(lambda f: torch.nn.functional.normalize(f.square().mean((2, 3)), dim=1))
    torch.testing.assert_close(ours, plain)
    assert ours.is_contiguous(memory_format=layout)


def test_relative_errors_are_over_the_power_of_each_layer():
    wanted = [torch.randn(2, 4, 5, 5), 100 * torch.randn(2, 8, 3, 3)]
    own = [0.9 * block for block in wanted]
    assert float(losses.relative_errors(own, wanted)) == pytest.approx(2 * 0.01, rel=1e-4)
    assert float(losses.relative_errors(wanted, wanted)) == 0.0
    silent = [torch.zeros(2, 4, 5, 5)]
    assert torch.isfinite(losses.relative_errors(silent, silent))


def test_relative_errors_of_parts_are_those_of_the_whole_over_its_powers():
    wanted = torch.randn(6, 4, 5, 5) * torch.arange(1.0, 7.0)[:, None, None, None]
    own = wanted + torch.randn(6, 4, 5, 5)
    power = wanted.square().mean()[None]
    parts = [
        losses.relative_errors([own[rows]], [wanted[rows]], lambda _: power)
        for rows in torch.arange(6).split(3)
    ]
    whole = losses.relative_errors([own], [wanted])
    torch.testing.assert_close(sum(parts) / 2, whole)
    apart = [losses.relative_errors([own[r]], [wanted[r]]) for r in torch.arange(6).split(3)]
    assert abs(float(sum(apart) / 2 - whole)) > 0.05 * float(whole)
