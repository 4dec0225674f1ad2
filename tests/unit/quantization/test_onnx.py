"""Students as ONNX: the codes are exact, and ONNX Runtime computes what torch does."""

import json
from collections import Counter

import numpy
import onnx
import onnx_ir
import pytest
import small_transformers
import torch
from onnx.reference import ReferenceEvaluator
from test_layers import Gated, mobilenetv2
from torch import nn

from synq.config.calibration import Calibration
from synq.errors import ModelError
from synq.models.build import build, frozen
from synq.quantization import onnx as exporting
from synq.quantization.affine import channel_ranges, fake_quantize, grid_of_range
from synq.quantization.calibration import calibrate
from synq.quantization.convert import activation_quantizers, quantize
from synq.quantization.onnx import batch_of, codes_of, to_onnx
from synq.quantization.quantizers import Recipe
from synq.quantization.runtime import session_of
from synq.runtime.process import generator_for

ONNX_TYPES = {2: "UINT2", 3: "UINT4", 4: "UINT4", 5: "UINT8", 8: "UINT8"}


def student_of(make, bits, scope="calls"):
    torch.manual_seed(0)
    model, shape = make()
    images = torch.randn(16, *shape, generator=generator_for(0))
    student = quantize(frozen(model), Recipe(*bits, scope=scope), shape).eval()
    calibrate(student, [images], Calibration(range_estimator="minmax"))
    return student.requires_grad_(False), images


def residual():
    return build("resnet20_cifar10", 10, 3, 32), (3, 32, 32)


def normalised():
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3)]
    layers += [nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)]
    return nn.Sequential(*layers), (3, 12, 12)


def gated():
    return Gated(), (1, 28, 28)


def transformer():
    return small_transformers.small(), small_transformers.SHAPE


def like_timms():
    return small_transformers.fused(False), small_transformers.SHAPE


def attending():
    return small_transformers.blocks_that_attend(), small_transformers.SHAPE


def run(model, images):
    session = session_of(model.SerializeToString(), 0)
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def types(model):
    """How many weights there are of each type of codes."""
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    nodes = [n for n in model.graph.node if n.op_type == "DequantizeLinear"]
    found = [kinds[node.input[0]] for node in nodes if node.input[0] in kinds]
    return Counter(onnx.TensorProto.DataType.Name(kind) for kind in found)


def test_codes_give_the_quantized_weight():
    generator = generator_for(0)
    for bits in range(2, 9):
        weight = torch.randn(6, 4, 3, 3, generator=generator)
        weight[1] += 3  # all positive
        weight[2] -= 3
        weight[3] = 0  # dead
        weight[4] = -0.25  # one value
        weight[5] = 0.75
        codes, scales, zeros = codes_of(weight, grid_of_range(*channel_ranges(weight), bits))
        axes = (-1, 1, 1, 1)
        restored = (codes - zeros.view(axes)) * scales.view(axes)
        wanted = fake_quantize(weight, grid_of_range(*channel_ranges(weight), bits))
        torch.testing.assert_close(restored, wanted, rtol=1e-5, atol=1e-7)
        for whole in (codes, zeros):
            assert torch.equal(whole, whole.round())
            assert whole.min() >= 0
        assert codes[0].max() <= 2**bits - 1


@pytest.mark.parametrize(
    ("make", "bits"),
    [
        *((gated, bits) for bits in [(2, 2), (3, 3), (4, 4), (5, 8), (8, 8)]),
        *((transformer, bits) for bits in [(2, 4), (3, 3), (4, 4), (5, 5), (8, 8)]),
        (like_timms, (3, 4)),
        (attending, (4, 4)),
        (residual, (4, 4)),
        (mobilenetv2, (4, 4)),
    ],
)
def test_the_runtime_computes_the_student(make, bits):
    student, images = student_of(make, bits)
    exported = onnx_ir.to_proto(to_onnx(student, tuple(images.shape[1:]), {}))
    onnx.checker.check_model(exported)
    for batch in (images, images[:1]):
        assert run(exported, batch).shape == student(batch).shape
    # An activation at the border of two codes falls to either side, and random weights carry that
    # far: the error is nothing but such steps, far under that of another code for every one.
    wanted, found = student(images), run(exported, images)
    assert float((found - wanted).abs().median()) < 0.05 * float(wanted.std())
    # A transposed convolution's channels are not its first axis, and a runtime moves 8 bits.
    assert set(types(exported)) <= {ONNX_TYPES[bits[0]], "UINT8"}
    assert types(exported)[ONNX_TYPES[bits[0]]] >= 2
    operators = Counter(node.op_type for node in exported.graph.node)
    # Queries, keys and values are of one tensor, and round it to one grid.
    names = [
        name
        for name in activation_quantizers(student)
        if not name.endswith((".k.input", ".v.input"))
    ]
    quantizers = len(names)
    assert operators["QuantizeLinear"] >= quantizers
    assert operators["Clip"] >= (quantizers if bits[1] < 8 else 0)


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_linear_layers_of_few_bits_run_behind_activations_of_eight(bits):
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU()]
    make = [
        lambda: (nn.Sequential(*layers, nn.Linear(8, 5)), (3, 8, 8)),
        transformer,
    ]
    for network, linear in zip(make, (2, 9), strict=True):
        student, images = student_of(network, (bits, 8))
        exported = onnx_ir.to_proto(to_onnx(student, tuple(images.shape[1:]), {}))
        error = (run(exported, images) - student(images)).abs().median()
        assert float(error) < 0.05 * float(student(images).std())
        assert types(exported) == Counter([ONNX_TYPES[bits], *["UINT4"] * linear])


def without_batchnorm():
    """A stem with BatchNorm, and convolutions without between two activations."""
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU()]
    layers += [nn.MaxPool2d(2), nn.Conv2d(4, 4, 1), nn.LeakyReLU(), nn.Conv2d(4, 4, 1)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)), (3, 12, 12)


def batchnorm_behind():
    def block(inputs, outputs):
        return nn.Conv2d(inputs, outputs, 3), nn.ReLU(), nn.BatchNorm2d(outputs)

    return nn.Sequential(*block(3, 4), *block(4, 4), nn.Flatten(), nn.Linear(256, 5)), (3, 12, 12)


# ONNX Runtime makes integer convolutions of some, and these have no weights of 2 bits.
@pytest.mark.parametrize(
    ("make", "bits", "scope", "narrow"),
    [
        # All but the one in front of BatchNorm, and the linear layer.
        (without_batchnorm, (2, 8), "calls", {"UINT2": 1, "UINT4": 4}),
        (without_batchnorm, (2, 8), "inputs", {"UINT2": 1, "UINT4": 4}),
        (without_batchnorm, (2, 2), "calls", {"UINT2": 5}),
        (batchnorm_behind, (2, 2), "inputs", {"UINT2": 1, "UINT4": 2}),
        (batchnorm_behind, (2, 2), "calls", {"UINT2": 3}),
        (batchnorm_behind, (3, 8), "inputs", {"UINT4": 3}),
    ],
)
def test_two_bits_are_not_for_a_convolution_that_a_runtime_computes_with_integers(
    make, bits, scope, narrow
):
    student, images = student_of(make, bits, scope)
    exported = onnx_ir.to_proto(to_onnx(student, tuple(images.shape[1:]), {}))
    assert types(exported) == Counter(narrow)
    wanted, found = student(images), run(exported, images)
    assert float((found - wanted).abs().median()) < 0.05 * float(wanted.std())


def test_batchnorm_stays_and_two_bits_need_a_newer_opset():
    counts = {}
    for bits in (2, 4):
        student, images = student_of(normalised, (bits, bits))
        model = to_onnx(student, tuple(images.shape[1:]), {"bits": bits})
        proto = onnx_ir.to_proto(model)
        counts[bits] = model.opset_imports[""]
        assert Counter(n.op_type for n in proto.graph.node)["BatchNormalization"] == 2
        assert types(proto) == {ONNX_TYPES[bits]: 3}
        (metadata,) = proto.metadata_props
        assert (metadata.key, json.loads(metadata.value)) == ("synq", {"bits": bits})
    assert batch_of(model) == 0
    assert counts == {2: 25, 4: 21}


def test_the_standards_own_evaluator_agrees():
    layers = [nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 5, 3)]
    student, images = student_of(lambda: (nn.Sequential(*layers), (3, 9, 9)), (3, 4))
    exported = onnx_ir.to_proto(to_onnx(student, (3, 9, 9), {}))
    (found,) = ReferenceEvaluator(exported).run(None, {"images": images.numpy()})
    numpy.testing.assert_allclose(found, student(images).numpy(), rtol=1e-4, atol=1e-4)


def test_the_same_student_gives_the_same_bytes_and_is_left_as_it_was():
    student, images = student_of(gated, (4, 4))
    before = {name: value.clone() for name, value in student.state_dict().items()}
    one, other = (
        onnx_ir.to_proto(to_onnx(student, tuple(images.shape[1:]), {})).SerializeToString()
        for _ in range(2)
    )
    assert one == other
    assert student.state_dict().keys() == before.keys()
    assert all("rounded" not in vars(module) for module in student.modules())


def test_weights_far_from_zero_need_more_bits_or_stay_floats():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.ReLU(), nn.Conv2d(5, 6, 1)]
    model = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model[2].weight.data.abs_().add_(30)  # zero points of several hundred
    model[4].weight.data.mul_(1e-3).add_(30)  # and of a hundred thousand
    student, images = student_of(lambda: (model, (3, 8, 8)), (4, 8))
    exported = onnx_ir.to_proto(to_onnx(student, (3, 8, 8), {}))
    assert types(exported) == {"UINT4": 1, "UINT16": 1}
    torch.testing.assert_close(run(exported, images), student(images), rtol=1e-2, atol=1e-2)


class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten())

    def forward(self, images):
        return self.layers(images) * (2 if images.sum() > 0 else 1)


def test_a_network_that_torch_cannot_export_is_refused_in_one_line():
    student, images = student_of(lambda: (Undecided(), (3, 8, 8)), (4, 4))
    with pytest.raises(ModelError, match=r"cannot export .*; set export\.format: none") as caught:
        to_onnx(student, tuple(images.shape[1:]), {})
    assert "\n" not in str(caught.value)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))

    def forward(self, images):
        return self.layers(images).reshape(len(images), -1)


def test_a_network_with_a_fixed_batch_takes_one_image_at_a_time():
    student, images = student_of(lambda: (Counting(), (3, 8, 8)), (4, 8))
    model = to_onnx(student, (3, 8, 8), {})
    assert batch_of(model) == 1
    found = run(onnx_ir.to_proto(model), images[:1])
    torch.testing.assert_close(found, student(images[:1]), rtol=1e-3, atol=1e-3)


class Spare(nn.Module):
    """An auxiliary head that is for training alone, as GoogLeNet's."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
        self.spare = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())

    def forward(self, images):
        return self.layers(images).flatten(1)


@pytest.mark.parametrize("tied", [True, False], ids=["one weight", "equal weights"])
def test_layers_may_share_a_weight_or_have_equal_ones(tied):
    def shared():
        first, second = nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 3)
        if tied:
            second.weight = first.weight
        else:
            second.load_state_dict(first.state_dict())
        layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), first, nn.ReLU(), second, nn.AdaptiveAvgPool2d(1)]
        return nn.Sequential(*layers, nn.Flatten()), (3, 12, 12)

    student, images = student_of(shared, (4, 8))
    found = run(onnx_ir.to_proto(to_onnx(student, (3, 12, 12), {})), images)
    assert torch.allclose(found, student(images), atol=1e-3)


def test_layers_that_the_forward_does_not_call_are_left_out():
    student, _ = student_of(lambda: (Spare(), (3, 8, 8)), (4, 8))
    exported = onnx_ir.to_proto(to_onnx(student, (3, 8, 8), {}))
    assert types(exported) == {"UINT4": 2}
    assert not [tensor.name for tensor in exported.graph.initializer if "spare" in tensor.name]


class Heads(Spare):
    """With a second head, of layers and an activation of its own, that the answer is not of."""

    def __init__(self):
        super().__init__()
        self.other, self.relu = nn.Linear(1, 3), nn.ReLU()

    def forward(self, images):
        self.relu(self.other(images.mean((2, 3))[:, :1]))
        return super().forward(images)


def test_what_other_outputs_alone_come_from_is_left_out():
    one, images = student_of(lambda: (Spare(), (3, 8, 8)), (4, 4))
    two, _ = student_of(lambda: (Heads(), (3, 8, 8)), (4, 4))
    two.load_state_dict(one.state_dict(), strict=False)
    wanted, found = (onnx_ir.to_proto(to_onnx(each, (3, 8, 8), {})) for each in (one, two))
    assert types(wanted) == types(found)
    torch.testing.assert_close(run(found, images), run(wanted, images))


def test_a_weight_that_the_graph_lost_is_no_success(monkeypatch):
    student, _ = student_of(lambda: (Spare(), (3, 8, 8)), (4, 8))
    monkeypatch.setattr(exporting, "narrow", lambda *_, **__: 1)
    with pytest.raises(ModelError, match=r"of 2 quantized weights and 1 activations .* 1 and 1"):
        to_onnx(student, (3, 8, 8), {})
