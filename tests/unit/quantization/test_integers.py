"""Students of which every tensor has codes: the graph is one of integers, and computes the same."""

import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
from test_onnx import run
from torch import nn
from torch.nn import functional as F

from synq.config.calibration import Calibration
from synq.models.build import frozen
from synq.quantization.calibration import calibrate
from synq.quantization.convert import quantize
from synq.quantization.kernels import is_integer, settle_biases
from synq.quantization.onnx import to_onnx
from synq.quantization.packed import pack, unpack
from synq.quantization.quantizers import Recipe
from synq.quantization.runtime import compared, first_difference, in_onnxruntime
from synq.runtime.process import generator_for

SHAPE = (3, 12, 12)


class Everything(nn.Module):
    """Each kind of layer, sum and pool once, with BatchNorm whose factors have both signs."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.BatchNorm2d(8)
        self.group, self.bn3 = nn.Conv2d(8, 8, 3, padding=1, groups=2), nn.BatchNorm2d(8)
        self.first, self.relu6, self.last = nn.ReLU(inplace=True), nn.ReLU6(), nn.ReLU()
        self.gate, self.sigmoid = nn.Conv2d(8, 8, 1), nn.Sigmoid()
        self.side = nn.Conv2d(8, 4, 1)
        self.pool = nn.MaxPool2d(2)
        self.linear = nn.Linear(12, 10)

    def forward(self, images):
        x = self.first(self.bn1(self.conv1(images)))
        y = self.relu6(self.bn2(self.deep(x)))
        y = self.bn3(self.group(y))
        y = y * self.sigmoid(self.gate(F.adaptive_avg_pool2d(y, 1)))
        x = self.last(x + y)
        x = torch.cat([x, self.side(x)], 1)
        x = self.pool(x)
        return self.linear(x.mean((2, 3)))


LAYERS = 6


class Plain(nn.Module):
    """A pre-activation residual block: a sum is read by a BatchNorm and by the next sum."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.bn = nn.BatchNorm2d(6)
        self.out = nn.Linear(6 * 9, 10)

    def forward(self, images):
        x = self.conv1(images)
        y = self.conv2(F.relu(self.bn(x)))
        y += x
        return self.out(F.max_pool2d(y, 4).flatten(1))


def student_of(make, bits, *, settled=True, scope="everything", **recipe):
    torch.manual_seed(0)
    model = make()
    images = torch.randn(32, *SHAPE, generator=generator_for(0))
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
            layer.momentum = 1.0
    with torch.no_grad():
        model.train()(images)
    student = quantize(frozen(model), Recipe(*bits, scope=scope, **recipe), SHAPE).eval()
    calibrate(student, [images], Calibration(range_estimator="minmax"))
    if settled:
        settle_biases(student, SHAPE)
    return student.requires_grad_(False), images


def exported(student):
    proto = onnx_ir.to_proto(to_onnx(student, SHAPE, {}, integers=True))
    onnx.checker.check_model(proto)
    return proto


def read_codes(proto):
    """Kind -> for each layer and sum, the operators that give what it reads."""
    made = {output: node for node in proto.graph.node for output in node.output}
    constants = {tensor.name for tensor in proto.graph.initializer}
    found = {}
    for node in proto.graph.node:
        # Sums and products of constants are done when the file is loaded.
        inputs = [name for name in node.input if name and name not in constants]
        if node.op_type in ("Conv", "Gemm", "Add", "Concat") and inputs:
            kinds = [made[name].op_type if name in made else "image" for name in inputs]
            found.setdefault(node.op_type, []).append(kinds)
    return found


@pytest.mark.parametrize("make", [Everything, Plain])
@pytest.mark.parametrize("bits", [(2, 2), (3, 3), (4, 4), (5, 5), (8, 8), (2, 8), (8, 4)])
def test_every_layer_and_sum_reads_codes_and_the_runtime_computes_the_student(make, bits):
    student, images = student_of(make, bits)
    proto = exported(student)
    found = read_codes(proto)
    assert {kind for kinds in found.values() for own in kinds for kind in own} == {
        "DequantizeLinear"
    }
    assert len(found["Conv"]) + len(found["Gemm"]) == (LAYERS if make is Everything else 3)
    assert all(len(kinds) == 3 for kind in ("Conv", "Gemm") for kinds in found[kind] if kinds[2:])
    assert len(found["Add"]) == 1
    wanted, answer = student(images), run(proto, images)
    # On a grid of 8 bits, so that most are the very same number.
    assert float((answer - wanted).abs().median()) < 0.05 * float(wanted.std())
    steps = wanted.unique()
    assert len(steps) <= 256


class Joined(nn.Module):
    """Two activations that are joined for a layer alone, as in SqueezeNet, and a third beside."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Conv2d(SHAPE[0], 3, 1), nn.Conv2d(SHAPE[0], 5, 3, padding=1)
        self.three, self.out = nn.Conv2d(8, 4, 3, padding=1), nn.Linear(4, 10)

    def forward(self, images):
        both = torch.cat([F.relu(self.one(images)), F.relu(10 * self.two(images))], 1)
        return self.out(F.relu(self.three(both)).mean((2, 3)))


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
def test_what_is_joined_for_a_layer_alone_has_one_grid(bits):
    student, images = student_of(Joined, bits)
    proto = exported(student)
    found = read_codes(proto)
    # The convolution behind it reads codes of one grid, and not floats of two.
    assert found["Conv"][2][0] == "DequantizeLinear"
    assert found["Concat"] == [["DequantizeLinear", "DequantizeLinear"]]
    wanted, answer = student(images), run(proto, images)
    assert float((answer - wanted).abs().median()) < 0.05 * float(wanted.std())


def test_batchnorm_is_in_the_kernels_and_stays_where_no_convolution_is_before_it():
    counts = {}
    for make in (Everything, Plain):
        student, _ = student_of(make, (4, 4))
        counts[make] = [node.op_type for node in exported(student).graph.node]
    assert "BatchNormalization" not in counts[Everything]
    assert counts[Plain].count("BatchNormalization") == 1


@pytest.mark.parametrize("bits", [(8, 8), (4, 4), (2, 2)])
def test_the_runtime_has_integer_kernels_for_it_by_default(bits, tmp_path):
    student, _ = student_of(Everything, bits)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(
        exported(student).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    kinds = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert kinds.count("QLinearConv") >= 3
    assert kinds.count("QLinearAdd") == 1
    assert "FusedConv" not in kinds


def test_weights_of_8_bits_have_no_zero_point():
    for quantizer in ("minmax", "learned"):
        student, _ = student_of(Everything, (8, 8), weights=quantizer)
        grid = student.conv1.weight_quantizer.grid(student.conv1.weight)
        assert not grid.zero_point.any()
        codes = grid.codes(student.conv1.weight.detach())
        assert codes.min() >= -127
        assert float(codes.abs().max()) == 127
        names = {tensor.name: tensor for tensor in exported(student).graph.initializer}
        whole = {tensor.data_type for name, tensor in names.items() if name.startswith("network")}
        assert onnx.TensorProto.UINT8 in whole  # activations
        assert onnx.TensorProto.INT8 in {tensor.data_type for tensor in names.values()}


def test_settled_biases_are_whole_and_stay():
    student, images = student_of(Everything, (4, 4), settled=False)
    assert is_integer(student)
    before = student(images)
    settle_biases(student, SHAPE)
    biases = [value.clone() for name, value in student.named_parameters() if "bias" in name]
    assert not torch.equal(before, student(images))
    settle_biases(student, SHAPE)
    again = [value for name, value in student.named_parameters() if "bias" in name]
    for one, other in zip(biases, again, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    assert not student.training


def test_biases_of_other_students_stay_as_they_are():
    student = quantize(frozen(Everything()), Recipe(4, 4, scope="inputs"), SHAPE)
    before = {name: value.clone() for name, value in student.state_dict().items()}
    settle_biases(student, SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())


@pytest.mark.parametrize("scope", ["everything", "calls"])
def test_the_first_quantizer_whose_codes_differ_is_named(scope, tmp_path):
    student, images = student_of(Everything, (4, 4), scope=scope)
    path = tmp_path / "student.onnx"
    onnx_ir.save(to_onnx(student, SHAPE, {}, integers=scope == "everything"), path)
    labels = student(images).argmax(1)
    found = compared(in_onnxruntime(path, 1), student, [(images, labels)])
    assert (found.images, found.top1_in_torch) == (32, 100)
    assert found.agreement == found.top1
    before = first_difference(path, student, images)
    # A code at the border of two falls to either side.
    assert before is None or before.share < 1
    student.bn2.bias.add_(0.5)
    after = first_difference(path, student, images)
    assert after.name in ("relu6.quantizer", getattr(before, "name", ""))
    if before is None:
        assert after.share > 10
    student.linear.bias.add_(torch.arange(10.0) * 100)
    parted = compared(in_onnxruntime(path, 1), student, [(images, labels)])
    assert parted.agreement < 100
    assert len(parted.parted) == 8


@pytest.mark.parametrize("weights", ["minmax", "learned"])
@pytest.mark.parametrize("bits", [(8, 8), (3, 4)])
def test_a_packed_student_of_everything_is_the_same(bits, weights):
    student, images = student_of(Everything, bits, weights=weights)
    other, _ = student_of(Everything, bits, settled=False, weights=weights)
    other.load_state_dict(unpack(*pack(student)), strict=False)
    assert torch.equal(other(images), student(images))


class Dead(nn.Module):
    """A channel of (nearly) no weights, whose BatchNorm says what it is all the same."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.out = nn.Linear(8, 10)

    def forward(self, images):
        x = F.relu(self.bn1(self.conv1(images)))
        return self.out(F.relu(self.bn2(self.conv2(x))).mean((2, 3)))


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-9, 1e-6, 1e-3])
def test_a_channel_of_vanishing_weights_keeps_what_batchnorm_adds(bits, size):
    student, images = student_of(Dead, bits, settled=False)
    with torch.no_grad():
        student.conv2.weight[0] *= size
        norm = student.bn2
        norm.weight[0], norm.bias[0] = 1.0, 2.0
        norm.running_mean[0], norm.running_var[0] = 0.0, 1e-30
        wanted = student(images)
    settle_biases(student, SHAPE)
    with torch.no_grad():
        found = student(images)
    assert student.bn2.bias[0].item() == pytest.approx(2.0, abs=0.02)
    assert (found - wanted).abs().max() < 0.05 * wanted.abs().max()
    seen = run(exported(student), images)
    # A rounding at a border moves a code of the last sum.
    assert (seen - found).abs().max() < 0.02 * found.abs().max()
