import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small_transformers import CLASSES, SHAPE, fused, small, small_swin
from torch import nn

from synq.config.calibration import Calibration
from synq.config.fields import convert
from synq.config.finetune import Finetune
from synq.config.synthesis import Synthesis
from synq.errors import ConfigError, ModelError
from synq.finetuning.batches import Images
from synq.finetuning.training import Progress, finetune
from synq.models.hooks import recorded
from synq.models.teacher import Teacher
from synq.quantization.calibration import calibrate
from synq.quantization.quantizers import Recipe
from synq.quantization.student import student_of
from synq.runtime.process import generator_for
from synq.synthesis.losses import total_variation
from synq.synthesis.patches import (
    PatchReader,
    entropy,
    patch_grid,
    patch_similarities,
    uses_patches,
)
from synq.synthesis.synthesize import synthesize

SHORT = Synthesis(iterations=12, target="labels", target_weight=1.0)
LABELS = torch.tensor([0, 1, 1, 4])
NORMAL = 0.5 * math.log(2 * math.pi * math.e)  # entropy of the standard normal distribution


def direct(values, bandwidth, points=20_001):
    """The same integral with one kernel a value, on a fine grid."""
    grid = torch.linspace(-2, 2, points, dtype=torch.float64)
    kernels = torch.exp(-((grid - values[..., None]) ** 2) / (2 * bandwidth**2))
    density = kernels.mean(-2) / (bandwidth * math.sqrt(2 * math.pi))
    return torch.special.entr(density.clamp_min(1e-300)).sum(-1) * 4 / (points - 1)


@pytest.mark.parametrize("bandwidth", [0.02, 0.05, 0.1])
def test_entropy_is_that_of_one_kernel_and_of_two(bandwidth):
    one = torch.full((1, 50), 0.3, dtype=torch.float64)
    two = torch.tensor([[-0.6, 0.7]], dtype=torch.float64).repeat(1, 25)
    ends = torch.tensor([[-1.0, 1.0]], dtype=torch.float64)
    expected = NORMAL + math.log(bandwidth)
    assert float(entropy(one, bandwidth)) == pytest.approx(expected, abs=5e-3)
    for values in (two, ends):
        expected = NORMAL + math.log(bandwidth) + math.log(2)
        assert float(entropy(values, bandwidth)) == pytest.approx(expected, abs=5e-3)


@pytest.mark.parametrize("bandwidth", [0.05, 0.2])
def test_entropy_and_its_gradient_are_those_of_the_integral(bandwidth):
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 40, generator=generator, dtype=torch.float64) * 2 - 1
    values[1] *= 0.2
    values.requires_grad_()
    ours, exact = entropy(values, bandwidth), direct(values, bandwidth)
    torch.testing.assert_close(ours, exact, rtol=0, atol=5e-3)
    gradients = [torch.autograd.grad(result.sum(), values)[0] for result in (ours, exact)]
    assert torch.cosine_similarity(*gradients).min() > 0.99


def test_gradient_of_the_entropy_is_its_slope():
    generator = torch.Generator().manual_seed(0)
    values = torch.rand(2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: entropy(x, 0.1), values, eps=1e-7)


def test_gradient_is_finite_where_patches_are_equal():
    patches = torch.ones(2, 4, 4, 8, requires_grad=True)
    entropy(patch_similarities(patches), 0.05).sum().backward()
    assert torch.isfinite(patches.grad).all()


def test_entropy_grows_with_the_diversity_of_the_patches():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 1, 1, 16, generator=generator)
    own = torch.randn(5, 4, 4, 16, generator=generator)
    results = [entropy(patch_similarities(common + t * own), 0.05) for t in (0.1, 0.3, 0.6, 1.0)]
    for less, more in pairwise(results):
        assert (more > less).all()


def test_similarities_are_those_of_each_pair():
    patches = torch.randn(2, 2, 2, 5)
    flat = patches.flatten(1, 2)
    ours = patch_similarities(patches)
    assert ours.shape == (2, 6)
    torch.testing.assert_close(ours[:, 0], torch.cosine_similarity(flat[:, 0], flat[:, 1], dim=1))
    torch.testing.assert_close(ours[:, 5], torch.cosine_similarity(flat[:, 2], flat[:, 3], dim=1))


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_tokens_before_the_patches_are_left_out(extra):
    patches = torch.randn(2, 16, 3)
    tokens = torch.cat([torch.full((2, extra, 3), torch.nan), patches], 1)
    assert torch.equal(patch_grid(tokens), patches.unflatten(1, (4, 4)))


@pytest.mark.parametrize(("side", "kept"), [(16, 16), (17, 9), (28, 14), (56, 14)])
def test_large_maps_are_thinned(side, kept):
    assert patch_grid(torch.zeros(1, side, side, 2)).shape == (1, kept, kept, 2)


def test_total_variation_is_the_mean_difference_of_neighbours():
    image = torch.tensor([[[[0.0, 1.0], [0.0, 3.0]]]])
    assert float(total_variation(image)) == (1 + 3) / 2 + (0 + 2) / 2
    assert float(total_variation(torch.ones(2, 3, 4, 4))) == 0


@pytest.mark.parametrize("make", [small, lambda: fused(True), small_swin])
def test_every_attention_layer_with_patches_is_read(make):
    model = make()
    reader = PatchReader(model, SHAPE)
    assert len(reader.layers) == (4 if make is small_swin else 2)
    assert uses_patches("auto", model)
    assert not uses_patches("batchnorm", model)


def test_an_attention_that_has_the_batch_second_is_read_alike():
    losses = []
    for batch_first in (True, False):
        torch.manual_seed(0)
        layer = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        reader = PatchReader.__new__(PatchReader)
        reader.layers = {"": layer}
        x = torch.randn(5, 9, 8, generator=torch.Generator().manual_seed(0))
        x = x if batch_first else x.transpose(0, 1)
        losses.append(reader.loss({"": layer(x, x, x)[0]}, 0.05))
    torch.testing.assert_close(*losses)


def test_a_model_with_batchnorm_has_its_statistics_taken_by_default():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    assert not uses_patches("auto", model)
    assert not uses_patches("auto", nn.Sequential(small(), nn.BatchNorm2d(4)))
    with pytest.raises(ModelError, match="no attention layer"):
        synthesize(model, LABELS, SHAPE, replace(SHORT, prior="patches"), generator_for(0))


@pytest.mark.parametrize(
    ("model", "prior"),
    [(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), "auto"), (small(), "batchnorm")],
)
def test_a_model_without_the_prior_is_refused_in_one_line(model, prior):
    with pytest.raises(ModelError, match="no BatchNorm layer with running statistics") as caught:
        synthesize(model, LABELS, SHAPE, replace(SHORT, prior=prior), generator_for(0))
    assert "\n" not in str(caught.value)


def test_deep_statistics_and_patches_exclude_each_other():
    with pytest.raises(ConfigError, match=r"^synthesis\.deep_weight is for BatchNorm"):
        convert(Synthesis, {"prior": "patches", "deep_weight": 0.02}, "synthesis")


def made(settings=SHORT, seed=0, model=None):
    return synthesize(model or small(), LABELS, SHAPE, settings, generator_for(seed))


def diversity(images):
    model = small()
    reader = PatchReader(model, SHAPE)
    with torch.no_grad(), recorded(reader.layers) as record:
        model(images)
    return -float(reader.loss(record, SHORT.patch_bandwidth))


def test_patches_become_diverse_and_images_their_label():
    noise = torch.randn(4, *SHAPE, generator=generator_for(0))
    longer = replace(SHORT, iterations=100, pixel_learning_rate=0.1)
    result = made(longer)
    assert diversity(result.images) > diversity(noise) + 0.1
    assert result.confidence.min() > 0.5
    assert made(replace(longer, target="none")).confidence.mean() < 0.5
    plain = made(replace(longer, patch_weight=0.0))
    assert diversity(result.images) > diversity(plain.images) + 0.1
    smooth = made(replace(longer, tv_weight=5.0))
    assert total_variation(smooth.images) < 0.8 * total_variation(result.images)


def test_same_seed_same_images():
    one, other, third = made(), made(), made(seed=1)
    assert torch.equal(one.images, other.images)
    assert not torch.equal(one.images, third.images)


@pytest.mark.parametrize(
    "change",
    [{"patch_weight": 2.0}, {"patch_bandwidth": 0.1}, {"tv_weight": 1.0}, {"target": "none"}],
    ids=str,
)
def test_every_setting_acts_on_the_images(change):
    assert not torch.equal(made().images, made(replace(SHORT, **change)).images)


class InMemory:
    """What fine-tuning needs of a shard set."""

    def __init__(self, images, labels):
        self.stored, self.labels = images, labels
        self.image_shape = tuple(images.shape[1:])

    def images(self, indices):
        return self.stored[indices]


@pytest.mark.parametrize("make", [small, small_swin])
def test_a_transformer_is_synthesized_from_calibrated_and_fine_tuned(make):
    model = make()
    labels = torch.arange(CLASSES).repeat(8)
    settings = replace(SHORT, iterations=20, pixel_learning_rate=0.1)
    result = synthesize(model, labels, SHAPE, settings, generator_for(0))
    training = Finetune(
        epochs=3, batch_size=8, learning_rate=1e-4, cam="off", holdout=0.25, temperature=2.0
    )
    images = Images(InMemory(result.images, labels), training, torch.device("cpu"))
    histories = []
    for _ in range(2):
        student = student_of(Teacher(model, "", "small", CLASSES, SHAPE, [], []), Recipe(4, 4))
        batches = (batch for batch, _ in images.batches([images.train]))
        calibrate(student, batches, Calibration())
        *_, last = finetune(model, student, images, training, 0, Progress())
        histories.append([entry["held_out"] for entry in last.history])
    assert histories[0] == histories[1]
    assert min(histories[0][1:]) < histories[0][0]


@pytest.mark.parametrize(
    ("change", "reason"), [({}, "cam: off"), ({"cam": "off", "feature_weight": 1.0}, "feature_w")]
)
def test_what_a_transformer_has_not_is_refused_when_it_is_asked_for(change, reason):
    model = small()
    shards = InMemory(torch.zeros(8, *SHAPE), torch.arange(4).repeat(2))
    settings = Finetune(epochs=1, holdout=0.0, **change)
    student = student_of(Teacher(model, "", "small", CLASSES, SHAPE, [], []), Recipe(4, 4))
    images = Images(shards, settings, torch.device("cpu"))
    with pytest.raises(ModelError, match=reason):
        list(finetune(model, student, images, settings, 0, Progress()))
