"""Networks by name, and weights that fit them exactly or are refused."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from synq.errors import ModelError
from synq.models.build import architectures, build, checked, frozen
from synq.models.structure import batchnorms
from synq.models.weights import PREFIXES, check_numbers, load_weights, read_weights

NAME = "resnet20_cifar10"


@pytest.fixture(scope="module")
def network():
    return build(NAME, 10, 3, 32)


@pytest.fixture
def state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def refusal(call, *arguments):
    with pytest.raises(ModelError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_network_is_built_by_name_in_evaluation_mode(network):
    assert type(network).__name__ == "CIFARResNet"
    assert not network.training
    assert network(torch.zeros(4, 3, 32, 32)).shape == (4, 10)


def test_channels_and_classes_are_those_asked_for():
    network = build("resnet20_cifar100", 100, 1, 32)
    assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 100)


def test_architectures_hold_the_families_of_pytorchcv():
    known = architectures()
    assert {"resnet18", "mobilenetv2_w1", NAME} <= known.keys()
    assert known["resnet18"] == "pytorchcv.models.resnet"


def test_an_unknown_architecture_is_refused_with_the_nearest_or_where_to_look():
    assert refusal(build, "resnet20_cifar11", 10, 3, 32).endswith("did you mean resnet20_cifar10?")
    assert "pytorchcv.model_provider" in refusal(build, "qqqqq", 10, 3, 32)


@pytest.mark.parametrize("size", [8, 20, 64])
def test_an_image_size_that_does_not_fit_is_refused(size):
    text = refusal(build, NAME, 10, 3, size)
    assert text.startswith(f"{NAME} cannot be built for 10 classes of 3x{size}x{size} images: ")


def test_a_network_that_is_no_classifier_of_these_classes_is_refused(monkeypatch):
    class Feature(nn.Module):
        def forward(self, images):
            return images.mean((2, 3))

    monkeypatch.setattr("pytorchcv.models.resnet_cifar.resnet20_cifar10", lambda **_: Feature())
    assert "gives [2, 3] for 2 images of 32 px, not [2, 10]" in refusal(build, NAME, 10, 3, 32)


def test_weights_that_fit_are_loaded(state):
    other = build(NAME, 10, 3, 32)
    changed = {name: value + 1 for name, value in state.items()}
    load_weights(other, changed, "here")
    assert all(torch.equal(value, changed[name]) for name, value in other.state_dict().items())


def test_counters_of_batches_may_be_absent(network, state):
    counters = [name for name in state if name.endswith("num_batches_tracked")]
    assert counters
    load_weights(network, {k: v for k, v in state.items() if k not in counters}, "here")


def test_missing_unknown_and_wrongly_shaped_keys_are_named(network, state):
    weight = state.pop("output.weight")
    assert refusal(load_weights, network, state, "here") == "here lacks: output.weight"
    state["output.weight"] = weight
    state["fc.weight"] = weight
    assert refusal(load_weights, network, state, "here") == "here has unknown: fc.weight"
    del state["fc.weight"]
    state["output.weight"] = weight[:7]
    text = "here has other shapes: output.weight [7, 64] instead of [10, 64]"
    assert refusal(load_weights, network, state, "here") == text


def test_the_first_three_of_many_keys_are_named(network, state):
    text = refusal(load_weights, network, {f"other.{k}": v for k, v in state.items()}, "here")
    assert text.startswith("here lacks: features.")
    assert text.count(",") == 2
    assert text.endswith(" more")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_keys_that_all_have_a_prefix_fit_and_it_is_told(network, state, prefix):
    changed = {f"{prefix}{name}": value + 1 for name, value in state.items()}
    other = build(NAME, 10, 3, 32)
    note = load_weights(other, changed, "here")
    assert note == f"the keys of the weights lost their prefix {prefix}"
    weight = "output.weight"
    assert torch.equal(other.state_dict()[weight], state[weight] + 1)


@pytest.mark.parametrize("wrap", ["module", "model"])
def test_keys_that_lack_the_prefix_of_a_wrapped_network_fit(state, wrap):
    wrapped = nn.Module()
    wrapped.add_module(wrap, build(NAME, 10, 3, 32))
    note = load_weights(wrapped, state, "here")
    assert note == f"the keys of the weights got the model's prefix {wrap}."
    assert torch.equal(wrapped.state_dict()[f"{wrap}.output.weight"], state["output.weight"])


def test_equal_keys_are_not_remarked(network, state):
    assert load_weights(network, state, "here") == ""


def test_a_prefix_of_some_keys_alone_is_refused(network, state):
    state["module.output.bias"] = state.pop("output.bias")
    assert refusal(load_weights, network, state, "here") == "here lacks: output.bias"


def test_refused_weights_leave_the_network_as_it_was(network, state):
    wrong = {name: value + 1 for name, value in state.items()}
    del wrong["output.weight"]
    refusal(load_weights, network, wrong, "here")
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("legacy", [False, True])
def test_a_torch_file_is_read_also_nested(tmp_path, state, nested, legacy):
    path = tmp_path / "weights"
    content = {"state_dict": state, "epoch": 3} if nested else state
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    tensors = read_weights(path)
    assert tensors.keys() == state.keys()
    assert torch.equal(tensors["output.weight"], state["output.weight"])


def test_a_safetensors_file_is_read(tmp_path, state):
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    assert torch.equal(read_weights(path)["output.weight"], state["output.weight"])


@pytest.mark.parametrize("name", ["download", "weights.pth", "weights.safetensors"])
def test_the_content_of_a_file_tells_its_format(tmp_path, state, name):
    path = tmp_path / name
    save_file(state, path)
    assert torch.equal(read_weights(path)["output.weight"], state["output.weight"])
    torch.save(state, path)
    assert torch.equal(read_weights(path)["output.weight"], state["output.weight"])


def test_a_truncated_safetensors_file_is_refused(tmp_path, state):
    path = tmp_path / "download"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert refusal(read_weights, path).startswith(f"{path} cannot be read as safetensors")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_missing_or_damaged_file_is_refused_with_its_path(tmp_path, name):
    path = tmp_path / name
    assert str(path) in refusal(read_weights, path)
    for content in (b"", b"no weights", bytes(range(256)) * 9):
        path.write_bytes(content)
        assert str(path) in refusal(read_weights, path)


def test_a_truncated_torch_file_is_refused(tmp_path, state):
    path = tmp_path / "weights.pth"
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert str(path) in refusal(read_weights, path)


@pytest.mark.parametrize("content", [[torch.zeros(1)], {"weight": 3}, {"model": {"a": {}}}])
def test_a_file_without_state_dict_is_refused(tmp_path, content):
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert refusal(read_weights, path).startswith(f"{path} holds no state dict")


def test_what_a_file_holds_in_the_place_of_a_state_dict_is_named_as_its_user_calls_it(tmp_path):
    path = tmp_path / "download"
    torch.save({"net": {"a": torch.zeros(1)}, "ema": {"a": torch.zeros(1)}, "step": 3}, path)
    text = refusal(read_weights, path, "https://host/w.pth")
    assert text.startswith("https://host/w.pth holds no state dict")
    assert "but net, ema, step; write the network's part of it" in text
    torch.save([torch.zeros(1)], path)
    assert refusal(read_weights, path).endswith("but a list")


def test_numbers_that_no_network_computes_with_are_refused(network, state):
    state["output.weight"][3] = float("nan")
    assert refusal(load_weights, network, state, "w.pth").startswith(
        "w.pth holds NaN in output.weight"
    )
    broken = copy.deepcopy(network)
    broken.output.weight.data[0] = float("nan")
    endless, negative = copy.deepcopy(network), copy.deepcopy(network)
    endless.output.weight.data[0] = float("inf")
    next(iter(batchnorms(negative).values())).running_var[0] = -1.0
    more = [(endless, "infinity in output"), (negative, "less than 0 in features")]
    for other, text in (
        *more,
        (broken, "NaN in output"),
        (copy.deepcopy(network).half(), "float16 in "),
    ):
        assert text in refusal(checked, lambda other=other: other, "own", 10, 3, 32)
    assert "network.float()" in refusal(check_numbers, copy.deepcopy(network).double(), "own")


class Code:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        import os

        return os.mkdir, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda c, p: p.write_bytes(pickle.dumps(c, 2))])
def test_code_in_a_file_is_not_run(tmp_path, save):
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    save({"weight": Code(str(trace))}, path)
    assert str(path) in refusal(read_weights, path)
    assert not trace.exists()
    torch.load(path, weights_only=False) if save is torch.save else pickle.loads(path.read_bytes())
    assert trace.exists()


def test_batchnorms_are_named_in_order(network):
    layers = batchnorms(network)
    assert len(layers) == 21
    assert next(iter(layers)) == "features.init_block.bn"
    assert all(isinstance(layer, nn.BatchNorm2d) for layer in layers.values())


@pytest.mark.parametrize(
    "network",
    [nn.Conv2d(3, 4, 1), nn.GroupNorm(1, 3), nn.BatchNorm2d(3, track_running_stats=False)],
    ids=lambda network: type(network).__name__,
)
def test_a_model_without_running_statistics_is_refused(network):
    assert "no BatchNorm layer with running statistics" in refusal(batchnorms, nn.ReLU())
    assert "no BatchNorm layer" in refusal(batchnorms, nn.Sequential(network))


def test_a_frozen_model_is_in_evaluation_mode_without_gradients():
    network = frozen(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).train())
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
