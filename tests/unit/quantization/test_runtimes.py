"""Files for other runtimes: OpenVINO computes the student, and TensorRT's rules are kept."""

import sys

import numpy
import onnx
import onnx_ir
import pytest
import torch
from test_integers import SHAPE, Everything
from test_integers import student_of as calibrated
from test_onnx import run, student_of, transformer, types
from torch import nn

from synq.errors import ConfigError, ModelError
from synq.quantization.onnx import to_onnx
from synq.quantization.runtime import compared, first_difference, in_onnxruntime, in_openvino
from synq.quantization.tensorrt import violations


def saved(student, path, shape, target, **more):
    model = to_onnx(student, shape, {}, target=target, **more)
    onnx_ir.save(model, path)
    onnx.checker.check_model(path)
    return model


def largest_error(answers, wanted):
    return float((answers - wanted).abs().median() / wanted.std())


@pytest.mark.parametrize("bits", [(2, 2), (4, 4), (8, 8)])
@pytest.mark.parametrize("scope", ["everything", "calls"])
def test_openvino_computes_the_student(tmp_path, bits, scope):
    pytest.importorskip("openvino")
    student, images = calibrated(Everything, bits, scope=scope)
    path = tmp_path / "student.onnx"
    saved(student, path, SHAPE, "openvino", integers=scope == "everything")
    wanted = student(images)
    assert largest_error(in_onnxruntime(path, 1)(images), wanted) < 0.05
    # OpenVINO clips sums of products of 8 bits where a processor has no VNNI.
    clipped = bits == (8, 8) and scope == "everything"
    assert largest_error(in_openvino(path, 1)(images), wanted) < (0.2 if clipped else 0.05)
    assert "UINT2" not in types(onnx.load(path))
    found = compared(in_openvino(path, 1), student, [(images, wanted.argmax(1))])
    assert found.agreement == found.top1 > 80


def test_openvino_keeps_the_outermost_codes(tmp_path):
    """Of clips that end at the grid's own ends it loses some, by rounding towards 0."""
    pytest.importorskip("openvino")
    student, images = student_of(transformer, (8, 3))
    saved(student, tmp_path / "s.onnx", tuple(images.shape[1:]), "openvino")
    assert largest_error(in_openvino(tmp_path / "s.onnx", 1)(images), student(images)) < 0.05


def test_what_openvino_cannot_read_is_told_in_one_line(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    layers = [nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.Flatten()]
    student, _ = student_of(lambda: (nn.Sequential(*layers), (3, 4, 4)), (2, 8))
    path = tmp_path / "student.onnx"
    saved(student, path, (3, 4, 4), "onnxruntime")  # which has types of 2 bits
    with pytest.raises(ModelError, match=r"OpenVINO \S+ does not take student\.onnx") as caught:
        in_openvino(path, 1)
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ConfigError, match="is not installed; pip install openvino"):
        in_openvino(path, 1)


def arrays(model):
    return {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}


@pytest.mark.parametrize("scope", ["inputs", "everything"])
@pytest.mark.parametrize("bits", [(2, 7), (4, 4)])
def test_tensorrt_gets_signed_codes_without_zero_points(tmp_path, scope, bits):
    student, images = calibrated(Everything, bits, scope=scope, sum_bits=7)
    path = tmp_path / "student.onnx"
    model = saved(student, path, SHAPE, "tensorrt", integers=scope == "everything")
    assert list(violations(model)) == []
    constants = arrays(model)
    grids = [node for node in model.graph if node.op_type.endswith("tizeLinear")]
    zeros = [constants[node.inputs[2].name] for node in grids]
    assert all(zero.dtype == numpy.int8 and not zero.any() for zero in zeros)
    engine = in_onnxruntime(path, 1, int8=True)
    assert largest_error(engine(images), student(images)) < 0.05
    # Of integers alone ONNX Runtime makes kernels, which round the biases; TensorRT has them float.
    if scope == "inputs":
        before = first_difference(path, student, images)
        assert before is None or before.share < 1
    student.bn1.bias.add_(0.5)
    assert first_difference(path, student, images).name == "first.quantizer"


def test_grids_that_int8_does_not_hold_are_refused():
    student, _ = calibrated(Everything, (4, 8), scope="inputs", sum_bits=7)
    with pytest.raises(
        ModelError, match=r"does not hold the 8 bits of first\.quantizer; give it 7"
    ):
        to_onnx(student, SHAPE, {}, target="tensorrt")


def test_a_layer_has_codes_for_weight_and_input_both_or_for_none():
    student, _ = calibrated(Everything, (4, 4), scope="calls")
    found = list(violations(to_onnx(student, SHAPE, {}, target="tensorrt")))
    assert found[0] == "Conv conv1 reads an input without codes"
    student, _ = calibrated(Everything, (4, 4), scope="inputs", sum_bits=7, keep={"deep": 32})
    (alone,) = violations(to_onnx(student, SHAPE, {}, target="tensorrt"))
    assert alone == "Conv deep has a weight without codes of INT8"
    # A channel whose zero point is far outside of its codes has none of 8 bits.
    student, _ = calibrated(Everything, (4, 4), scope="inputs", sum_bits=7)
    student.deep.weight.data[0] = 30 + torch.rand(1, 3, 3)
    (far,) = violations(to_onnx(student, SHAPE, {}, target="tensorrt"))
    assert far == "Conv deep has a weight without codes of INT8"


def test_each_rule_of_a_grid_is_checked():
    layers = [nn.ReLU(), nn.Conv2d(3, 4, 1), nn.Flatten()]
    student, images = student_of(lambda: (nn.Sequential(*layers), (3, 4, 4)), (4, 4))
    good = to_onnx(student, (3, 4, 4), {}, target="tensorrt")
    assert list(violations(good)) == []
    assert run(onnx_ir.to_proto(good), images).shape == student(images).shape
    quantize = next(node for node in good.graph if node.op_type == "QuantizeLinear")
    scale, zero = quantize.inputs[1:3]
    for place, value, text in (
        (zero, numpy.array(3, numpy.int8), "has zero points"),
        (zero, numpy.array(0, numpy.uint8), "has codes of UINT8, and not INT8"),
        (scale, numpy.array(0, numpy.float32), "has a scale that is not above 0"),
        (scale, numpy.ones(3, numpy.float32), "has several scales for an activation"),
        (scale, None, "has a scale or zero point that is not constant"),
    ):
        kept, kind = place.const_value, place.type
        place.const_value = None if value is None else onnx_ir.tensor(value)
        if value is not None:
            place.type = onnx_ir.TensorType(place.const_value.dtype)
        first = next(violations(good))
        assert first.startswith("QuantizeLinear 0.quantizer")
        assert first.endswith(text)
        place.const_value, place.type = kept, kind
    assert list(violations(good)) == []


def test_a_graph_that_the_runtime_refuses_is_one_line(tmp_path):
    path = tmp_path / "broken.onnx"
    node = onnx.helper.make_node("NoSuchOperator", ["images"], ["logits"])
    ends = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1, 3])
        for name in ("images", "logits")
    ]
    graph = onnx.helper.make_graph([node], "broken", ends[:1], ends[1:])
    onnx.save(onnx.helper.make_model(graph), path)
    with pytest.raises(ModelError, match=r"does not take the network's graph .*format: none$"):
        in_onnxruntime(path, 1)
