"""Students of several widths: what they are, what they weigh, and how widths are chosen."""

import copy
import itertools

import onnx_ir
import pytest
import torch
from test_onnx import run, types
from test_packed import NETWORKS, reader, whole, written
from torch import nn
from torch.nn import functional

from synq.config.calibration import FLOAT, Calibration
from synq.errors import ConfigError, ModelError
from synq.io.artifacts import read_checkpoint
from synq.models.weights import load_weights
from synq.quantization.convert import (
    activation_quantizers,
    bits_in_use,
    layers_of,
    packed_bytes,
    quantize,
    quantized_names,
    weight_quantizers,
)
from synq.quantization.mixed import Room, chosen_widths, room
from synq.quantization.onnx import to_onnx
from synq.quantization.packed import pack, unpack
from synq.quantization.quantizers import Recipe

WIDTHS = (2, 3, 4, 5, 8)


class Calling(nn.Module):
    """An activation as a module, one that is called twice, and one as a function."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 5)
        self.relu, self.again = nn.ReLU(), nn.ReLU()

    def forward(self, images):
        seen = self.again(self.first(images))
        seen = functional.relu(self.again(self.second(self.relu(seen))))
        return self.last(seen.mean((2, 3)))


def calling(**keep):
    torch.manual_seed(0)
    recipe = Recipe(4, 4, keep={name.replace("__", "/"): bits for name, bits in keep.items()})
    return quantize(Calling().eval(), recipe, (3, 12, 12))


def test_names_are_those_of_layers_modules_and_calls():
    layers = ["first", "second", "last"]
    assert set(quantized_names(calling())) == {
        *layers,
        "relu",
        "again",
        "again/forward/1",
        "relu/0",
    }


@pytest.mark.parametrize(
    ("name", "quantizer"),
    [
        ("relu", "relu.quantizer"),
        ("again", "again.quantizer"),
        ("again__forward__1", "again.call_sites.forward/1"),
        ("relu__0", "call_sites.relu/0"),
    ],
)
def test_an_activation_keeps_its_bits_by_its_own_name(name, quantizer):
    bits = {key: q.bits for key, q in activation_quantizers(calling(**{name: 8})).items()}
    assert [key for key in bits if bits[key] == 8] == [quantizer]
    assert len(bits) == 4
    in_full = activation_quantizers(calling(**{name: FLOAT}))
    assert set(in_full) == bits.keys() - {quantizer}


def test_the_input_of_a_transformers_layer_has_a_name_of_its_own():
    make, _ = NETWORKS["transformer"]
    student = quantize(make(), Recipe(4, 4))
    name = next(iter(name for name in quantized_names(student) if name.endswith(".input")))
    layer = name.removesuffix(".input")
    assert layer in weight_quantizers(student)
    student = quantize(make(), Recipe(4, 4, keep={name: 8}))
    assert activation_quantizers(student)[name].bits == 8
    assert weight_quantizers(student)[layer].weight_quantizer.bits == 4
    # By a pattern both, and by the layer's name its weight alone.
    student = quantize(make(), Recipe(4, 4, keep={layer: 8}))
    assert activation_quantizers(student)[name].bits == 4
    student = quantize(make(), Recipe(4, 4, keep={f"{layer}*": FLOAT}))
    assert name not in activation_quantizers(student)
    assert layer not in weight_quantizers(student)


def test_what_is_kept_in_full_precision_computes_as_it_did():
    torch.manual_seed(0)
    model, images = Calling().eval(), torch.randn(4, 3, 12, 12)
    recipe = Recipe(2, 2, keep={"*": FLOAT, "last": 2})
    student = quantize(copy.deepcopy(model), recipe, (3, 12, 12))
    exact = model(images)
    model.last.weight.data = student.last.quantized_weight().detach()
    assert not torch.allclose(model(images), exact)
    torch.testing.assert_close(student(images), model(images))


def test_with_everything_in_full_precision_there_is_nothing_to_quantize():
    with pytest.raises(ModelError, match="layer that is not kept in full precision to quantize"):
        quantize(Calling(), Recipe(4, 4, keep={"*": FLOAT}), (3, 12, 12))


def test_names_in_place_of_patterns_have_the_same_bits_in_any_order():
    """A JSON file sorts its keys, and with patterns the order decides."""
    keep = {"*": 5, "second": 3, "s*": 2, "first": FLOAT}
    recipe = Recipe(4, 4, keep=keep).resolved(quantized_names(calling()))
    assert recipe.keep["first"] == FLOAT
    assert recipe.keep["second"] == 3  # its own name before any pattern
    assert recipe.keep["last"] == recipe.keep["relu"] == 5
    backwards = dict(sorted(recipe.keep.items(), reverse=True))
    for order in (recipe.keep, backwards):
        student = quantize(Calling(), Recipe(4, 4, keep=order), (3, 12, 12))
        bits = {name: layer.weight_quantizer.bits for name, layer in layers_of(student).items()}
        assert bits == {"first": FLOAT, "second": 3, "last": 5}
    assert Recipe(4, 4, keep={"s*": 8, "*ond": 2}).kept("second") == 2
    assert Recipe(4, 4).resolved(["a"]).keep is None


def test_a_pattern_that_matches_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"keep_bits names 'frst', .* did you mean first\?"):
        Recipe(4, 4, keep={"last": 8, "frst": 8}).resolved(quantized_names(calling()))


def spread(network, recipe=None):
    """A student of ``NETWORKS`` whose layers have all of ``WIDTHS`` and full precision in turn."""
    make, shape = NETWORKS[network]
    names = list(layers_of(quantize(make(), Recipe(4, 4))))
    bits = itertools.cycle((*WIDTHS, FLOAT))
    keep = dict(zip(names, bits, strict=False))
    keep |= dict.fromkeys(quantized_names(quantize(make(), Recipe(4, 4)))[len(names) + 1 :], 8)
    return whole(make, shape, Recipe(4, 4, **{**(recipe or {}), "keep": keep})), keep


@pytest.mark.parametrize("recipe", [{}, {"weights": "learned", "activations": "learned"}], ids=str)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_packed_mixed_student_comes_back_and_has_exactly_its_bits(tmp_path, network, recipe):
    (student, images), keep = spread(network, recipe)
    (other, _), _ = spread(network, recipe)
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.copy_(7)
    path = written(student, tmp_path / "packed")
    tensors, record = read_checkpoint(path, "packed")
    load_weights(other, unpack(tensors, record), "packed")
    with torch.no_grad():
        assert torch.equal(student(images), other(images))
    arrays, _ = reader().read_packed(path)
    for name, layer in layers_of(student).items():
        key = name if f"{name}.weight" not in arrays else f"{name}.weight"
        if keep[name] == FLOAT:
            assert f"{name}.weight.codes" not in tensors
            if key in arrays:
                assert torch.equal(torch.from_numpy(arrays[key]), layer.weight.detach())
        else:
            (own,) = (w for k, w in record["weights"].items() if k.rpartition(".")[0] == name)
            assert own["bits"] == keep[name]


@pytest.mark.parametrize("network", ["resnet20", "transformer"])
def test_the_runtime_computes_a_mixed_student(network):
    (student, images), keep = spread(network)
    model = to_onnx(student, tuple(images.shape[1:]), {})
    exported = onnx_ir.to_proto(model)
    with torch.no_grad():
        wanted = student(images)
    error = (run(exported, images) - wanted).abs().median()
    assert float(error) < 0.05 * float(wanted.std())
    assert model.opset_imports[""] == 25  # that of 2 bits
    used = [bits for bits in keep.values() if bits != FLOAT]
    counts = types(exported)
    assert counts["UINT4"] >= 2
    if network == "resnet20":
        layers = [keep[name] for name in layers_of(student)]
        wanted = {2: "UINT2", 3: "UINT4", 4: "UINT4", 5: "UINT8", 8: "UINT8"}
        for kind in set(wanted.values()):
            assert counts[kind] == sum(wanted.get(bits) == kind for bits in layers)
    assert {2, 3, 4, 5, 8} <= set(used)


def test_sizes_count_every_width_and_what_is_kept():
    student = calling(first=2, second=FLOAT, last=5)
    floats = 8 + 8 + 5  # biases
    codes = -(-216 * 2 // 8) + 576 * 4 + 40 * 5 // 8
    # Scales and zero points of 8 and 5 channels, and of four activations.
    assert packed_bytes(student) == codes + 4 * floats + 8 * (8 + 5) + 8 * 4
    used = bits_in_use(student)
    assert used["weights"] == [(216 * 2 + 576 * 32 + 40 * 5) / (216 + 576 + 40), 2, 32]
    assert used["activations"] == [4, 4, 4]
    assert bits_in_use(calling(relu=8))["activations"] == [5, 4, 8]
    uniform = bits_in_use(calling())
    assert uniform == {"weights": [4, 4, 4], "activations": [4, 4, 4]}


def sums(sizes, losses, chosen):
    return [sum(table[name][bits] for name, bits in chosen.items()) for table in (sizes, losses)]


@pytest.mark.parametrize("seed", range(8))
def test_the_choice_is_the_best_of_all(seed):
    generator = torch.Generator().manual_seed(seed)
    names, widths = ["a", "b", "c", "d", "e"], (2, 3, 4, 8)
    counts = torch.randint(10, 1000, (len(names),), generator=generator).tolist()
    sizes = {name: {b: n * b for b in widths} for name, n in zip(names, counts, strict=True)}
    # Falling with the bits, but for noise, as they are.
    losses = {
        name: {b: 4.0**-b * float(torch.rand((), generator=generator)) for b in widths}
        for name in names
    }
    limit = 3.3 * sum(counts)
    found = chosen_widths(Room(sizes, limit), losses)
    size, loss = sums(sizes, losses, found)
    assert size <= limit
    others = [
        sums(sizes, losses, dict(zip(names, bits, strict=True)))
        for bits in itertools.product(widths, repeat=len(names))
    ]
    best = min(own for total, own in others if total <= limit)
    assert loss == pytest.approx(best, rel=1e-6)


def test_a_hundred_layers_are_chosen_within_the_limit():
    generator = torch.Generator().manual_seed(0)
    counts = (10 ** (3 + 3 * torch.rand(100, generator=generator))).long().tolist()
    widths = (2, 3, 4, 5, 6, 8)
    sizes = {str(i): {b: -(-n * b // 8) for b in widths} for i, n in enumerate(counts)}
    losses = {
        str(i): {b: 4.0**-b * float(torch.rand((), generator=generator)) for b in widths}
        for i in range(100)
    }
    limit = sum(own[3] for own in sizes.values())
    found = chosen_widths(Room(sizes, limit), losses)
    size, loss = sums(sizes, losses, found)
    assert 0.999 * limit < size <= limit
    assert loss < sums(sizes, losses, dict.fromkeys(sizes, 3))[1]


def test_of_equal_losses_the_smaller_size_is_chosen():
    sizes = {name: {2: 20, 8: 80} for name in "ab"}
    losses = {"a": {2: 0.5, 8: 0.5}, "b": {2: 1.0, 8: 0.0}}
    assert chosen_widths(Room(sizes, 1000), losses) == {"a": 2, "b": 8}
    nothing = {name: {2: 0.0, 8: 0.0} for name in "ab"}
    assert chosen_widths(Room(sizes, 1000), nothing) == {"a": 2, "b": 2}


def space(settings, **keep):
    recipe = Recipe(4, 4, keep=keep or None, ends=settings.ends_bits)
    return room(quantize(Calling(), recipe, (3, 12, 12)), recipe, settings)


def test_a_budget_leaves_what_all_else_does_not_take():
    student = calling()
    rest = packed_bytes(student) - (216 + 576 + 40) // 2
    found = space(Calibration(budget="700 B"))
    assert found.limit == 700 - rest
    assert found.sizes["first"] == {b: 27 * b for b in (2, 3, 4, 5, 6, 8)}
    smallest = (rest + 54 + 144 + 10) / 1000
    with pytest.raises(
        ConfigError, match=f"smallest size with widths from 2 bits is {smallest:.1f} kB"
    ):
        space(Calibration(budget="450 B"))
    assert set(space(Calibration(budget="900 B"), last=8).sizes) == {"first", "second"}
    assert set(space(Calibration(budget="900 B", ends_bits=8)).sizes) == {"second"}
    with pytest.raises(ConfigError, match="leave no layer whose width could be chosen"):
        space(Calibration(budget="900 B", ends_bits=8), second=2)


def test_a_mean_counts_the_layers_that_are_not_free():
    found = space(Calibration(average_bits=3.0), last=8)
    assert found.limit == 3 * (216 + 576 + 40) - 8 * 40
    assert found.sizes["second"][4] == 4 * 576
    lowest = (2 * (216 + 40) + 32 * 576) / (216 + 576 + 40)
    with pytest.raises(ConfigError, match=f"smallest mean with widths from 2 bits is {lowest:.3f}"):
        space(Calibration(average_bits=3.0), second=FLOAT)


def test_a_choice_is_a_recipe_that_weighs_what_was_asked_for():
    settings = Calibration(budget="700 B")
    place = space(settings)
    losses = {name: {bits: 4.0**-bits for bits in own} for name, own in place.sizes.items()}
    chosen = chosen_widths(place, losses)
    student = quantize(Calling(), Recipe(4, 4, keep=chosen), (3, 12, 12))
    assert 600 < packed_bytes(student) <= 700
    _, layout = pack(student)
    assert {name: own["bits"] for name, own in layout["weights"].items()} == {
        f"{name}.weight": bits for name, bits in chosen.items()
    }
