"""A network that takes another scale of images gets the same images, in its own."""

import copy

import pytest
import torch
from torch import nn

from synq.config.finetune import Finetune
from synq.config.synthesis import Synthesis
from synq.finetuning.batches import Images
from synq.finetuning.objective import perturbed_images
from synq.io.shards import ImageSet
from synq.models.scale import DEVIATION, MEAN, scale_of
from synq.models.teacher import Teacher
from synq.stages.finetune import training_images
from synq.stages.synthesize import synthesized

SHAPE = (3, 8, 8)
USUAL = {"mean": [MEAN] * 3, "std": [DEVIATION] * 3}
OF_BYTES = {"mean": [0.0] * 3, "std": [1 / 255] * 3}


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ([0.1307], [0.3081]),
        ([0.08], [0.03]),
    ],
)
def test_what_images_can_have_is_left_as_it_is(mean, std):
    scale = scale_of(mean, std)
    assert scale.usual
    images = torch.randn(2, len(mean), 4, 4)
    assert torch.equal(scale.of_network(images), images)


@pytest.mark.parametrize(
    ("mean", "std", "lowest", "highest"),
    [
        ([0.0], [1.0], 0.2, 0.7),
        ([0.0], [1 / 255], 51, 178.5),
        ([0.5], [1 / 255], -76.5, 51),
        ([0.0], [0.5], 0.4, 1.4),
        ([1.0], [0.25], -3.2, -1.2),
    ],
)
def test_numbers_of_no_images_are_a_scale_of_the_network(mean, std, lowest, highest):
    scale = scale_of(mean, std)
    assert not scale.usual
    found = scale.of_network(torch.tensor([-1.0, 1.0])[:, None, None, None]).flatten()
    assert found.tolist() == pytest.approx([lowest, highest], abs=1e-4)


def test_one_channel_of_no_images_is_enough():
    assert not scale_of([0.4, 0.0], [0.2, 1.0]).usual


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 6, 3, padding=1, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(54, 3),
        )

    def forward(self, images):
        return self.body(images)


class OfBytes(nn.Module):
    """The same for images from 0 to 255."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network((images / 255 - MEAN) / DEVIATION)


@pytest.fixture
def networks():
    torch.manual_seed(1)
    own = Network().eval().requires_grad_(False)
    whole = OfBytes(copy.deepcopy(own)).eval()
    return (
        Teacher(own, "a" * 64, "own", 3, SHAPE, **USUAL),
        Teacher(whole, "b" * 64, "bytes", 3, SHAPE, **OF_BYTES),
    )


def of_usual(images):
    return (images / 255 - MEAN) / DEVIATION


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"parameters": "fourier", "begin": "leaves", "lowpass_sigma": 0.6},
        {"parameters": "generator", "pixel_learning_rate": 0.1},
        {"parameters": "conditional"},
        {"deep_weight": 0.1, "centre_iterations": 2},
    ],
    ids=["pixels", "leaves", "generator", "conditional", "centres"],
)
def test_images_are_those_of_the_same_network_that_takes_normalised_ones(networks, changes):
    settings = Synthesis(images_per_class=4, iterations=3, **changes)
    first, second = (synthesized(network, [0, 1, 2], 0, settings) for network in networks)
    torch.testing.assert_close(of_usual(second.images), first.images, atol=2e-3, rtol=1e-3)
    torch.testing.assert_close(second.confidence, first.confidence, atol=1e-3, rtol=1e-2)
    assert second.images.std() > 20


def test_black_and_white_are_ends_of_either_network(networks):
    ends = [network.ends for network in networks]
    for own, whole, level in zip(*ends, (0.0, 1.0), strict=True):
        assert own.shape == (3, 1, 1)
        # What either gets of an image that is black, or white, everywhere.
        image = torch.full(SHAPE, level)
        of_bytes = networks[1]
        assert torch.allclose(own.expand(SHAPE), (image - MEAN) / DEVIATION)
        assert torch.allclose(
            of_bytes.scale.of_network(whole).expand(SHAPE), image * 255, atol=1e-4
        )


def test_jitter_is_of_the_same_share(networks):
    settings = Finetune(jitter=0.4, holdout=0.0)
    pixels = torch.rand(6, 3, 8, 8) * 255
    labels = torch.arange(6) % 3
    seen = []
    for network, own in zip(networks, (of_usual(pixels), pixels), strict=True):
        images = training_images(network, ImageSet(own, labels), settings, 0)
        ((batch, _),) = images.batches([torch.arange(6)], torch.Generator().manual_seed(2))
        seen.append(batch)
    torch.testing.assert_close(of_usual(seen[1]), seen[0], atol=5e-3, rtol=1e-3)


def test_dead_leaves_are_as_bright(networks):
    settings = Finetune(leaves=0.5, holdout=0.0)
    labels = torch.arange(6) % 3
    first, second = (
        training_images(network, ImageSet(torch.rand(6, 3, 8, 8), labels), settings, 0).others
        for network in networks
    )
    torch.testing.assert_close(of_usual(second.float()), first.float(), atol=5e-3, rtol=1e-3)


def test_a_perturbation_is_a_step_of_each_channel_s_unit():
    gradient = torch.tensor([3.0, -2.0]).reshape(1, 2, 1, 1)
    moved = perturbed_images(
        torch.zeros(1, 2, 1, 1), gradient, 0.01 * torch.tensor([[[1.0]], [[64.0]]])
    )
    assert moved.flatten().tolist() == pytest.approx([0.01, -0.64])


def test_the_unit_is_one_where_nobody_says_it():
    images = Images(
        ImageSet(torch.rand(4, 3, 8, 8), torch.arange(4) % 2),
        Finetune(holdout=0.0),
        torch.device("cpu"),
    )
    assert torch.equal(images.unit, torch.ones(3, 1, 1))
