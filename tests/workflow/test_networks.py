"""Networks that people have, with random weights after a few forwards of training."""

from functools import partial

import pytest
import torch
from torch import nn
from vision import torchvision_models

import synq

# Name -> side of its images in px, and the least share of the multiply-adds that reads codes.
TORCHVISION = {
    "resnet18": (32, 90),
    "googlenet": (32, 85),
    "densenet121": (32, 85),
    "mobilenet_v3_small": (32, 20),
    "inception_v3": (80, 85),
}
TIMM = {"resnet10t": (32, 85), "mobilenetv3_small_050": (32, 20), "regnetx_002": (32, 85)}
CLASSES = 5


def built(zoo, name, side):
    """The network, whose BatchNorm layers have seen two batches."""
    torch.manual_seed(0)
    if zoo == "timm":
        network = pytest.importorskip("timm").create_model(name, num_classes=CLASSES)
    else:
        # To draw the first weights of these two as their authors do takes a minute.
        more = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        models = torchvision_models()
        network = models.get_model(name, weights=None, num_classes=CLASSES, **more)
    # Not the whole network: the auxiliary heads of these two want large images.
    for module in network.eval().modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(4, 3, side, side))
    return network


NETWORKS = [
    (zoo, name, *facts)
    for zoo, networks in (("torchvision", TORCHVISION), ("timm", TIMM))
    for name, facts in networks.items()
]


@pytest.mark.parametrize(("zoo", "name", "side", "share"), NETWORKS)
def test_it_fits_and_is_quantized_where_it_is_told(zoo, name, side, share):
    found = synq.inspect(built(zoo, name, side), image_shape=(3, side, side), method="synq-plus")
    assert found.fits, found.problems
    layers = [part for part in found.found["parts"] if part["role"] == "layer" and part["calls"]]
    assert not [part["name"] for part in layers if part["reason"]]
    assert 100 * found.found["quantized_inputs"]["multiply_adds_share"] > share
    assert found.network.classes == CLASSES


@pytest.mark.parametrize(
    ("zoo", "name"), [("torchvision", "convnext_tiny"), ("timm", "convnext_atto")]
)
def test_a_network_without_batchnorm_is_refused_with_what_works(zoo, name):
    network = built(zoo, name, 32)
    (problem,) = synq.inspect(network, image_shape=(3, 32, 32), method="synq-plus").problems
    assert "no BatchNorm layer" in problem
    assert "relative: NAME" in problem
    assert "method few-shot" in problem
    assert synq.inspect(network, image_shape=(3, 32, 32), method="few-shot").fits


def without_batchnorm(name):
    """A small network of this kind with random weights."""
    torch.manual_seed(0)
    models = torchvision_models()
    if name == "squeezenet":
        return models.squeezenet1_1(num_classes=CLASSES).eval()
    if name == "groupnorm":
        norm = partial(nn.GroupNorm, 4)
        blocks = models.resnet.BasicBlock, [1, 1, 1, 1]
        return models.ResNet(*blocks, num_classes=CLASSES, norm_layer=norm).eval()
    kind = models.convnext.CNBlockConfig
    stages = [kind(16, 32, 1), kind(32, None, 2)]
    # As small as it begins, the scale of a block's branch hides it.
    return models.ConvNeXt(stages, layer_scale=0.5, num_classes=CLASSES).eval()


@pytest.fixture(scope="module")
def lent():
    """Images of a small network with BatchNorm, which takes smaller images and others."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    relative = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, CLASSES))
    return synq.synthesize(
        relative,
        **{"image_shape": (3, 24, 24), "mean": [0.2] * 3, "std": [0.5] * 3},
        synthesis={"images_per_class": 4, "iterations": 1, "classes_per_shard": CLASSES},
        progress=False,
    )


@pytest.mark.parametrize("name", ["convnext", "groupnorm", "squeezenet"])
def test_a_network_without_batchnorm_is_quantized_by_the_images_of_a_relative(name, lent, tmp_path):
    network = without_batchnorm(name)
    about = {"image_shape": (3, 32, 32), "mean": [0.5] * 3, "std": [0.25] * 3}
    with pytest.raises(synq.UserError, match="no BatchNorm layer") as refusal:
        synq.quantize(network, **about, progress=False)
    assert "images=synq.synthesize(OTHER, ...)" in str(refusal.value)
    assert "\n" not in str(refusal.value)
    result = synq.quantize(
        network,
        **about,
        images=lent,
        bits="w8a8",
        finetune={"epochs": 1, "batch_size": 16, "holdout": 0.25},
        progress=False,
    )
    assert result.images.image_shape == (3, 32, 32)
    images = result.images.images(torch.arange(len(result.images)))
    with torch.no_grad():
        difference = result.student(images) - network(images)
        # At 8 bits nearly the same, whatever the network; and not the same.
        assert 0 < difference.std() < 0.3 * network(images).std()
    if name == "convnext":  # torch's exporter takes most of this test's time
        assert result.to_onnx(tmp_path / "student.onnx")["agreement"] > 0


@pytest.mark.parametrize(("zoo", "name", "side", "share"), [NETWORKS[n] for n in (0, 1, 3, 5)])
def test_four_of_them_go_through_a_whole_run(zoo, name, side, share, tmp_path):
    network = built(zoo, name, side)
    result = synq.quantize(
        network,
        **{"image_shape": (3, side, side), "mean": [0.5] * 3, "std": [0.25] * 3},
        synthesis={"images_per_class": 4, "iterations": 1, "classes_per_shard": CLASSES},
        finetune={"epochs": 1, "batch_size": 16, "holdout": 0.25},
        progress=False,
    )
    assert 0 <= result.measured.student <= 100
    result.save(tmp_path / "student.safetensors")
    result.save_packed(tmp_path / "packed.safetensors")
    images = torch.rand(2, 3, side, side)
    student = synq.load(tmp_path / "student.safetensors", network)
    assert torch.equal(student(images), result.student(images))
