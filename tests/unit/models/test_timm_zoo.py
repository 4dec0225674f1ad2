"""timm as a source: what its pretrained_cfg says, downloads from a local server, refusals."""

import dataclasses
import hashlib
import sys

import pytest
import torch
from file_server import serving
from safetensors.torch import save

from synq.config.model import Model
from synq.errors import ArtifactError, ConfigError, ModelError
from synq.io import download
from synq.models.sources import construct
from synq.models.teacher import read_teacher
from synq.models.timm_zoo import timm_file, timm_keys
from synq.stages import fetch

timm = pytest.importorskip("timm")
ARCHITECTURE, TAG = "test_resnet", "r160_in1k"
SHA256 = "0" * 64


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    with serving() as running:
        yield running


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return timm.create_model(ARCHITECTURE)


def model(**settings):
    return Model(**{"source": "timm", "architecture": ARCHITECTURE, **settings})


def brought(tmp_path, server, **settings):
    own = model(store=str(tmp_path / "store"), mirror=f"{server.address}/good", **settings)
    output = tmp_path / "teacher.safetensors"
    fetch.fetch_zoo(name="net", settings=own, output=output)
    return read_teacher(output, torch.device("cpu"))


def same(state, other):
    return state.keys() == other.keys() and all(
        torch.equal(state[key], other[key]) for key in state
    )


def test_a_file_of_the_hub_becomes_a_teacher(tmp_path, server, network, capsys):
    content = save(network.state_dict())
    server.files["model.safetensors"] = content
    digest = hashlib.sha256(content).hexdigest()
    teacher = brought(tmp_path, server, sha256=digest)
    assert same(teacher.model.state_dict(), network.state_dict())
    cfg = network.pretrained_cfg
    assert (teacher.classes, teacher.image_shape) == (1000, cfg["input_size"])
    assert (teacher.mean, teacher.std) == (list(cfg["mean"]), list(cfg["std"]))
    (path,) = {path for path, _ in server.requests}
    assert path == f"/good/timm/{ARCHITECTURE}.{TAG}/resolve/main/model.safetensors"
    # Not by the name that all of them have.
    assert (tmp_path / "store" / f"{ARCHITECTURE}.{TAG}.safetensors").read_bytes() == content
    assert f"{ARCHITECTURE}.{TAG} of timm: 160 px" in capsys.readouterr().out
    smaller = brought(tmp_path, server, sha256=digest, weights=TAG, image_size=64)
    assert smaller.image_shape == (3, 64, 64)
    assert len(server.requests) == 1


def test_wrong_bytes_of_the_hub_are_refused(tmp_path, server, network):
    server.files["model.safetensors"] = save(network.state_dict())
    with pytest.raises(ArtifactError, match="expected 0000"):
        brought(tmp_path, server, sha256=SHA256)
    assert not (tmp_path / "teacher.safetensors").exists()


def test_a_file_with_its_hash_in_its_name_needs_no_other(tmp_path, server, network, monkeypatch):
    path = tmp_path / "weights.pth"
    torch.save({"model": network.state_dict()}, path)
    name = f"net-{hashlib.sha256(path.read_bytes()).hexdigest()[:8]}.pth"
    server.files[name] = path.read_bytes()
    cfg = timm.get_pretrained_cfg(ARCHITECTURE)
    own = dataclasses.replace(cfg, url=f"https://example.org/zoo/{name}")
    monkeypatch.setattr(timm, "get_pretrained_cfg", lambda _: own)
    teacher = brought(tmp_path, server)
    assert same(teacher.model.state_dict(), network.state_dict())
    assert server.requests[0][0] == f"/good/zoo/{name}"
    assert (tmp_path / "store" / name).is_file()


def test_timm_says_what_its_files_are():
    file, settings = timm_file(model(architecture="resnet18"))
    assert file.url.startswith("https://")
    assert file.url.endswith(file.name)
    assert (file.algorithm, file.digest) == ("sha256", "d63eafa0")
    assert (settings.weights, settings.image_size) == ("resnet18.a1_in1k", 224)
    tagged, _ = timm_file(model(architecture="resnet18.a2_in1k"))
    assert tagged == timm_file(model(architecture="resnet18", weights="a2_in1k"))[0] != file


def test_what_others_published_gets_timms_names(network):
    state = network.state_dict()
    assert same(timm_keys(ARCHITECTURE, state, 1000), state)
    with pytest.raises(ModelError) as caught:
        timm_keys(ARCHITECTURE, {"other": torch.zeros(1)}, 1000)
    assert "the weights are not those of timm's test_resnet (" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_its_networks_are_built_for_any_classes():
    network = construct("timm", ARCHITECTURE, "", classes=7, channels=1, image_size=32)
    assert network(torch.zeros(1, 1, 32, 32)).shape == (1, 7)
    assert not network.training


@pytest.mark.parametrize(
    ("settings", "error", "text"),
    [
        ({}, ConfigError, "sha256 is missing: timm knows none of https://huggingface.co/timm/"),
        ({"architecture": "resnet19"}, ModelError, "which timm does not have; did you mean resnet"),
        ({"weights": "r160_in1"}, ConfigError, "weights is 'r160_in1', which timm's test_resnet"),
        ({"classes": 10, "sha256": SHA256}, ConfigError, "has 1000 classes, not 10; write classes"),
        (
            {"channels": 1, "mean": (0.5,), "std": (0.5,), "sha256": SHA256},
            ConfigError,
            "has 3 channels, not 1",
        ),
        ({"architecture": "resnet10t", "weights": "x"}, ConfigError, "which timm's resnet10t"),
    ],
)
def test_what_does_not_fit_is_one_line(settings, error, text):
    with pytest.raises(error) as caught:
        timm_file(model(**settings))
    assert text in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_timm_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ModelError, match="source is timm, which cannot be imported here"):
        timm_file(model())


def test_a_config_needs_its_name_alone():
    with pytest.raises(ConfigError, match="architecture, classes are missing"):
        Model(source="timm")
    assert model().classes == 1000
    with pytest.raises(ConfigError, match="factory has no meaning with source: timm"):
        model(factory="a:b")
    with pytest.raises(ConfigError, match="source is timm, which is a zoo; use fetch-zoo"):
        fetch.fetch(name="n", settings=model(sha256=SHA256), download=None, output=None)
