import copy
import shutil
import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from reference_values import teacher

from synq.config.synthesis import Synthesis
from synq.data.lowpass import blur_transfer, lowpass
from synq.errors import ConfigError, DivergenceError, ModelError
from synq.runtime.process import generator_for
from synq.synthesis.batchnorm import Statistician
from synq.synthesis.centres import calibration_centres
from synq.synthesis.leaves import BRIGHTNESS, CONTRAST, dead_leaves
from synq.synthesis.losses import Statistics, bn_alignment, deviation_alignment, total_variation
from synq.synthesis.parameters import PARAMETERS, natural_amplitudes
from synq.synthesis.synthesize import synthesize

SHAPE = (3, 32, 32)
LABELS = torch.tensor([0, 3, 3, 9])
SHORT = Synthesis(iterations=12, centre_iterations=5)


# Black and white of a network that takes channels of different scales.
ENDS = (torch.tensor([-0.5, -1.0, -2.0]), torch.tensor([0.5, 1.0, 2.5]))
ENDS = tuple(end[:, None, None] for end in ENDS)


def made(settings=SHORT, seed=0, centres=None, labels=LABELS):
    return synthesize(teacher(), labels, SHAPE, settings, generator_for(seed), centres, ENDS)


def alignment(images):
    reader = Statistician(teacher(), SHAPE)
    with torch.no_grad():
        _, batch = reader(images)
    return float(sum(bn_alignment(batch, reader.running)))


def test_images_come_closer_to_the_statistics_and_the_labels():
    noise = torch.randn(4, *SHAPE, generator=generator_for(0))
    result = made(replace(SHORT, iterations=60))
    assert result.images.shape == noise.shape
    assert alignment(result.images) < 0.5 * alignment(noise)
    assert result.confidence.min() > 0.9


def test_a_teacher_with_its_channels_last_makes_images_as_good():
    longer = replace(SHORT, iterations=60)
    last = copy.deepcopy(teacher()).to(memory_format=torch.channels_last)
    images = synthesize(last, LABELS, SHAPE, longer, generator_for(0)).images
    assert alignment(images) == pytest.approx(alignment(made(longer).images), rel=0.1)


@pytest.mark.parametrize("changes", [{}, {"parameters": "fourier", "lowpass_sigma": 0.6}])
def test_pixels_are_clamped_to_what_an_image_holds(changes):
    settings = replace(SHORT, **changes)
    clamped, free = made(replace(settings, clamp=True)), made(settings)
    black, white = ENDS
    assert ((free.images < black) | (free.images > white)).float().mean() > 0.05
    assert torch.equal(clamped.images, free.images.clamp(black, white))
    # What is said of them is of what is written.
    assert not torch.equal(clamped.confidence, free.confidence)


def test_same_seed_same_images():
    one, other, third = made(), made(), made(seed=1)
    assert torch.equal(one.images, other.images)
    assert not torch.equal(one.images, third.images)


def test_without_a_target_labels_do_not_matter():
    plain = replace(SHORT, target="none")
    one, other = made(plain), made(plain, labels=LABELS.flip(0))
    assert torch.equal(one.images, other.images)
    confidence = made(replace(SHORT, iterations=60, target="none")).confidence
    assert confidence.mean() < 0.5


@pytest.mark.parametrize(
    "change",
    [
        {"target": "none"},
        {"target": "labels"},
        {"target_weight": 1.0},
        {"target_gamma": 0.5},
        {"bn_weight": 0.4},
        {"pixel_learning_rate": 0.1},
        {"plateau_patience": 1},
        {"augment": 1.0},
        {"iterations": 13},
        {"statistic": "deviation"},
        {"parameters": "fourier"},
        {"begin": "leaves"},
        {"lowpass_sigma": 0.6},
    ],
    ids=str,
)
def test_every_switch_acts_on_the_images(change):
    base = made() if "crop_min" not in change else made(replace(SHORT, augment=1.0))
    assert not torch.equal(base.images, made(replace(SHORT, **change)).images)


def test_crop_of_the_augmentation_acts():
    settings = replace(SHORT, augment=1.0)
    other = made(replace(settings, crop_min=0.9))
    assert not torch.equal(made(settings).images, other.images)


def test_deep_statistics_act_and_their_normalisation_decides_how_much():
    centres = calibration_centres(teacher(), 10, SHAPE, SHORT, generator_for(0, "centres"))
    assert len(centres.means) == 21
    plain = made().images
    moves = {}
    for norm in ("released", "layers"):
        settings = replace(SHORT, deep_weight=0.02, deep_norm=norm)
        moves[norm] = float((made(settings, centres=centres).images - plain).abs().mean())
    # Divided by layers times images, as released, the term is nearly inert.
    assert 0 < moves["released"] < moves["layers"]


def test_a_model_without_batchnorm_is_refused():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU())
    with pytest.raises(ModelError, match="BatchNorm"):
        Statistician(model, SHAPE)


def test_divergence_says_what_to_lower():
    with pytest.raises(DivergenceError, match=r"lower synthesis\.pixel_learning_rate"):
        made(replace(SHORT, pixel_learning_rate=1e30))


def test_teacher_is_left_as_it_was():
    before = {name: value.clone() for name, value in teacher().state_dict().items()}
    made()
    assert all(torch.equal(value, before[name]) for name, value in teacher().state_dict().items())
    assert not any(module._forward_hooks for module in teacher().modules())


def test_batches_are_of_nearly_equal_size_and_in_the_order_of_the_labels():
    labels = torch.arange(7) % 10
    result = made(replace(SHORT, batch_size=3), labels=labels)
    assert torch.equal(result.labels, labels)
    assert result.images.shape == (7, *SHAPE)
    # Three batches of 3, 2 and 2 images draw their noise one after the other.
    generator = generator_for(0)
    parts = [
        synthesize(teacher(), part, SHAPE, SHORT, generator) for part in labels.split([3, 2, 2])
    ]
    assert torch.equal(result.images, torch.cat([part.images for part in parts]))


@pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="torch.compile needs g++ and Python's headers",
)
@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() == "DEFAULT",
    reason="torch's compiler writes code for a processor with vectors, which does not build here",
)
def test_a_compiled_network_gives_the_same_statistics_and_gradient():
    images = torch.randn(4, *SHAPE, generator=generator_for(0)).requires_grad_()
    found = []
    for mode in ("off", "default"):
        reader = Statistician(teacher(), SHAPE, mode)
        logits, batch = reader(images)
        loss = sum(bn_alignment(batch, reader.running)) + logits.square().mean()
        found.append((logits, *batch.means, *batch.variances, *torch.autograd.grad(loss, images)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    assert made(replace(SHORT, compile="default")).confidence.shape == (4,)


def test_without_a_compiler_one_line_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (None, "no-such-compiler"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch.compiler.reset()
    with pytest.raises(ConfigError, match=r"no-such-compiler.*or write off") as caught:
        made(replace(SHORT, compile="default"))
    assert "\n" not in str(caught.value)
    torch.compiler.reset()


def test_fourier_images_come_closer_and_are_smoother_than_pixels():
    settings = replace(SHORT, iterations=60)
    natural = replace(settings, parameters="fourier", pixel_learning_rate=0.05)
    pixels, fourier = made(settings).images, made(natural).images
    noise = torch.randn(4, *SHAPE, generator=generator_for(0))
    assert alignment(fourier) < 0.5 * alignment(noise)

    def roughness(images):
        return float(total_variation(images) / images.std())

    assert roughness(fourier) < 0.7 * roughness(pixels)


@pytest.mark.parametrize("size", [(16, 16), (15, 10)])
def test_fourier_parameters_begin_as_noise_of_natural_amplitudes(size):
    noise = torch.randn(64, 2, *size, generator=generator_for(0))
    coefficients = PARAMETERS["fourier"].of_noise(noise)
    assert coefficients.shape == (64, 2, size[0], size[1] // 2 + 1, 2)
    images = PARAMETERS["fourier"].images(coefficients, size)
    assert images.shape == noise.shape
    assert float(images.square().mean()) == pytest.approx(1.0, rel=0.2)
    amplitudes = natural_amplitudes(*size)
    assert float(amplitudes[0, 1] / amplitudes[0, 2]) == pytest.approx(2.0)
    # The constant is as large as the lowest frequency.
    assert float(amplitudes[0, 0]) == pytest.approx(float(amplitudes.max()))


@pytest.mark.parametrize("kind", PARAMETERS)
@pytest.mark.parametrize("size", [(16, 16), (15, 10)])
def test_parameters_of_images_give_these_images(kind, size):
    images = torch.randn(3, 2, *size, generator=generator_for(0))
    parameters = PARAMETERS[kind].of_images(images)
    torch.testing.assert_close(PARAMETERS[kind].images(parameters, size), images)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 24, 20)])
def test_dead_leaves_have_edges_between_even_regions(shape):
    images = dead_leaves(64, shape, generator_for(0))
    assert images.shape == (64, *shape)
    assert torch.equal(images, dead_leaves(64, shape, generator_for(0)))
    deviation, mean = torch.std_mean(images, (1, 2, 3))
    assert deviation.min() >= CONTRAST[0] - 1e-3
    assert deviation.max() <= CONTRAST[1] + 1e-3
    assert float(mean.std()) == pytest.approx(BRIGHTNESS, rel=0.3)

    def tails(of):
        """Kurtosis of the differences of neighbours: 3 for every Gaussian noise."""
        steps = of[..., 1:] - of[..., :-1]
        return float((steps / steps.std()).pow(4).mean())

    noise = torch.randn(64, *shape, generator=generator_for(0))
    parameters = PARAMETERS["fourier"]
    pink = parameters.images(parameters.of_noise(noise), shape[1:])
    assert tails(images) > 2 * tails(pink)


def test_images_from_leaves_come_closer_to_the_statistics():
    images = made(replace(SHORT, iterations=60, begin="leaves", target="none")).images
    assert alignment(images) < 0.5 * alignment(dead_leaves(4, SHAPE, generator_for(0)))


def test_images_made_through_a_filter_need_none_and_match_better_than_those_filtered_later():
    settings = replace(SHORT, iterations=60, target="none")
    transfer = blur_transfer(*SHAPE[1:], 0.6)
    later = lowpass(made(settings).images, transfer)
    through = made(replace(settings, lowpass_sigma=0.6)).images
    assert alignment(through) < 0.7 * alignment(later)

    def corner(images):
        """The share of the power at the highest frequency of both axes."""
        power = torch.fft.rfft2(images).abs().square().mean((0, 1))
        return float(power[16, 16] / power.mean())

    assert corner(through) < 2 * float(transfer[16, 16]) < 0.2


def test_the_alignment_of_deviations_is_that_of_their_roots():
    own = Statistics([torch.tensor([1.0, 2.0])], [torch.tensor([4.0, 9.0])])
    wanted = Statistics([torch.tensor([1.0, 1.0])], [torch.tensor([1.0, 4.0])])
    means, deviations = deviation_alignment(own, wanted)
    assert float(means) == pytest.approx(0.5)
    assert float(deviations) == pytest.approx(1.0, rel=1e-4)
