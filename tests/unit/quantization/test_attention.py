import copy

import pytest
import torch
from small_transformers import (
    SHAPE,
    WIDTH,
    blocks_that_attend,
    deit_tiny,
    fused,
    separate,
    small,
    small_swin,
    swin_tiny,
)
from torch import nn

from synq.config.calibration import Calibration
from synq.errors import ModelError
from synq.models.features import cam_layer
from synq.models.hooks import recorded
from synq.models.structure import attention_layers
from synq.quantization.calibration import calibrate
from synq.quantization.convert import activation_quantizers, packed_bytes, quantize
from synq.quantization.coverage import require_activations
from synq.quantization.layers import QuantizedWeight, QuantMultiheadAttention
from synq.quantization.quantizers import Recipe
from synq.reporting.inspection import inspect_model

MINMAX = Calibration(range_estimator="minmax")
SMALL = {
    "MultiheadAttention": small,
    "layers called": lambda: fused(False),
    "weights handed over": lambda: fused(True),
    "layers of three": lambda: separate(("query", "key", "value")),
    "blocks that attend": blocks_that_attend,
    "shifted windows": small_swin,
}


def images(count=8, shape=SHAPE):
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(1))


def student(model, bits, settings=MINMAX, shape=SHAPE, count=8):
    network = quantize(copy.deepcopy(model), Recipe(*bits)).eval()
    calibrate(network, [images(count, shape)], settings)
    return network


def error(model, network, x):
    with torch.no_grad():
        exact = model(x)
        return float((network(x) - exact).norm() / exact.norm())


@pytest.fixture(params=SMALL.values(), ids=SMALL.keys())
def model(request):
    return request.param()


@pytest.mark.parametrize(
    ("make", "weights", "activations"),
    [
        # The patches, four layers in each of 12 blocks, the classifier.
        (deit_tiny, 1 + 4 * 12 + 1, 4 * 12),
        # The same, and three layers that merge patches.
        (swin_tiny, 1 + 4 * 12 + 3 + 1, 4 * 12 + 3),
        # The same, and two layers in each block for the bias of the positions.
        (lambda: swin_tiny(2), 1 + 6 * 12 + 3 + 1, 6 * 12 + 3),
    ],
    ids=["deit_tiny", "swin_t", "swin_v2_t"],
)
def test_real_structures_are_quantized_whole(make, weights, activations):
    model, shape = make(), (3, 224, 224)
    require_activations(model, shape)
    network = student(model, (8, 8), shape=shape, count=2)
    assert sum(isinstance(module, QuantizedWeight) for module in network.modules()) == weights
    quantizers = activation_quantizers(network)
    assert len(quantizers) == activations
    assert all(quantizer.hi > quantizer.lo for quantizer in quantizers.values())
    assert 0 < error(model, network, images(2, shape)) < 0.05


def test_names_are_those_of_the_network():
    model = small()
    network = quantize(copy.deepcopy(model), Recipe(4, 8))
    assert set(activation_quantizers(network)) == {
        f"blocks.{block}.{name}"
        for block in (0, 1)
        for name in (
            "attention.input",
            "attention.out_proj.input",
            "mlp.0.input",
            "mlp.1.quantizer",
        )
    }
    added = {f"{name}.{end}" for name in activation_quantizers(network) for end in ("lo", "hi")}
    assert set(network.state_dict()) - set(model.state_dict()) == added
    for name, tensor in model.state_dict().items():
        assert torch.equal(network.state_dict()[name], tensor)


def test_inputs_of_the_layers_take_few_values_and_residual_sums_do_not(model):
    network = student(model, (8, 4))
    quantizers = activation_quantizers(network)
    # Two more a block where queries, keys and values have a layer each.
    more = 2 * sum(name.endswith((".q.input", ".query.input")) for name in quantizers)
    swin = any("features" in name for name in quantizers)
    assert len(quantizers) == (17 if swin else 8 + more)
    with torch.no_grad(), recorded(quantizers) as record:
        network(images())
    assert set(record) == set(quantizers)
    assert all(len(values.unique()) <= 16 for values in record.values())
    norms = {n: m for n, m in network.named_modules() if isinstance(m, nn.LayerNorm)}
    with torch.no_grad(), recorded(norms, inputs=True) as record:
        network(images())
    assert all(len(values.unique()) > 256 for values in record.values())


def test_more_bits_are_closer(model):
    x = images()
    errors = [error(model, student(model, bits), x) for bits in ((8, 8), (4, 8), (2, 2))]
    assert errors == sorted(errors)
    assert errors[0] < 0.05
    assert errors[1] < 0.7
    assert errors[2] > 5 * errors[0]


def test_same_network_same_output(model):
    x = images()
    one, other = (student(model, (4, 8), Calibration())(x) for _ in range(2))
    assert torch.equal(one, other)


def weights_of(network):
    """Every weight in an attention: the fused one, and those of its layers."""
    for layer in attention_layers(network).values():
        for name, parameter in layer.named_parameters():
            if name.endswith("weight") and parameter.dim() == 2:
                yield parameter


@pytest.mark.parametrize("graph", [False, True], ids=["no_grad", "grad"])
def test_a_change_under_half_a_step_changes_nothing(model, graph):
    network, x = student(model, (4, 8)), images(2)
    weights = list(weights_of(network))
    inside = [m for layer in attention_layers(network).values() for m in layer.modules()]
    assert len(weights) == sum(isinstance(module, QuantizedWeight) for module in inside)
    with torch.set_grad_enabled(graph):
        for weight in weights:
            lo, hi = weight.aminmax(dim=1, keepdim=True)
            step = (hi - lo) / 15
            # One of each row, and none at an end of the range.
            place = (weight - weight.mean(1, keepdim=True)).abs().argmin(1, keepdim=True)
            code = (weight.gather(1, place) / step).round()  # 0 is on the grid
            outputs = []
            for part in (-0.2, 0.2, 2.0):
                weight.data.scatter_(1, place, (code + part) * step)
                outputs.append(network(x).detach())
            assert torch.equal(outputs[0], outputs[1])
            assert not torch.equal(outputs[0], outputs[2])


def test_gradient_reaches_every_weight(model):
    network = student(model, (3, 3)).requires_grad_(True)
    network(images(2)).square().sum().backward()
    parameters = dict(network.named_parameters())
    assert not [name for name, own in parameters.items() if not own.grad.abs().sum() > 0]


def test_handing_over_a_weight_is_the_same_as_calling_the_layer():
    one, other = (student(fused(handed), (4, 4)) for handed in (False, True))
    x = images(2)
    torch.testing.assert_close(one(x), other(x))
    assert list(activation_quantizers(one)) == list(activation_quantizers(other))


def test_opened_attention_is_that_of_torch():
    torch.manual_seed(0)
    for batch_first in (False, True):
        layer = nn.MultiheadAttention(WIDTH, 3, batch_first=batch_first)
        opened = copy.deepcopy(layer)
        opened = QuantMultiheadAttention.from_float(layer)
        opened.weight_quantizer, opened.input = nn.Identity(), nn.Identity()
        query, other = torch.randn(4, 4, WIDTH), torch.randn(4, 4, WIDTH)
        for arguments in ((query, query, query), (query, other, other), (query, other, query)):
            for average in (True, False):
                wanted = layer(*arguments, average_attn_weights=average)
                ours = opened(*arguments, average_attn_weights=average)
                torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)
        assert opened(query, query, query, need_weights=False)[1] is None


def test_attention_without_biases_is_quantized():
    layer = nn.MultiheadAttention(WIDTH, 3, bias=False, batch_first=True)
    network = quantize(nn.Sequential(layer), Recipe(8, 8))[0]
    assert isinstance(network, QuantMultiheadAttention)
    x = images(2, (4, WIDTH))
    with torch.no_grad():
        assert network(x, x + 1, x)[0].shape == x.shape


@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_encoder_layer_of_torch_takes_no_shortcut_around_quantized_weights(activation):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 48, 0.0, activation, batch_first=True)
    model = frozen_sequence(layer)
    network = student(model, (2, 8), shape=(4, WIDTH))
    x = images(2, (4, WIDTH))
    with torch.no_grad():
        without = network(x)
    torch.testing.assert_close(without, network(x.clone().requires_grad_()).detach())
    assert error(model, network, x) > 0.1
    assert len(activation_quantizers(network)) == 4


def frozen_sequence(*layers):
    return nn.Sequential(*layers, nn.Linear(WIDTH, 3)).eval().requires_grad_(False)


class Own(nn.MultiheadAttention):
    pass


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (lambda: Own(8, 2), "Own is a kind of nn.MultiheadAttention"),
        (lambda: nn.MultiheadAttention(8, 2, kdim=4), "kdim"),
        (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), "add_bias_kv"),
        (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True), "add_zero_attn"),
    ],
)
def test_attention_that_would_escape_is_refused(layer, reason):
    with pytest.raises(ModelError, match=reason):
        quantize(nn.Sequential(layer(), nn.Linear(8, 2)), Recipe(4, 4))


def test_masks_are_refused():
    network = quantize(nn.Sequential(nn.MultiheadAttention(8, 2)), Recipe(4, 4))[0]
    x = torch.zeros(3, 1, 8)
    with pytest.raises(ModelError, match="mask"):
        network(x, x, x, attn_mask=torch.zeros(3, 3))


def test_packed_size_counts_the_fused_weight():
    network = quantize(nn.Sequential(nn.MultiheadAttention(8, 2)), Recipe(4, 4))
    codes = (24 * 8 + 8 * 8) // 2 + 8 * (24 + 8)
    assert packed_bytes(network, 4) == codes + 4 * (24 + 8) + 4 * 4  # biases, two ranges


def test_a_network_without_attention_gains_no_inputs():
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.GELU()
    )
    assert list(activation_quantizers(quantize(model, Recipe(4, 4)))) == ["4.quantizer"]


def test_there_is_no_activation_map_of_a_transformer(model):
    with pytest.raises(ModelError, match="cam: off"):
        cam_layer(model, SHAPE)


def test_a_convolution_behind_the_attention_has_one():
    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(3, 1, batch_first=True)
            self.last = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            tokens = x.flatten(2).transpose(1, 2)
            tokens = self.attention(tokens, tokens, tokens)[0]
            return self.last(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))

    assert cam_layer(Both(), (3, 8, 8)) == "last"


def test_inspection_finds_a_transformer_fit_and_its_layers_quantized(model):
    found = inspect_model(model, SHAPE)
    assert found["fits"]
    assert found["prior"] == "patches"
    assert found["needs"] == ["finetune.cam: off"]
    layers = {p["name"]: p for p in found["parts"] if p["role"] == "layer" and not p["reason"]}
    students = quantize(copy.deepcopy(model), Recipe(4, 4))
    names = {n for n, m in students.named_modules() if isinstance(m, QuantizedWeight)}
    assert set(layers) == names
    assert set(found["never_called"]) <= {"blocks.0.attention.drop", "blocks.1.attention.drop"}
    assert not found["functional_layers"]
