"""Every kind of layer and channel at every width: packed, as ONNX, and as a graph of integers."""

import copy
from collections import Counter

import onnx
import onnx_ir
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synq.config.calibration import Calibration
from synq.models.build import frozen
from synq.quantization.calibration import calibrate
from synq.quantization.convert import quantize, weight_quantizers
from synq.quantization.kernels import settle_biases
from synq.quantization.onnx import to_onnx
from synq.quantization.packed import pack, unpack
from synq.quantization.quantizers import Recipe
from synq.quantization.runtime import session_of
from synq.runtime.process import generator_for

SHAPE = (3, 8, 8)
OTHER = {2: 5, 3: 8, 4: 2, 5: 3, 8: 4}


class Odd(nn.Module):
    """Depthwise, grouped and transposed layers, call sites, a sum, channels of odd ranges."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False)
        self.transposed = nn.ConvTranspose2d(8, 6, 2, groups=2)
        self.last = nn.Linear(6, 7)
        with torch.no_grad():
            for layer in (self.first, self.grouped, self.last):
                layer.weight[0] += 0.7  # zero points outside the codes
                layer.weight[1] -= 0.7
                layer.weight[2] = 0  # dead
                layer.weight[3] = -0.25  # one value
            self.depthwise.weight[4] = 0.5
            self.transposed.weight[:, 0] += 0.5

    def forward(self, images):
        x = F.relu(self.norm(self.first(images)))
        x = x + F.relu6(self.grouped(F.relu(self.depthwise(x))))
        return self.last(F.relu(self.transposed(x)).mean((2, 3)))


def student_of(bits, **recipe):
    torch.manual_seed(0)
    images = torch.randn(16, *SHAPE, generator=generator_for(0))
    model = Odd()
    with torch.no_grad():
        model.train()(images)
    student = quantize(frozen(model), Recipe(bits, bits, **recipe), SHAPE).eval()
    calibrate(student, [images], Calibration(range_estimator="minmax"))
    settle_biases(student, SHAPE)
    return student.requires_grad_(False), images


RECIPES = [
    {},
    {"keep": "mixed"},
    {"scope": "everything"},
    {"scope": "everything", "keep": "mixed"},
]


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("bits", OTHER)
def test_both_files_have_the_student(tmp_path, bits, recipe):
    if "keep" in recipe:
        recipe = {**recipe, "keep": {"depthwise": OTHER[bits], "last": 8, "grouped": 32}}
    student, images = student_of(bits, **recipe)
    wanted = student(images)
    widths = {name: own.weight_quantizer.bits for name, own in weight_quantizers(student).items()}
    assert len(widths) == 5 - ("keep" in recipe)
    assert widths["depthwise"] == (OTHER[bits] if "keep" in recipe else bits)

    tensors, layout = pack(student)
    assert {own["bits"] for own in layout["weights"].values()} == {*widths.values()}
    other = copy.deepcopy(student)
    other.load_state_dict(unpack(tensors, layout), strict=False)
    assert torch.equal(other(images), wanted)

    integers = recipe.get("scope") == "everything"
    model = onnx_ir.to_proto(to_onnx(student, SHAPE, {}, integers=integers))
    onnx.checker.check_model(model)
    session = session_of(model.SerializeToString(), 0)
    found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    # A code at the border of two falls to either side.
    assert float((found - wanted).abs().median()) < 0.05 * float(wanted.std())
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["ConvTranspose"] == 1
    constants = {tensor.name for tensor in model.graph.initializer}
    weights = {
        output
        for node in model.graph.node
        for output in node.output
        if node.op_type == "DequantizeLinear" and node.input[0] in constants
    }
    made = {output: node for node in model.graph.node for output in node.output}
    layers = [n for n in model.graph.node if n.op_type in ("Conv", "ConvTranspose", "Gemm")]
    with_codes = sum(_from(node.input[1], made, weights, integers) for node in layers)
    assert with_codes == len(widths)


def _from(name, made, weights, integers):
    """Whether a layer's weight is codes: behind DequantizeLinear, or Transpose and that."""
    while name not in weights and name in made:
        if integers and made[name].op_type == "DequantizeLinear":
            return True  # of codes that are made when the file is loaded
        name = made[name].input[0]
    return name in weights
