import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from synq.errors import ModelError
from synq.models import batchnorms, build, load_weights, read_weights


def test_model_is_built_by_name_for_its_classes_and_channels():
    model = build("resnet20_cifar10", classes=100, channels=1, image_size=32)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 100)
    assert not model.training


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(ModelError, match="did you mean resnet20_cifar10"):
        build("resnet20_cifar1O", classes=10, channels=3, image_size=32)


def test_what_an_architecture_cannot_do_is_refused():
    with pytest.raises(ModelError, match="cannot be built for 7 classes"):
        build("resnet20_cifar10", classes=7, channels=3, image_size=32)


def test_image_size_that_does_not_fit_is_refused():
    with pytest.raises(ModelError, match="resnet20_cifar10"):
        build("resnet20_cifar10", classes=10, channels=3, image_size=8)


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda s: s.pop("0.bias"), "lacks: 0.bias"),
        (lambda s: s.update(extra=torch.zeros(1)), "has unknown: extra"),
        (lambda s: s.update({"0.bias": torch.zeros(5)}), r"0.bias \[5\] instead of \[4\]"),
    ],
)
def test_keys_that_do_not_fit_are_named(change, reason):
    state = network().state_dict()
    change(state)
    with pytest.raises(ModelError, match=reason):
        load_weights(network(), state, "file")


def test_weights_are_loaded_and_old_files_lack_the_counter():
    source, target = network(), network()
    state = {k: v for k, v in source.state_dict().items() if "num_batches" not in k}
    load_weights(target, state, "file")
    assert torch.equal(source[0].weight, target[0].weight)


@pytest.mark.parametrize("nested", [False, True])
def test_torch_and_safetensors_files_are_read(tmp_path, nested):
    state = network().state_dict()
    torch.save({"state_dict": state} if nested else state, tmp_path / "w.pth")
    save_file(state, tmp_path / "w.safetensors")
    for name in ("w.pth", "w.safetensors"):
        assert torch.equal(read_weights(tmp_path / name)["0.weight"], state["0.weight"])


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_code_in_a_file_is_not_run(tmp_path):
    (tmp_path / "bomb.pth").write_bytes(pickle.dumps(Bomb(tmp_path / "mark")))
    torch.save({"x": Bomb(tmp_path / "mark")}, tmp_path / "zip.pth")
    for name in ("bomb.pth", "zip.pth"):
        with pytest.raises(ModelError, match=name):
            read_weights(tmp_path / name)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_missing_and_damaged_files_are_refused(tmp_path, name):
    with pytest.raises(ModelError, match=name):
        read_weights(tmp_path / name)
    (tmp_path / name).write_bytes(b"garbage" * 10)
    with pytest.raises(ModelError, match=name):
        read_weights(tmp_path / name)


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(ModelError, match="no state dict"):
        read_weights(tmp_path / "w.pth")


def test_model_without_batchnorm_is_refused():
    assert list(batchnorms(network())) == ["1"]
    with pytest.raises(ModelError, match="no BatchNorm"):
        batchnorms(nn.Sequential(nn.Conv2d(3, 4, 3)))
