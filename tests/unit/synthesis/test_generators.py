"""Images that a network makes: of latents with their own generator (Genie), of labels (GDFQ)."""

import dataclasses

import pytest
import torch
from reference_values import teacher
from torch import nn

from synq.config.plan import STAGES
from synq.config.synthesis import Synthesis
from synq.errors import ConfigError, DivergenceError
from synq.runtime.process import generator_for
from synq.synthesis.batchnorm import Statistician
from synq.synthesis.canvas import canvas_of, descend
from synq.synthesis.generators import LATENT, Generator
from synq.synthesis.losses import deviation_alignment
from synq.synthesis.swing import shifted, swinging
from synq.synthesis.synthesize import synthesize

SHAPE = (3, 32, 32)
LABELS = torch.tensor([0, 3, 3, 9])
GENIE = Synthesis(
    iterations=12,
    target="none",
    statistic="deviation",
    parameters="generator",
    swing=1,
    pixel_learning_rate=0.1,
    plateau_patience=100,
)
GDFQ = Synthesis(
    iterations=10,
    target="labels",
    target_weight=1.0,
    bn_weight=0.1,
    parameters="conditional",
    generator_learning_rate=1e-2,
)


def made(settings, labels=LABELS, seed=0):
    return synthesize(teacher(), labels, SHAPE, settings, generator_for(seed))


def alignment(images):
    reader = Statistician(teacher(), SHAPE)
    with torch.no_grad():
        _, batch = reader(images)
    return float(sum(deviation_alignment(batch, reader.running)))


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 28, 28), (3, 33, 45)])
def test_a_generator_gives_normalised_images_of_the_input_s_shape(shape):
    network = Generator(shape, generator_for(0))
    images = network(torch.randn(6, LATENT, generator=generator_for(1)))
    assert images.shape == (6, *shape)
    assert images.mean((0, 2, 3)).abs().max() < 1e-4
    assert (images.var((0, 2, 3)) - 1).abs().max() < 1e-2
    # Three layers behind the projection, and an end without an affine part.
    assert sum(isinstance(module, nn.Conv2d) for module in network.modules()) == 3
    assert not [*network.modules()][-1].affine


def test_images_of_latents_come_closer_to_the_statistics():
    begun = canvas_of(4, SHAPE, GENIE, generator_for(0), torch.device("cpu")).images()
    assert alignment(made(GENIE).images) < 0.7 * alignment(begun.detach())


def test_latents_and_generator_learn_each_at_its_own_rate():
    canvas = canvas_of(2, (1, 4, 4), GENIE, generator_for(0), torch.device("cpu"))
    (latents,), network = (learner.tensors for learner in canvas.learners)
    assert latents.shape == (2, LATENT)
    before = latents.detach().clone(), network[0].detach().clone()
    descend(lambda: canvas.images().pow(3).mean(), canvas.learners, 1)
    moved = [
        (now.detach() - was).abs().max()
        for now, was in zip((latents, network[0]), before, strict=True)
    ]
    assert [float(step) for step in moved] == pytest.approx([0.1, 0.01], rel=1e-2)
    rates = []
    for iterations in (99, 100):
        descend(lambda: canvas.images().pow(3).mean(), canvas.learners, iterations)
        rates.append(canvas.learners[1].optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([0.0095, 0.009025])


def test_every_batch_has_a_generator_of_its_own():
    settings = dataclasses.replace(GENIE, batch_size=2, iterations=2, swing=0)
    images = made(settings).images
    generator = generator_for(0)
    halves = [synthesize(teacher(), part, SHAPE, settings, generator) for part in LABELS.split(2)]
    assert torch.equal(images, torch.cat([half.images for half in halves]))


@pytest.mark.parametrize("base", [GENIE, GDFQ], ids=["genie", "gdfq"])
@pytest.mark.parametrize(
    "change", [{"generator_learning_rate": 3e-3}, {"swing": 2}, {"augment": 1.0}], ids=str
)
def test_every_switch_acts_on_the_images(base, change):
    short = dataclasses.replace(base, iterations=3)
    assert not torch.equal(made(short).images, made(dataclasses.replace(short, **change)).images)


def test_the_latents_rate_acts_and_the_seed_decides():
    short = dataclasses.replace(GENIE, iterations=3)
    one = made(short).images
    assert torch.equal(one, made(short).images)
    assert not torch.equal(one, made(short, seed=1).images)
    other = dataclasses.replace(short, pixel_learning_rate=0.5)
    assert not torch.equal(one, made(other).images)


def test_a_conditional_generator_makes_images_that_the_teacher_knows():
    labels = torch.full((8,), 7)
    result = made(dataclasses.replace(GDFQ, iterations=12, bn_weight=0.0), labels)
    assert torch.equal(result.labels, labels)
    assert result.images.shape == (8, *SHAPE)
    assert result.confidence.mean() > 0.4  # a tenth is chance
    # No image twice: every one has noise of its own.
    assert len(result.images.flatten(1).unique(dim=0)) == 8


def test_a_conditional_generator_is_trained_once_for_all_batches(monkeypatch):
    seen = []
    forward = nn.Module.__call__

    def spy(module, *args):
        if type(module).__name__ == "ConditionalGenerator":
            seen.append((module, len(args[0])))
        return forward(module, *args)

    monkeypatch.setattr(nn.Module, "__call__", spy)
    made(dataclasses.replace(GDFQ, iterations=2, batch_size=3))
    assert len({module for module, _ in seen}) == 1
    assert [count for _, count in seen] == [2, 2, 2, 2]


def test_no_global_randomness_is_used():
    before = torch.random.get_rng_state()
    for settings in (GENIE, GDFQ):
        made(dataclasses.replace(settings, iterations=1))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_map_is_shifted_by_so_many_pixels_and_reflects_its_margins():
    ramp = torch.arange(12.0).reshape(1, 1, 3, 4)
    seen = set()
    generator = generator_for(0)
    for _ in range(100):
        result = shifted(ramp, 1, generator)
        assert result.shape == ramp.shape
        seen.add(tuple(result.flatten().tolist()))
    padded = torch.nn.functional.pad(ramp, (1, 1, 1, 1), mode="reflect")
    wanted = {
        tuple(padded[..., y : y + 3, x : x + 4].flatten().tolist())
        for y in range(3)
        for x in range(3)
    }
    assert seen == wanted


def test_a_map_of_one_pixel_stays():
    one = torch.ones(2, 3, 1, 1)
    assert torch.equal(shifted(one, 1, generator_for(0)), one)


def test_convolutions_with_a_stride_alone_swing_and_the_teacher_does_not():
    images = torch.randn(2, *SHAPE, generator=generator_for(0))
    network = swinging(teacher(), 1, generator_for(1))
    assert not torch.equal(network(images), network(images))
    assert torch.equal(teacher()(images), teacher()(images))
    hooked = [name for name, m in network.named_modules() if m._forward_pre_hooks]
    strides = [
        name
        for name, m in teacher().named_modules()
        if isinstance(m, nn.Conv2d) and m.stride == (2, 2)
    ]
    assert hooked == strides
    assert len(strides) == 4  # of two units, each with a projection
    own, theirs = (dict(model.named_parameters()) for model in (network, teacher()))
    assert all(own[name] is parameter for name, parameter in theirs.items())


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"parameters": "generator", "begin": "leaves"}, "begin: noise"),
        ({"parameters": "conditional", "deep_weight": 0.1}, "deep_weight: 0"),
        ({"swing": 1, "compile": "default"}, "compile: off"),
    ],
    ids=str,
)
def test_settings_that_contradict_each_other_are_refused(change, text):
    with pytest.raises(ConfigError, match=text):
        STAGES["synthesis"](**change)


@pytest.mark.parametrize("settings", [GENIE, GDFQ], ids=["genie", "gdfq"])
def test_divergence_says_what_to_lower(settings):
    with pytest.raises(DivergenceError, match=r"synthesis\.generator_learning_rate"):
        made(dataclasses.replace(settings, generator_learning_rate=1e30, pixel_learning_rate=1e30))
