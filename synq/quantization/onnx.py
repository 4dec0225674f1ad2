"""A student as ONNX, with the integer codes of its weights.

Weights are ``DequantizeLinear`` of UINT2, UINT4 or UINT8, the narrowest that holds their codes;
activations are ``QuantizeLinear`` to UINT8, ``DequantizeLinear``, and for less than 8 bits ``Clip``
to the grid's ends. Three things look like detours, and keep ONNX Runtime's default optimizations
from computing something else:

- BatchNorm stays a layer of its own. Folded into a bias, that bias is rounded to integers, and at 4
  bits every fifteenth answer changes.
- Clip stands behind DequantizeLinear. Between an activation and QuantizeLinear it lets them do the
  same.
- Linear layers see all tokens of all images as one matrix, Gemm. A MatMul of three dimensions with
  quantized weights becomes MatMulNBits, which rounds the activations to 8 bits once more.
"""

import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import ml_dtypes
import numpy
import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from synq.errors import ModelError, reason
from synq.quantization.convert import (
    QuantizedActivation,
    QuantizedWeight,
    channel_ranges,
    fake_quantize,
    quantize_to_codes,
    scale_and_zero,
)

OPSET = 21


# The first with 2-bit integers.
OPSET_OF_2_BITS = 25


# What may read a weight of less than 16 bits. ONNX Runtime makes MatMulNBits of MatMul, which
# rounds the activations to 8 bits once more, and it cannot transpose 2-bit integers.
READERS = {"Conv", "ConvTranspose", "Gemm"}


# Largest code -> the type that holds it.
TYPES: dict[int, Any] = {15: ml_dtypes.uint4, 255: numpy.uint8, 65_535: numpy.uint16}


def to_onnx(
    student: nn.Module, image_shape: tuple[int, int, int], record: Mapping[str, Any]
) -> onnx_ir.Model:
    """The student with input ``images`` ``[N, C, H, W]`` and output ``logits`` ``[N, classes]``.

    N is 1 where the network's code does not let it vary. ``record`` becomes the model's metadata.
    Raises ModelError where torch cannot export it.
    """
    network = copy.deepcopy(student).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    network.forward = partial(_flat, network.forward)
    opset = OPSET
    # What the forward reads: a network may have layers that it does not call.
    weights: set[nn.Module] = set()
    activations: set[nn.Module] = set()
    for module in network.modules():
        if isinstance(module, QuantizedWeight):
            _keep_codes(module, weights)
            opset = OPSET_OF_2_BITS if module.bits == 2 else opset
        elif isinstance(module, QuantizedActivation):
            _keep_grid(module, activations)
    model = _exported(network, image_shape, opset, batch=2)
    if batch_of(model):
        # The network's code takes the number of images for a constant.
        model = _exported(network, image_shape, opset, batch=1)
    types = {3: ml_dtypes.uint2, **TYPES} if opset == OPSET_OF_2_BITS else TYPES
    found = (_narrow(model, types), sum(node.op_type == "QuantizeLinear" for node in model.graph))
    if found[0] < len(weights) or found[1] < len(activations):
        raise ModelError(
            f"of {len(weights)} quantized weights and {len(activations)} activations the ONNX "
            f"graph has {found[0]} and {found[1]}; set export.format: none"
        )
    RemoveUnusedNodesPass()(model)
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props["synq"] = json.dumps(record, sort_keys=True)
    return model


class _FlatProducts(TorchFunctionMode):
    """Leads linear layers' products of tokens ``[N, L, C]`` through ``[N L, C]``."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not functional.linear or args[0].dim() == 2:
            return func(*args, **(kwargs or {}))
        input, *others = args
        product = func(input.flatten(0, -2), *others, **(kwargs or {}))
        return product.unflatten(0, input.shape[:-1])


def _flat(forward: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with _FlatProducts():
        return forward(images)


def batch_of(model: onnx_ir.Model) -> int:
    """How many images the model takes at a time; 0 for any number."""
    shape = model.graph.inputs[0].shape
    assert shape is not None
    return shape[0] if isinstance(shape[0], int) else 0


def _exported(
    network: nn.Module, image_shape: tuple[int, int, int], opset: int, batch: int
) -> onnx_ir.Model:
    try:
        program = torch.onnx.export(
            network,
            (torch.zeros(batch, *image_shape),),
            dynamo=True,
            opset_version=opset,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},) if batch > 1 else None,
            verbose=False,
        )
    except Exception as error:
        # What torch cannot export it says by an exception of any kind, and why by the first.
        first: BaseException = error
        while first.__cause__ is not None:
            first = first.__cause__
        raise ModelError(
            f"torch cannot export the network to ONNX ({reason(first)}); set export.format: none"
        ) from error
    assert program is not None
    return program.model


class Codes(NamedTuple):
    """A weight as ``(codes - zeros) * scales``; the latter two have an entry an output channel."""

    codes: Tensor
    scales: Tensor
    zeros: Tensor


def codes_of(weight: Tensor, bits: int) -> Codes:
    """The codes of a weight ``[out, ...]``, none of them and no zero point below 0."""
    lo, hi = (end.flatten() for end in channel_ranges(weight))
    axes = (-1,) + (1,) * (weight.dim() - 1)
    scale, zero = scale_and_zero(lo, hi, bits)
    half = 2 ** (bits - 1)
    codes = quantize_to_codes(weight, scale.view(axes), zero.view(axes), bits) + half
    zeros, scales = half - zero, 1 / scale
    # A channel without 0 in its range has a zero point beyond the codes: both move.
    moved = (-zeros).clamp_min(0)
    codes, zeros = codes + moved.view(axes), zeros + moved
    # A channel of one value has no scale of its own; that value is one.
    single = (lo == hi) & (lo != 0)
    codes = torch.where(single.view(axes), (lo > 0).float().view(axes), codes)
    zeros = torch.where(single, (lo < 0).float(), zeros)
    return Codes(codes, torch.where(single, lo.abs(), scales), zeros)


def _keep_codes(module: QuantizedWeight, read: set[nn.Module]) -> None:
    """Let the module take its weight from codes; not where those need more than 16 bits."""
    seen: list[Tensor] = []

    def see(weight: Tensor) -> Tensor:
        seen.append(weight.detach())
        return weight

    module.rounded = see  # type: ignore[method-assign]
    module.quantized_weight()
    weight = seen[0]
    codes, scales, zeros = codes_of(weight, module.bits)
    largest = max(float(codes.max()), float(zeros.max()))
    if not largest <= max(TYPES):
        values = fake_quantize(weight, *channel_ranges(weight), module.bits)
        module.rounded = lambda weight: values  # type: ignore[method-assign]
        return
    whole = torch.uint8 if largest <= 255 else torch.uint16
    module.register_buffer("codes", codes.to(whole))
    module.register_buffer("scales", scales)
    module.register_buffer("zeros", zeros.to(whole))
    module.rounded = partial(_dequantized, module, read)  # type: ignore[method-assign]


def _dequantized(module: nn.Module, read: set[nn.Module], _: Tensor) -> Tensor:
    read.add(module)
    codes, scales, zeros = (module.get_buffer(name) for name in Codes._fields)
    inputs = (codes, scales, zeros)
    return torch.onnx.ops.symbolic(
        "DequantizeLinear", inputs, {"axis": 0}, dtype=torch.float32, shape=codes.shape
    )


def _keep_grid(module: QuantizedActivation, read: set[nn.Module]) -> None:
    """Let the module round by operators of ONNX. Its range holds 0, as the observers set it."""
    scale, zero = scale_and_zero(module.lo, module.hi, module.bits)
    largest = 2**module.bits - 1
    # 8 bits, whatever the width: the type costs nothing, and every runtime knows it.
    zero = 2 ** (module.bits - 1) - zero
    module.register_buffer("step", 1 / scale)
    module.register_buffer("zero", zero.to(torch.uint8))
    ends = None if module.bits == 8 else (float(-zero / scale), float((largest - zero) / scale))
    module.rounded = partial(_on_grid, module, read, ends)  # type: ignore[method-assign]


def _on_grid(
    module: nn.Module, read: set[nn.Module], ends: tuple[float, float] | None, values: Tensor
) -> Tensor:
    read.add(module)
    grid = (module.get_buffer("step"), module.get_buffer("zero"))
    codes = torch.onnx.ops.symbolic(
        "QuantizeLinear", (values, *grid), dtype=torch.uint8, shape=values.shape
    )
    restored = torch.onnx.ops.symbolic(
        "DequantizeLinear", (codes, *grid), dtype=torch.float32, shape=values.shape
    )
    return restored.clamp(*ends) if ends else restored


def _narrow(model: onnx_ir.Model, types: Mapping[int, Any]) -> int:
    """Give the weights' codes the narrowest type that holds them; how many weights there are."""
    found = 0
    for node in model.graph:
        source = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if source is None or source.const_value is None:
            continue
        codes, zeros = (_array(node.inputs[index]) for index in (0, 2))
        largest = max(int(codes.max()), int(zeros.max()))
        if not {use.op_type for use in node.outputs[0].consumers()} <= READERS:
            largest = max(TYPES)
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


def _array(value: onnx_ir.Value | None) -> Any:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()
