"""An ONNX graph of which an integer engine computes every layer: Q-DQ-Conv(+bias)-ReLU-Q.

What a student with ``scope: everything`` becomes. All passes but the bias are exact:

- A BatchNorm behind a convolution becomes a factor of the weight's scale, and of its sign by
  negated codes, and a part of the bias. Any other stays, between codes.
- A weight becomes ``code - zero point`` in INT8 with zero point 0, the one form for which there are
  kernels. That holds every grid of up to 7 bits, and one of 8 whose zero point is 0. With up to 4
  bits the file has the narrow codes, and operators that a runtime computes once, when it loads.
- A bias is INT32 in units of the product of the scales of input and weight, as kernels add it.
  Codes of fewer bits are multiplied into what INT8 has room for, so that those units are small.
- What moves values and changes none (pooling by the maximum, reshaping) is done with the codes.
"""

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy
import onnx_ir
from onnx_ir import DataType, Node, Value

from synq.quantization.kernels import Kernel, Line, kernel_of, line_of, whole_bias

# They move codes, or choose among them.
MOVING = {
    *("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Slice", "Split"),
    *("Identity", "Gather", "Pad", "DepthToSpace", "SpaceToDepth", "Expand"),
}
# Through these a quantizer behind them may go up: the operator before can then give codes.
PASSED = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze"}


def to_integers(model: onnx_ir.Model, opset_of_2_bits: bool) -> int:
    """Make the graph one of integers, in place; how many weights became codes without zero point.

    The graph is as ``to_onnx`` has it before types are narrowed: weights are DequantizeLinear of
    UINT8 or UINT16 by output channel.
    """
    graph = _Graph(model)
    graph.lift_quantizers()
    graph.sink_dequantizers()
    graph.make_clips_relu()
    narrow = {3: ml_dtypes.uint2} if opset_of_2_bits else {}
    found = 0
    for node in list(model.graph):
        if node.op_type in ("Conv", "Gemm") and graph.weight_of(node) is not None:
            found += graph.make_kernel(node, {**narrow, 15: ml_dtypes.uint4})
    return found


class _Graph:
    def __init__(self, model: onnx_ir.Model) -> None:
        self.graph, self.made = model.graph, 0

    def constant(self, array: Any, name: str) -> Value:
        self.made += 1
        tensor = onnx_ir.tensor(array, name=f"{name}.{self.made}")
        value = Value(
            name=tensor.name,
            shape=onnx_ir.Shape(array.shape),
            type=onnx_ir.TensorType(tensor.dtype),
            const_value=tensor,
        )
        self.graph.register_initializer(value)
        return value

    def insert(
        self, before: Node, kind: str, inputs: list[Value | None], **attributes: Any
    ) -> Value:
        self.made += 1
        given = [onnx_ir.Attr(k, onnx_ir.AttributeType.INT, v) for k, v in attributes.items()]
        output = Value(name=f"{kind}.{self.made}")
        node = Node("", kind, inputs, given, outputs=[output], name=f"{kind}.node.{self.made}")
        self.graph.insert_before(before, node)
        return output

    @staticmethod
    def weight_of(node: Node) -> Node | None:
        """The DequantizeLinear of a layer's weight."""
        source = node.inputs[1].producer() if node.inputs[1] is not None else None
        if source is None or source.op_type != "DequantizeLinear":
            return None
        return source if constant(source.inputs[0]) is not None else None

    def lift_quantizers(self) -> None:
        """QuantizeLinear before what only moves the values that it rounds."""
        for node in list(self.graph):
            following: Node | None = node
            while following is not None and following.op_type == "QuantizeLinear":
                following = self._lifted(following)

    def _lifted(self, node: Node) -> Node | None:
        """The quantizer one operator further up; None where it stays."""
        value, *grid = node.inputs
        mover = value.producer() if value is not None else None
        if value is None or mover is None or mover.op_type not in PASSED:
            return None
        if len(value.consumers()) > 1 or node.outputs[0].is_graph_output():
            return None
        codes = self.insert(mover, "QuantizeLinear", [mover.inputs[0], *grid])
        mover.replace_input_with(0, codes)
        onnx_ir.convenience.replace_all_uses_with(node.outputs[0], value)
        value.type = onnx_ir.TensorType(DataType.UINT8)
        self.graph.remove(node, safe=True)
        return codes.producer()

    def sink_dequantizers(self) -> None:
        """DequantizeLinear behind what moves codes as well as values."""
        for node in list(self.graph):
            if node.op_type not in MOVING or node.inputs[0] is None:
                continue
            source = node.inputs[0].producer()
            if source is None or source.op_type != "DequantizeLinear":
                continue
            codes, *grid = source.inputs
            shown = any(output.is_graph_output() for output in node.outputs)
            if shown or constant(codes) is not None or not self._pads_with_zero(node, grid[1]):
                continue
            node.replace_input_with(0, codes)
            for output in node.outputs:
                restored = Value(
                    name=f"{output.name}.values",
                    shape=output.shape,
                    type=onnx_ir.TensorType(DataType.FLOAT),
                )
                onnx_ir.convenience.replace_all_uses_with(output, restored)
                inputs = [output, *grid]
                self.graph.insert_after(
                    node, Node("", "DequantizeLinear", inputs, outputs=[restored])
                )
                output.type = onnx_ir.TensorType(DataType.UINT8)

    def make_clips_relu(self) -> None:
        """ReLU in place of a clip whose upper end the codes behind it have anyway (ReLU6)."""
        for node in list(self.graph):
            value, ends = node.outputs[0], [constant(end) for end in node.inputs[1:3]]
            if node.op_type != "Clip" or len(ends) < 2 or any(end is None for end in ends):
                continue
            readers = list(value.consumers())
            if float(ends[0]) != 0 or [reader.op_type for reader in readers] != ["QuantizeLinear"]:
                continue
            scale, zero = (constant(part) for part in readers[0].inputs[1:3])
            behind = list(readers[0].outputs[0].consumers())
            last = 255
            if len(behind) == 1 and behind[0].op_type == "Clip":
                last = int(constant(behind[0].inputs[2]))
            if numpy.rint(float(ends[1]) / float(scale)) + int(zero) >= last:
                relu = self.insert(node, "Relu", [node.inputs[0]])
                readers[0].replace_input_with(0, relu)
                self.graph.remove(node, safe=True)

    def _pads_with_zero(self, node: Node, zero: Value | None) -> bool:
        """Let padding be with the code of 0; False where it is with another value."""
        if node.op_type != "Pad" or node.attributes.get_string("mode", "constant") != "constant":
            return True
        given = node.inputs[2] if len(node.inputs) > 2 else None
        if given is not None and (constant(given) is None or float(constant(given)) != 0):
            return False
        if given is None:
            node.resize_inputs(3)
        node.replace_input_with(2, zero)
        return True

    def make_kernel(self, layer: Node, narrow: Mapping[int, Any]) -> int:
        """Let a layer have codes of weight and bias, its BatchNorm in them; 1 where it has."""
        source = self.weight_of(layer)
        assert source is not None
        codes, scales, zeros = (constant(value) for value in source.inputs)
        batchnorm = self._batchnorm(layer)
        line = Line(numpy.ones(len(scales)), numpy.zeros(len(scales)))
        if batchnorm is not None:
            epsilon = batchnorm.attributes.get_float("epsilon", 1e-5)
            weight, bias, mean, variance = (constant(value) for value in batchnorm.inputs[1:5])
            line = line_of(weight, bias, mean, variance, epsilon)
        given = layer.inputs[2] if len(layer.inputs) > 2 else None
        added = line.shift + (0.0 if given is None else line.factor * constant(given))
        grid = self._input_grid(layer)
        of_input = None if grid is None else constant(grid.inputs[1])
        kernel = kernel_of(codes, scales, zeros, line.factor, added, of_input)
        if kernel is None:
            return 0
        if batchnorm is not None:
            onnx_ir.convenience.replace_all_uses_with(batchnorm.outputs[0], layer.outputs[0])
            self.graph.remove(batchnorm, safe=True)
        name = str(source.inputs[0].name)  # type: ignore[union-attr]
        whole = self._weight(layer, kernel, narrow, name)
        unit = self.constant(kernel.scales, f"{name}.scales")
        zero = self.constant(numpy.zeros(len(scales), numpy.int8), f"{name}.zeros")
        dequantized = self.insert(layer, "DequantizeLinear", [whole, unit, zero], axis=0)
        layer.replace_input_with(1, dequantized)
        if given is not None or batchnorm is not None:
            self._bias(layer, added, kernel.scales)
        return 1

    @staticmethod
    def _batchnorm(layer: Node) -> Node | None:
        """The BatchNorm that alone reads a convolution."""
        consumers = layer.outputs[0].consumers()
        if layer.op_type != "Conv" or len(consumers) != 1 or layer.outputs[0].is_graph_output():
            return None
        (reader,) = consumers
        known = reader.op_type == "BatchNormalization"
        return reader if known and all(constant(v) is not None for v in reader.inputs[1:]) else None

    def _weight(self, layer: Node, kernel: Kernel, narrow: Mapping[int, Any], name: str) -> Value:
        """A kernel's weight as INT8, or as narrow codes that give it when the file is loaded."""
        whole = kernel.whole
        axes = (-1,) + (1,) * (whole.ndim - 1)
        finer = kernel.finer.reshape(axes)
        lowest = numpy.minimum(whole.reshape(len(whole), -1).min(1), 0).reshape(axes)
        for limit, kind in narrow.items():
            if (whole - lowest).max() <= limit:
                stored = self.constant((whole - lowest).astype(kind), name)
                offset = self.constant(-lowest.astype(numpy.float32), f"{name}.offsets")
                times = self.constant(finer.astype(numpy.float32), f"{name}.times")
                places = self.insert(layer, "Cast", [stored], to=int(DataType.FLOAT))
                moved = self.insert(layer, "Sub", [places, offset])
                spread = self.insert(layer, "Mul", [moved, times])
                return self.insert(layer, "Cast", [spread], to=int(DataType.INT8))
        return self.constant((whole * finer).astype(numpy.int8), name)

    def _bias(self, layer: Node, bias: Any, scales: Any) -> None:
        """An INT32 bias where the scale of the input is known, or else a float one."""
        grid = self._input_grid(layer)
        if grid is None:
            value = self.constant(bias.astype(numpy.float32), "bias")
        else:
            whole, unit = whole_bias(bias, scales, constant(grid.inputs[1]))
            value = self.insert(
                layer,
                "DequantizeLinear",
                [
                    self.constant(whole.astype(numpy.int32), "bias"),
                    self.constant(unit, "bias.scales"),
                    self.constant(numpy.zeros(len(unit), numpy.int32), "bias.zeros"),
                ],
                axis=0,
            )
        if len(layer.inputs) < 3:
            layer.resize_inputs(3)
        layer.replace_input_with(2, value)

    @staticmethod
    def _input_grid(layer: Node) -> Node | None:
        source = layer.inputs[0].producer() if layer.inputs[0] is not None else None
        known = source is not None and source.op_type == "DequantizeLinear"
        return source if known else None


def constant(value: Value | None) -> Any:
    """The array of an initializer; None for any other value."""
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()
