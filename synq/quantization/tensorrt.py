"""What TensorRT asks of a quantized ONNX graph, checked on the graph; no TensorRT runs here.

The rules are those of NVIDIA's documentation, "Working with Quantized Types" and the operators of
its ONNX parser: codes are INT8, no grid has a zero point, scales are constants, an activation has
one scale and a weight one for each output channel, and a layer has codes for weight and input both.
"""

import re
from collections.abc import Iterator

import numpy
import onnx_ir
from onnx_ir import DataType, Node, Value

# Of the names of what the network itself has.
PREFIX = "network."
GRIDS = ("QuantizeLinear", "DequantizeLinear")
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
# TensorRT moves quantizers over them.
MOVING = {"Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool", "Identity"}


def violations(model: onnx_ir.Model) -> Iterator[str]:
    """What of a graph TensorRT does not take, node by node in the order of execution."""
    for node in model.graph:
        fault = ""
        if node.op_type in GRIDS:
            fault = _of_grid(node)
        elif node.op_type in LAYERS:
            fault = _of_layer(node)
        if fault:
            yield f"{node.op_type} {_name(node)} {fault}"


def _of_grid(node: Node) -> str:
    scale, zero = (_constant(node.inputs[place]) for place in (1, 2))
    kind = node.inputs[2].dtype if len(node.inputs) > 2 and node.inputs[2] is not None else None
    if kind != DataType.INT8:
        return f"has codes of {kind.name if kind else 'no type'}, and not INT8"
    if scale is None or zero is None:
        return "has a scale or zero point that is not constant"
    if zero.any():
        return "has zero points"
    if not (numpy.isfinite(scale).all() and (scale > 0).all()):
        return "has a scale that is not above 0"
    if scale.size > 1 and _constant(node.inputs[0]) is None:
        return "has several scales for an activation"
    return ""


def _of_layer(node: Node) -> str:
    input, weight = node.inputs[:2]
    if not _is_weight(weight):
        return ""  # a product of two activations
    source = weight.producer() if weight is not None else None
    of_weight = source is not None and source.op_type == "DequantizeLinear"
    if of_weight and not _dequantized(input):
        return "reads an input without codes"
    if _dequantized(input) and not of_weight:
        return "has a weight without codes of INT8"
    return ""


def _is_weight(value: Value | None) -> bool:
    """Whether a value is a constant, or made of one alone."""
    while value is not None:
        source = value.producer()
        if source is None:
            return value.const_value is not None
        value = source.inputs[0] if source.inputs else None
    return False


def _dequantized(value: Value | None) -> bool:
    source = value.producer() if value is not None else None
    while source is not None and source.op_type in MOVING:
        source = source.inputs[0].producer() if source.inputs[0] is not None else None
    return source is not None and source.op_type == "DequantizeLinear"


def _constant(value: Value | None) -> numpy.ndarray | None:
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy()


def _name(node: Node) -> str:
    """Where in the network a node is, by the name of a constant that it reads."""
    values = [value for value in node.inputs if value is not None]
    for value in [*values]:
        source = value.producer()
        if source is not None and source.op_type == "DequantizeLinear":
            values += [own for own in source.inputs if own is not None]
    names = [str(value.name) for value in values if value.const_value is not None]
    own = [name for name in names if name.startswith(PREFIX)]
    name = next(iter(own), str(node.outputs[0].name))
    return re.sub(r"\.(weight.*|bias|scale|zero_point)$", "", name.removeprefix(PREFIX))
