"""The second network of the photographs."""

import numpy
import pytest
import torch
from PIL import Image
from torch.nn import functional

from benchmarks.depthwise import BATCH, NETWORKS, Depthwise, trained


def folder(path, classes=10, images=2 * BATCH // 10 + 1):
    """One grey for each class, a little noise, and half of it to learn from."""
    draw = numpy.random.default_rng(0)
    for number in range(classes):
        (path / f"class{number}").mkdir(parents=True)
        for image in range(images):
            pixels = draw.integers(0, 8, (32, 32, 3)) + 24 * number
            Image.fromarray(pixels.astype("uint8")).save(path / f"class{number}" / f"{image}.png")
    return path


def test_it_learns_from_labels_and_from_a_network_and_repeats(tmp_path):
    torch.manual_seed(1)
    photographs, teacher = folder(tmp_path / "photographs"), Depthwise().eval()
    first, again = (trained(photographs, teacher, epochs=2, seed=3) for _ in range(2))
    assert not first.training
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    other = trained(photographs, teacher, epochs=2, seed=3, part="report").state_dict()
    assert not torch.equal(other["classifier.weight"], first.classifier.weight)
    torch.manual_seed(3)
    before = Depthwise()
    moved = [
        not torch.equal(tensor, before.state_dict()[name])
        for name, tensor in first.state_dict().items()
    ]
    assert all(moved)
    # Not what it was taught by, whose answers are one half of the loss alone.
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found, wanted = (functional.softmax(network(images), 1) for network in (first, teacher))
    assert found.shape == (8, 10)
    assert not torch.allclose(found, wanted)


@pytest.mark.parametrize(
    ("name", "lowest"), [("relu6", 0.0), ("silu", -0.28), ("hardswish", -0.38)]
)
def test_activations_of_the_networks(tmp_path, name, lowest):
    photographs, teacher = folder(tmp_path / "photographs"), Depthwise().eval()
    network = NETWORKS[name]()
    assert network.state_dict().keys() == teacher.state_dict().keys()
    found = network.activation(torch.linspace(-8, 8, 4097))
    assert float(found.min()) == pytest.approx(lowest, abs=0.01)
    network.load_state_dict(teacher.state_dict())
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network.eval()(images), teacher(images)) == (name == "relu6")
    student = trained(photographs, teacher, epochs=1, seed=3, activation=name)
    assert student.activation is network.activation
