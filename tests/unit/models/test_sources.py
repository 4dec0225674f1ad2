"""Networks of torchvision and of the user's own functions, and what is said where there is none."""

import re
import sys

import pytest
import torch
from torch import nn
from vision import torchvision_models

from synq.errors import ModelError
from synq.models.sources import (
    construct,
    from_python,
    from_torchvision,
    torchvision_keys,
    torchvision_weights,
)
from synq.models.weights import load_weights

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=10):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.output = nn.Linear(4, classes)

    def forward(self, images):
        return self.output(torch.relu(self.bn(self.conv(images))).mean((2, 3)))

class Shop:
    make = Net

def build(): return Net()
def hundred(): return Net(100)
def text(): return "no network"
def fails(): raise KeyError("a bug\\nof two lines")
def needs(what): return Net()
class Two(Net):
    def forward(self, images): return (images, images)
class Broken(Net):
    def forward(self, images): return images.no_such_thing
number = 3
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own in the folder of the job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_nets.py").write_text(OWN)
    yield tmp_path / "own_nets.py"
    sys.modules.pop("own_nets", None)


@pytest.fixture
def models():
    return torchvision_models()


def refusal(call, *arguments, **more):
    with pytest.raises(ModelError) as caught:
        call(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("factory", ["own_nets:build", "own_nets:Net", "own_nets:Shop.make"])
def test_a_function_or_class_of_the_users_own_gives_the_network(own, factory):
    network = from_python(factory, 10, 3, 16)
    assert type(network).__name__ == "Net"
    assert not network.training
    assert construct("python", "", factory, classes=10, channels=3, image_size=16)


@pytest.mark.parametrize(
    ("factory", "text"),
    [
        ("no_nets:build", "no_nets cannot be imported (No module named 'no_nets'); run from"),
        ("own_nets:buidl", "own_nets has no buidl; did you mean build?"),
        ("own_nets:Shop.mak", "own_nets has no Shop.mak; did you mean make?"),
        ("own_nets:number", "own_nets:number raises TypeError: 'int' object is not callable"),
        ("own_nets:text", "own_nets:text returns a str, not a torch.nn.Module"),
        ("own_nets:fails", "own_nets:fails raises KeyError: 'a bug"),
        ("own_nets:needs", "own_nets:needs raises TypeError: needs() missing 1 required"),
        (
            "own_nets:hundred",
            "own_nets:hundred gives [2, 100] for 2 images of 16 px, not [2, 10]; classes is 10, "
            "write 100",
        ),
        (
            "own_nets:Two",
            "own_nets:Two gives a tuple for 2 images of 16 px, not [2, 10]; is image_size the size "
            "it was made for?",
        ),
        ("own_nets:Broken", "own_nets:Broken cannot be built for 10 classes of 3x16x16 images: "),
    ],
)
def test_what_gives_no_network_is_refused(own, factory, text):
    assert text in refusal(from_python, factory, 10, 3, 16)


def test_a_module_that_cannot_be_imported_is_refused_with_the_reason(own):
    own.write_text("import no_such_package\n")
    text = refusal(from_python, "own_nets:build", 10, 3, 16)
    assert "own_nets cannot be imported (No module named 'no_such_package')" in text


def test_torchvision_builds_its_classifiers(models):
    network = construct(
        "torchvision", "shufflenet_v2_x0_5", "", classes=7, channels=3, image_size=32
    )
    assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 7)
    assert not network.training


def test_a_network_whose_format_has_a_version_is_loaded(models):
    network = from_torchvision("mnasnet0_5", 7, 3, 32)
    state = {name: value.clone() + 1 for name, value in network.state_dict().items()}
    assert load_weights(network, state, "here") == ""
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


def test_the_two_that_torchvision_builds_otherwise_with_weights(models):
    network = from_torchvision("googlenet", 10, 3, 64)
    assert network.transform_input
    assert any(name.startswith("aux1.") for name in network.state_dict())


@pytest.mark.parametrize("name", ["resnet19", "fcn_resnet50", "quantized_resnet18"])
def test_what_torchvision_has_no_classifier_of_is_refused(models, name):
    text = refusal(from_torchvision, name, 10, 3, 64)
    assert text.startswith(f"architecture is {name!r}, which torchvision does not have; did you")


def test_files_of_densenets_have_former_names(models):
    state = from_torchvision("densenet121", 10, 3, 32).state_dict()
    former = {re.sub(r"(layer\d+\.(norm|conv))([12])\.", r"\1.\3.", name): 0 for name in state}
    assert "features.denseblock1.denselayer1.norm.1.weight" in former
    assert torchvision_keys(former).keys() == state.keys()
    assert torchvision_keys(state).keys() == state.keys()


def test_torchvision_knows_its_files_and_inputs(models):
    found = torchvision_weights("resnet18", "")
    assert found.name == "IMAGENET1K_V1"
    assert found.file.url == "https://download.pytorch.org/models/resnet18-f37072fd.pth"
    assert found.file[2:] == ("sha256", "f37072fd")
    assert (found.image_size, found.mean[0], found.std[0]) == (224, 0.485, 0.229)
    assert torchvision_weights("resnet18", "DEFAULT") == found
    newest = torchvision_weights("resnet50", "", "http://mirror/zoo/")
    assert newest.name == "IMAGENET1K_V2"
    assert newest.file.url.startswith("http://mirror/zoo/models/resnet50-")
    assert torchvision_weights("inception_v3", "").image_size == 299
    assert torchvision_weights("efficientnet_v2_l", "").mean == (0.5, 0.5, 0.5)


def test_every_classifier_of_torchvision_has_a_file_with_a_hash(models):
    for name in models.list_models(module=models):
        file = torchvision_weights(name, "").file
        assert len(file.digest) >= 8
        assert file.digest in file.name


def test_unknown_weights_are_refused_with_what_there_is(models):
    text = refusal(torchvision_weights, "resnet50", "IMAGENET1K_V3")
    assert text.endswith("does not have; there is IMAGENET1K_V1, IMAGENET1K_V2")


@pytest.mark.parametrize(
    "content",
    ["raise ImportError('libcudart')", "raise RuntimeError('operator\\ntorchvision::nms')"],
)
def test_a_torchvision_that_does_not_import_is_one_line(tmp_path, monkeypatch, content):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text(content)
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    text = refusal(torchvision_weights, "resnet18", "")
    assert "cannot be imported here (" in text
    assert "use source: pytorchcv" in text


def test_other_sources_are_built_by_pytorchcv():
    for source in ("train", "file", "pytorchcv"):
        network = construct(source, "resnet20_cifar10", "", classes=10, channels=3, image_size=32)
        assert isinstance(network, nn.Module)
