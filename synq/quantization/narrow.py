"""The types of the codes of weights in an ONNX file: the narrowest that its runtime can read."""

from collections.abc import Collection
from typing import Any

import ml_dtypes
import numpy
import onnx_ir

# What may read a weight of less than 16 bits. ONNX Runtime makes MatMulNBits of MatMul, which
# rounds the activations to 8 bits once more.
READERS = {"Conv", "Gemm"}
# A transposed convolution reads its weight through these: its output channels are not the first
# axis. ONNX Runtime cannot transpose integers of less than 8 bits.
MOVES = {"Transpose", "Reshape"}
# What hands on the codes of its first input.
HANDING = {*MOVES, "MaxPool", "Flatten", "Squeeze", "Unsqueeze", "Slice", "Pad"}
# What ONNX Runtime takes into a convolution that it computes with integers.
TAKEN = {"Relu", "Clip", "LeakyRelu"}
# Where ONNX Runtime computes with integers, QGemm and QLinearConv, it reads no type of 2 bits: one
# that holds this code is none.
LEAST_OF_INTEGERS = 4


# Largest code -> the type that holds it.
TYPES: dict[int, Any] = {15: ml_dtypes.uint4, 255: numpy.uint8, 65_535: numpy.uint16}


def codes_of_weights(model: onnx_ir.Model) -> int:
    """How many weights are codes."""
    nodes = (node for node in model.graph if node.op_type == "DequantizeLinear")
    return sum(
        node.inputs[0] is not None and node.inputs[0].const_value is not None for node in nodes
    )


def narrow(model: onnx_ir.Model, *, two_bits: bool, eight_bits: bool) -> int:
    """Give the weights' codes the narrowest type that holds them; how many weights there are.

    ``two_bits`` says whether the runtime has a type of 2 bits, ``eight_bits`` whether some
    activation has 8.
    """
    types = {3: ml_dtypes.uint2, **TYPES} if two_bits else TYPES
    found = 0
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if source is None or source.const_value is None:
            continue
        if source.dtype in (onnx_ir.DataType.INT8, onnx_ir.DataType.INT32):
            continue
        codes, zeros = (_array(node.inputs[index]) for index in (0, 2))
        largest = max(int(codes.max()), int(zeros.max()))
        uses = node.outputs[0].consumers()
        readers = {use.op_type for use in uses}
        if readers <= MOVES and _followers(node, MOVES) <= {"ConvTranspose"}:
            largest = max(largest, 255)
        elif not readers <= READERS:
            largest = max(TYPES)
        # Behind 8 bits, which have no Clip, ONNX Runtime makes QGemm of Gemm.
        if ("Gemm" in readers and eight_bits) or any(map(_becomes_integers, uses)):
            largest = max(largest, LEAST_OF_INTEGERS)
        kind = next(kind for limit, kind in types.items() if largest <= limit)
        for index, values in ((0, codes), (2, zeros)):
            # A tensor a node: equal zero points of two layers are one until here.
            name = f"{source.name}.{'zeros.' if index else ''}{found}"
            tensor = onnx_ir.tensor(values.astype(kind), name=name)
            value = onnx_ir.Value(
                name=name,
                shape=onnx_ir.Shape(values.shape),
                type=onnx_ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            model.graph.register_initializer(value)
            node.replace_input_with(index, value)
        found += 1
    return found


def _becomes_integers(node: onnx_ir.Node) -> bool:
    """Whether ONNX Runtime makes QLinearConv of a convolution.

    It does where neither a BatchNorm layer nor the Clip that is behind codes of less than 8 bits is
    between what it reads and it, or between it and QuantizeLinear.
    """
    if node.op_type != "Conv":
        return False
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    while source is not None and source.op_type in HANDING and source.inputs[0] is not None:
        source = source.inputs[0].producer()
    if source is None or source.op_type != "DequantizeLinear":
        return False
    return "QuantizeLinear" in _followers(node, TAKEN | HANDING)


def _followers(node: onnx_ir.Node, passed: Collection[str]) -> set[str]:
    """What reads a node's output, as it is or behind nodes of ``passed``."""
    found = set()
    for use in node.outputs[0].consumers():
        found |= _followers(use, passed) if use.op_type in passed else {use.op_type}
    return found


def _array(value: onnx_ir.Value | None) -> Any:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
