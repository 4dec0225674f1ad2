"""Packed students: the codes to the bit, a reader that knows numpy alone, and the student again."""

import copy
import importlib.util
import itertools
from pathlib import Path

import numpy
import pytest
import small_transformers
import torch
from test_layers import mobilenetv2
from torch import nn

from synq.config.calibration import Calibration
from synq.errors import ArtifactError, ModelError
from synq.io.artifacts import read_checkpoint, write_checkpoint
from synq.models.build import build, frozen
from synq.models.weights import load_weights
from synq.quantization.calibration import calibrate
from synq.quantization.convert import packed_bytes, quantize, weight_quantizers
from synq.quantization.packed import codes_in, pack, stream_of, unpack, weight_key
from synq.quantization.quantizers import Recipe
from synq.runtime.process import generator_for

READER = Path(__file__).parents[3] / "docs" / "read_packed.py"
BITS = [2, 3, 4, 5, 8]


def reader():
    spec = importlib.util.spec_from_file_location("read_packed", READER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Layers(nn.Module):
    """Layers of every kind, some of whose channels have no usual range."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=4, bias=False)
        self.transposed = nn.ConvTranspose2d(12, 6, 3, groups=2)
        self.other_transposed = nn.ConvTranspose2d(6, 5, 2)
        self.last = nn.Linear(5, 7)
        self.activation = nn.ReLU()
        self.again = self.activation
        generator = generator_for(1)
        with torch.no_grad():
            for layer in (self.first, self.grouped, self.last):
                weight = layer.weight
                weight[0] += 3  # zero points outside the codes
                weight[1] -= 3
                weight[2] = 0  # dead
                weight[3] = -0.25  # one value
                weight[4] = 1e4
                weight[5] = 0.1 + 1e-7 * torch.rand(weight[5].shape, generator=generator)
                weight[6] = -1e-6 * torch.rand(weight[6].shape, generator=generator)
            self.transposed.weight[:, 0] += 7
            self.transposed.weight[:, 1] = 0.5
            self.depthwise.weight[3] = 1e-9 * torch.randn(1, 3, 3, generator=generator)

    def forward(self, images):
        seen = self.activation(self.norm(self.first(images)))
        seen = self.again(self.grouped(self.activation(self.depthwise(seen))))
        return self.last(self.other_transposed(self.transposed(seen)).mean((2, 3)))


def whole(make, shape, recipe):
    torch.manual_seed(0)
    student = quantize(frozen(make()), recipe).eval()
    images = torch.randn(4, *shape, generator=generator_for(0))
    calibrate(student, [images], Calibration(range_estimator="minmax"))
    return student, images


def layers(bits, **more):
    return whole(Layers, (3, 12, 12), Recipe(bits, 4, **more))


NETWORKS = {
    "layers": (Layers, (3, 12, 12)),
    "mobilenetv2": (lambda: mobilenetv2()[0], (3, 64, 64)),
    "resnet20": (lambda: build("resnet20_cifar10", 10, 3, 32), (3, 32, 32)),
    "transformer": (small_transformers.small, small_transformers.SHAPE),
    "like timm's": (lambda: small_transformers.fused(False), small_transformers.SHAPE),
}
RECIPES = {
    **{str(bits): Recipe(bits, 4) for bits in BITS},
    "learned": Recipe(3, 4, weights="learned", activations="learned"),
    "ends": Recipe(3, 3, ends=8),
}


def written(student, path):
    tensors, layout = pack(student)
    write_checkpoint(path, "packed", tensors, layout)
    return path


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_a_reader_without_this_package_gives_what_the_student_computes_with(
    tmp_path, network, recipe
):
    student, _ = whole(*NETWORKS[network], RECIPES[recipe])
    arrays, record = reader().read_packed(written(student, tmp_path / "packed"))
    found = weight_quantizers(student)
    for name, layer in found.items():
        wanted = layer.quantized_weight().detach().numpy()
        given = arrays.pop(weight_key(name, layer))
        assert given.dtype == wanted.dtype
        numpy.testing.assert_array_equal(given, wanted)
    assert record["weights"].keys() <= {weight_key(*entry) for entry in found.items()}
    state = student.state_dict()
    for name, values in arrays.items():
        if not name.startswith("activations."):
            numpy.testing.assert_array_equal(values, state[name].numpy())


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("network", NETWORKS)
def test_an_unpacked_student_computes_the_same_bits(tmp_path, network, recipe):
    student, images = whole(*NETWORKS[network], RECIPES[recipe])
    other, _ = whole(*NETWORKS[network], RECIPES[recipe])
    with torch.no_grad():
        for tensor in (*other.parameters(), *other.buffers()):
            tensor.copy_(7)
    load_weights(other, unpack(*read_checkpoint(written(student, tmp_path / "p"), "packed")), "p")
    with torch.no_grad():
        wanted, found = student(images), other(images)
    assert torch.equal(wanted.view(torch.int32), found.view(torch.int32))
    for ours, theirs in zip(
        weight_quantizers(other).values(), weight_quantizers(student).values(), strict=True
    ):
        grids = [
            layer.weight_quantizer.grid(layer.by_output(layer.weight)) for layer in (ours, theirs)
        ]
        assert all(torch.equal(one, two) for one, two in zip(*(g[:3] for g in grids), strict=True))
    # And once more. Far from 0, several codes may have one value.
    tensors, layout = pack(student)
    again, layout_again = pack(other)
    assert layout == layout_again
    names = [name for name in tensors if network != "layers" or not name.endswith(".codes")]
    assert all(torch.equal(tensors[name], again[name]) for name in names)


@pytest.mark.parametrize("network", ["layers", "transformer"])
def test_nothing_is_packed_twice_of_a_learned_step(network):
    """A channel has its scale and its logarithm in float32, and a zero point of one byte."""
    student, _ = whole(*NETWORKS[network], RECIPES["learned"])
    tensors, layout = pack(student)
    state = student.state_dict()
    for name, layer in weight_quantizers(student).items():
        key = weight_key(name, layer)
        own = {n: t for n, t in tensors.items() if n.startswith((f"{key}.", f"{name}.weight_q"))}
        codes = own.pop(f"{key}.codes")
        assert len(codes) == -(-layer.weight.numel() * 3 // 8)
        assert sum(t.nbytes for t in own.values()) == 9 * layer.weight_quantizer.grids
    found = unpack(tensors, layout)
    grids = [n for n in state if n.endswith(("log_scale", "zero_point"))]
    assert all(torch.equal(found[name], state[name]) for name in grids)


def test_a_file_that_was_written_before_has_the_same_student(tmp_path):
    """Its scales are all in float64, and a learned step's zero points are there as they are."""
    student, _ = whole(*NETWORKS["layers"], RECIPES["learned"])
    tensors, layout = pack(student)
    wanted, (arrays, _) = (
        unpack(tensors, layout),
        reader().read_packed(written(student, tmp_path / "n")),
    )
    before = {n: t.double() if n.endswith(".scale") else t for n, t in tensors.items()}
    state = student.state_dict()
    before |= {n: t for n, t in state.items() if n.endswith("weight_quantizer.zero_point")}
    entries = layout["weights"].items()
    own = {n: {k: v for k, v in about.items() if k != "learned"} for n, about in entries}
    write_checkpoint(tmp_path / "b", "packed", before, {**layout, "weights": own})
    found = unpack(*read_checkpoint(tmp_path / "b", "packed"))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    given, _ = reader().read_packed(tmp_path / "b")
    assert all(numpy.array_equal(given[name], arrays[name]) for name in arrays)


def test_rounded_weights_alone_would_have_another_grid():
    """Why the ends of each channel are packed."""
    student, _ = whole(*NETWORKS["resnet20"], Recipe(4, 4))
    other = 0
    for layer in weight_quantizers(student).values():
        weight = layer.weight.detach()
        rounded = layer.weight_quantizer.rounded(weight)
        grids = [layer.weight_quantizer.grid(values) for values in (weight, rounded)]
        other += int((grids[0].inverse != grids[1].inverse).sum())
    assert other > 0


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("count", [1, 7, 8, 1001])
def test_a_stream_has_no_bit_too_many(bits, count):
    codes = torch.randint(2**bits, (count,), generator=generator_for(0)).byte()
    stream = stream_of(codes, bits)
    assert len(stream) == -(-count * bits // 8)
    whole_number = sum(int(code) << bits * place for place, code in enumerate(codes))
    assert bytes(stream.numpy()) == whole_number.to_bytes(len(stream), "little")
    assert torch.equal(codes_in(stream, bits, count), codes)


def test_large_weights_are_packed_by_pieces(monkeypatch):
    codes = torch.randint(8, (1001,), generator=generator_for(0)).byte()
    at_once = stream_of(codes, 3)
    monkeypatch.setattr("synq.quantization.packed.PIECE", 64)
    assert torch.equal(stream_of(codes, 3), at_once)
    assert torch.equal(codes_in(at_once, 3, 1001), codes)


def test_zero_points_are_whole_numbers_far_outside_the_codes():
    tensors, _ = pack(layers(4)[0])
    zero_point = tensors["first.weight.zero_point"]
    assert zero_point.dtype == torch.int64
    assert int(zero_point[0]) < 0
    assert int(zero_point[1]) > 15
    assert abs(int(zero_point[4])) > 2**32
    assert tensors["depthwise.weight.zero_point"].dtype == torch.int8


def test_the_grids_of_activations_are_whole():
    student, _ = layers(3)
    tensors, layout = pack(student)
    (name, again) = layout["activations"]
    grid = student.activation.quantizer.grid(torch.zeros(1))
    assert layout["activations"] == {name: 4, again: 4}  # one module of two names
    scales, zero_points = tensors["activations.scale"], tensors["activations.zero_point"]
    assert scales.tolist() == pytest.approx([grid.scale.item()] * 2, rel=1e-6)
    assert zero_points.tolist() == [grid.zero_point + grid.half] * 2


def test_weights_that_are_almost_one_value_come_back():
    generator = generator_for(0)
    for bits, size, spread in itertools.product(range(2, 9), (0.3, -900.0), (1e-8, 1e-7, 1e-6)):
        conv = nn.Conv2d(4, 3, 3, bias=False)
        values = torch.randn(conv.weight.shape, generator=generator)
        conv.weight.data = size + abs(size) * spread * values
        student = quantize(frozen(nn.Sequential(conv, nn.ReLU())), Recipe(bits, 8)).eval()
        other = copy.deepcopy(student)
        load_weights(other, unpack(*pack(student)), "packed")
        assert torch.equal(other[0].quantized_weight(), student[0].quantized_weight())


def test_what_is_not_the_record_s_is_refused():
    tensors, layout = pack(layers(3)[0])
    short = {**tensors, "first.weight.codes": tensors["first.weight.codes"][:-1]}
    without = {name: value for name, value in tensors.items() if name != "last.weight.scale"}
    for wrong in (short, without):
        with pytest.raises(ArtifactError, match="are not what its record says"):
            unpack(wrong, layout)
    with pytest.raises(ArtifactError, match="are not what its record says"):
        unpack(tensors, {**layout, "weights": 3})


def tied(recipe, make=nn.Conv2d):
    torch.manual_seed(0)
    first, second = make(8, 8, 3), make(8, 8, 3)
    second.weight = first.weight
    model = nn.Sequential(nn.Conv2d(3, 8, 1), first, nn.ReLU(), second, nn.Conv2d(8, 4, 1))
    return quantize(frozen(model), recipe).eval()


@pytest.mark.parametrize("weights", ["learned", "minmax"])
def test_layers_of_one_weight_have_one_grid_and_come_back(tmp_path, weights):
    recipe = Recipe(3, 4, weights=weights)
    student = tied(recipe)
    images = torch.randn(4, 3, 12, 12, generator=generator_for(0))
    calibrate(student, [images], Calibration())
    assert student[1].weight_quantizer is student[3].weight_quantizer
    other = tied(recipe)
    other.load_state_dict(unpack(*pack(student)), strict=True)
    assert torch.equal(other(images), student(images))
    weights = [layer.weight.numel() for layer in (student[0], student[1], student[4])]
    biases = 4 * (8 + 8 + 8 + 4)
    grids = 8 * (8 + 8 + 4) + 8 * 1
    assert packed_bytes(student) == sum(-(-count * 3 // 8) for count in weights) + biases + grids


def test_layers_of_one_weight_at_two_widths_are_refused():
    with pytest.raises(ModelError, match="1 and 3 have one weight in common"):
        tied(Recipe(5, 4, keep={"1": 2}))


def test_a_layer_that_would_not_come_back_is_refused(monkeypatch):
    student = tied(Recipe(5, 4))
    state = student.state_dict()
    other = {name: value + 1 for name, value in state.items()}
    monkeypatch.setattr("synq.quantization.packed.unpack", lambda *_: other)
    with pytest.raises(ModelError, match="cannot be packed"):
        pack(student)


def test_the_reader_is_short_and_needs_numpy_alone():
    lines = READER.read_text("utf-8").splitlines()
    assert len(lines) <= 60
    roots = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import", "from"))}
    assert roots == {"json", "math", "sys", "numpy"}
