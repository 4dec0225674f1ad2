import hashlib
import io
import json
import sys
import zipfile

import pytest
import torch
from file_server import serving
from safetensors import safe_open
from safetensors.torch import save
from vision import torchvision_models

from synq.config import pytorchcv_table as zoo
from synq.config.model import Model
from synq.errors import ArtifactError, ConfigError, ModelError
from synq.io import download
from synq.io.artifacts import read_checkpoint, write_checkpoint
from synq.models.build import build
from synq.models.sources import from_torchvision
from synq.models.teacher import read_teacher
from synq.stages import fetch


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    model = build("resnet20_cifar10", classes=10, channels=3, image_size=32)
    torch.save(model.state_dict(), path)
    return path.read_bytes()


@pytest.fixture
def server(weights, monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    monkeypatch.setattr(download, "BLOCK", 1 << 14)
    with serving() as running:
        running.files = {"net.pth": weights}
        yield running


def bring(tmp_path, origin, weights, **changes):
    settings = Model(
        **{
            "source": "file",
            "architecture": "resnet20_cifar10",
            "classes": 10,
            "image_size": 32,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.2, 0.2, 0.2),
            "weights": origin,
            "sha256": hashlib.sha256(weights).hexdigest(),
            **changes,
        }
    )
    output = tmp_path / "teacher.safetensors"
    fetch.fetch(name="net", settings=settings, download=tmp_path / "download", output=output)
    return read_teacher(output, torch.device("cpu"))


def test_a_download_becomes_a_teacher(tmp_path, server, weights):
    teacher = bring(tmp_path, f"{server.address}/good/net.pth", weights)
    assert (tmp_path / "download").read_bytes() == weights
    assert teacher.mean == [0.5, 0.5, 0.5]
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_a_broken_connection_goes_on_where_it_broke(tmp_path, server, weights):
    bring(tmp_path, f"{server.address}/cut/net.pth", weights)
    assert (tmp_path / "download").read_bytes() == weights
    assert server.requests[0] == ("/cut/net.pth", None)
    assert server.requests[1][1] is not None


def test_wrong_bytes_are_refused_with_both_hashes(tmp_path, server, weights):
    expected = hashlib.sha256(weights).hexdigest()
    actual = hashlib.sha256(b"x" * len(weights)).hexdigest()
    with pytest.raises(ArtifactError, match=f"{actual}, expected {expected}"):
        bring(tmp_path, f"{server.address}/wrong/net.pth", weights)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_refused_at_once(tmp_path, server, weights):
    with pytest.raises(ArtifactError, match="404"):
        bring(tmp_path, f"{server.address}/gone/net.pth", weights)
    assert len(server.requests) == 1
    with pytest.raises(ArtifactError, match="cannot be read"):
        bring(tmp_path, str(tmp_path / "none.pth"), weights)


def test_a_path_works_and_a_file_that_is_there_is_not_fetched_again(tmp_path, server, weights):
    local = tmp_path / "local.pth"
    local.write_bytes(weights)
    bring(tmp_path, str(local), weights)
    bring(tmp_path, f"{server.address}/good/net.pth", weights)
    assert server.requests == []


def test_a_file_in_an_installed_package_is_found_from_any_folder(tmp_path, monkeypatch, weights):
    package = tmp_path / "site" / "some_nets"
    (package / "deep").mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('nobody imports it')")
    (package / "deep" / "net.pth").write_bytes(weights)
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.chdir(tmp_path)
    bring(tmp_path, "package:some_nets/deep/net.pth", weights)
    assert (tmp_path / "download").read_bytes() == weights


@pytest.mark.parametrize(
    ("origin", "text"),
    [
        ("package:no_nets/net.pth", "is in no package that is installed here"),
        ("package:/net.pth", "is in no package that is installed here"),
        ("package:../net.pth", "is in no package that is installed here"),
        ("package:string/net.pth", "is in no package that is installed here"),
        ("package:synq/none.pth", "none.pth cannot be read: No such file"),
        ("package:synq", "cannot be read: Is a directory"),
    ],
)
def test_a_file_that_is_in_no_package_is_told(tmp_path, weights, origin, text):
    with pytest.raises(ArtifactError, match=text):
        bring(tmp_path, origin, weights)
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_architecture_name_the_keys(tmp_path, weights):
    local = tmp_path / "local.pth"
    local.write_bytes(weights)
    with pytest.raises(ModelError, match=r"lacks: features\."):
        bring(tmp_path, str(local), weights, architecture="resnet56_cifar10")


def test_a_safetensors_file_is_fetched_under_a_name_without_suffix(tmp_path, server, weights):
    state = torch.load(io.BytesIO(weights), weights_only=True)
    server.files["net.safetensors"] = save(state)
    address = f"{server.address}/good/net.safetensors"
    teacher = bring(tmp_path, address, server.files["net.safetensors"])
    assert torch.equal(teacher.model.output.weight, state["output.weight"])


def test_keys_with_a_prefix_are_told(tmp_path, weights, capsys):
    state = torch.load(io.BytesIO(weights), weights_only=True)
    local = tmp_path / "local.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, local)
    teacher = bring(tmp_path, str(local), local.read_bytes())
    assert capsys.readouterr().out == "the keys of the weights lost their prefix module.\n"
    assert torch.equal(teacher.model.output.weight, state["output.weight"])


OWN = """
from synq.models.build import build as net
from torch import nn

class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = net("resnet20_cifar10", 10, 3, 32)

    def forward(self, images):
        return 2 * self.model(images)
"""


def test_a_network_of_ones_own_code_becomes_a_teacher(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_fetched.py").write_text(OWN)
    local = tmp_path / "local.pth"
    local.write_bytes(weights)
    own = {"source": "python", "architecture": "", "factory": "own_fetched:Own"}
    teacher = bring(tmp_path, str(local), weights, **own)
    assert "got the model's prefix model." in capsys.readouterr().out
    assert type(teacher.model).__name__ == "Own"
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(teacher.model(images), 2 * teacher.model.model(images))
    (tmp_path / "own_fetched.py").write_text("")
    sys.modules.pop("own_fetched")
    with pytest.raises(ModelError, match="own_fetched has no Own"):
        read_teacher(tmp_path / "teacher.safetensors", torch.device("cpu"))


def record(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["synq"])


@pytest.fixture
def pytorchcv(server, weights, monkeypatch):
    """pytorchcv's zoo, whose resnet20_cifar10 is the one of this test."""
    sha1 = hashlib.sha1(weights).hexdigest()
    row = {**zoo.table()["resnet20_cifar10"], "checksum": sha1, "error_value": "0123"}
    monkeypatch.setattr(zoo, "table", lambda: {"resnet20_cifar10": row})
    name = f"resnet20_cifar10-0123-{sha1[:8]}.pth"
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, weights)
    server.files[f"{name}.zip"] = buffer.getvalue()
    return name


def bring_from_zoo(tmp_path, server, manner="good", name="net", **settings):
    settings = {"source": "pytorchcv", "architecture": "resnet20_cifar10", **settings}
    settings = Model(store=str(tmp_path / "store"), mirror=f"{server.address}/{manner}", **settings)
    output = tmp_path / f"{name}.safetensors"
    fetch.fetch_zoo(name=name, settings=settings, output=output)
    return read_teacher(output, torch.device("cpu"))


def test_the_name_of_a_network_of_pytorchcv_becomes_a_teacher(
    tmp_path, server, pytorchcv, weights, monkeypatch
):
    teacher = bring_from_zoo(tmp_path, server, "cut")
    assert (tmp_path / "store" / pytorchcv).read_bytes() == weights
    assert (teacher.classes, teacher.image_shape) == (10, (3, 32, 32))
    assert teacher.mean == [0.4914, 0.4822, 0.4465]
    kept = record(tmp_path / "net.safetensors")
    path, _, digest = kept["origin"].partition(" sha1:")
    assert path == f"{server.address}/cut/releases/download/v0.0.163/{pytorchcv}.zip"
    assert digest == hashlib.sha1(weights).hexdigest()
    # Another model of the same weights, from a store whose path has a ~.
    asked = len(server.requests)
    monkeypatch.setenv("HOME", str(tmp_path))
    settings = Model(source="pytorchcv", architecture="resnet20_cifar10", store="~/store")
    fetch.fetch_zoo(name="again", settings=settings, output=tmp_path / "again.safetensors")
    assert len(server.requests) == asked


@pytest.mark.parametrize("manner", ["gone", "wrong", "always-cut"])
def test_a_zoo_that_fails_is_one_line_and_no_teacher(tmp_path, server, pytorchcv, manner):
    with pytest.raises(ArtifactError) as caught:
        bring_from_zoo(tmp_path, server, manner)
    assert str(caught.value).endswith(f"unzip it and put {pytorchcv} into {tmp_path / 'store'}")
    assert not (tmp_path / "net.safetensors").exists()


def test_weights_of_torchvision_become_a_teacher(tmp_path, server, capsys):
    entry = torchvision_models().get_model_weights("shufflenet_v2_x0_5").DEFAULT
    network = from_torchvision("shufflenet_v2_x0_5", 1000, 3, 224)
    buffer = io.BytesIO()
    torch.save(network.state_dict(), buffer)
    file = f"shufflenet-{hashlib.sha256(buffer.getvalue()).hexdigest()[:10]}.pth"
    server.files[file] = buffer.getvalue()
    own = {"source": "torchvision", "architecture": "shufflenet_v2_x0_5"}
    address = entry.url
    object.__setattr__(entry.value, "url", f"https://download.pytorch.org/models/{file}")
    try:
        teacher = bring_from_zoo(tmp_path, server, **own)
        written = bring_from_zoo(tmp_path, server, image_size=64, std=(1, 1, 1), **own)
    finally:
        object.__setattr__(entry.value, "url", address)
    assert [path for path, _ in server.requests] == [f"/good/models/{file}"]
    assert (teacher.classes, teacher.image_shape) == (1000, (3, 224, 224))
    assert (teacher.mean, teacher.std) == ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert (written.image_shape, written.std, written.mean) == ((3, 64, 64), [1] * 3, teacher.mean)
    state = network.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in teacher.model.state_dict().items())
    assert "IMAGENET1K_V1 of torchvision" in capsys.readouterr().out


def test_a_command_for_another_source_is_refused(tmp_path):
    zoo = Model(source="torchvision", architecture="a")
    with pytest.raises(ConfigError, match="source is torchvision, which is a zoo; use fetch-zoo"):
        fetch.fetch(name="n", settings=zoo, download=tmp_path / "d", output=tmp_path / "o")
    shape = {"classes": 10, "image_size": 8, "mean": (0,) * 3, "std": (1,) * 3}
    own = Model(source="file", architecture="a", weights="w", sha256="0" * 64, **shape)
    with pytest.raises(ConfigError, match="source is file, which is no zoo; use fetch"):
        fetch.fetch_zoo(name="n", settings=own, output=tmp_path / "o")


def test_a_teacher_without_its_source_is_to_be_made_again(tmp_path, weights):
    local = tmp_path / "local.pth"
    local.write_bytes(weights)
    bring(tmp_path, str(local), weights)
    tensors, old = read_checkpoint(tmp_path / "teacher.safetensors", "teacher")
    del old["source"], old["kind"], old["format"]
    write_checkpoint(tmp_path / "teacher.safetensors", "teacher", tensors, old)
    with pytest.raises(ArtifactError, match="lacks 'source' in its record; make it again"):
        read_teacher(tmp_path / "teacher.safetensors", torch.device("cpu"))
