"""A student as ONNX, with the integer codes of its weights.

Weights are ``DequantizeLinear`` of UINT2, UINT4 or UINT8, the narrowest that holds their codes
(UINT8 of transposed convolutions, UINT16 where neither a convolution nor Gemm reads them);
activations are ``QuantizeLinear`` to UINT8, ``DequantizeLinear``, and for less than 8 bits ``Clip``
to the grid's ends. A student of which every tensor has codes is written in another way
(``integers``). Of all others three things look like detours, and keep ONNX Runtime's default
optimizations from computing something else:

- BatchNorm stays a layer of its own. Folded into a bias, that bias is rounded to integers, and at 4
  bits every fifteenth answer changes.
- Clip stands behind DequantizeLinear. Between an activation and QuantizeLinear it lets them do the
  same.
- Linear layers see all tokens of all images as one matrix, Gemm. A MatMul of three dimensions with
  quantized weights becomes MatMulNBits, which rounds the activations to 8 bits once more.

Other runtimes take other types (``TARGETS``). For TensorRT all codes are INT8 without zero point,
and Clip stands before QuantizeLinear, since a layer has to read DequantizeLinear itself.
"""

import copy
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import onnx_ir
import torch
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from synq.errors import ModelError, reason
from synq.quantization.convert import activation_quantizers, weight_quantizers
from synq.quantization.integers import to_integers
from synq.quantization.kernels import Codes, codes_of
from synq.quantization.narrow import codes_of_weights, narrow
from synq.quantization.quantizers import Quantizer

OPSET = 21


# The first with 2-bit integers.
OPSET_OF_2_BITS = 25


class Target(NamedTuple):
    """What a runtime takes: types of 2 bits, and zero points."""

    two_bits: bool = False
    zero_points: bool = True


# By the names that the setting ``export.target`` has.
TARGETS = {
    "onnxruntime": Target(two_bits=True),
    "openvino": Target(),
    "tensorrt": Target(zero_points=False),
}


# Clips are so much wider than the grid's ends. OpenVINO clips the codes, at ends that it rounds
# towards 0: one that is a last digit too near costs the outermost code.
WIDER = 1 + 2**-21


def to_onnx(
    student: nn.Module,
    image_shape: tuple[int, int, int],
    record: Mapping[str, Any],
    *,
    integers: bool = False,
    target: str = "onnxruntime",
) -> onnx_ir.Model:
    """The student with input ``images`` ``[N, C, H, W]`` and output ``logits`` ``[N, classes]``.

    N is 1 where the network's code does not let it vary. ``record`` becomes the model's metadata.
    A student with ``scope: everything`` is to be one of ``integers`` (see that module), but for a
    ``target`` (one of ``TARGETS``) without zero points. Raises ModelError where torch cannot export
    it, or the target has no codes for it.
    """
    takes = TARGETS[target]
    integers = integers and takes.zero_points
    network = copy.deepcopy(student).cpu().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    used = _used(network, image_shape)
    # What the forward reads: a network may have layers that it does not call.
    weights_read: set[Quantizer] = set()
    activations_read: set[_OperatorsOfGrid] = set()
    own = weight_quantizers(network)
    weights = [*own.values()]
    counted = [layer for name, layer in own.items() if name in used]
    two_bits = takes.two_bits and any(w.weight_quantizer.bits == 2 for w in weights)
    opset = OPSET_OF_2_BITS if two_bits else OPSET
    for layer in weights:
        weight = layer.by_output(layer.weight.detach())
        layer.weight_quantizer = _CodesOfWeight(
            weight, layer.weight_quantizer, weights_read, takes.zero_points
        )
    activations = activation_quantizers(network)
    for name, quantizer in activations.items():
        operators = _CodesOfGrid if integers else _OperatorsOfGrid
        if not takes.zero_points:
            operators = _SignedOperatorsOfGrid
            if not _is_signed(quantizer):
                raise ModelError(
                    f"{target} takes no zero points, and without one INT8 does not hold the "
                    f"{quantizer.bits} bits of {name}; give it 7 (calibration.keep_bits)"
                )
        operator = operators(quantizer, activations_read if name in used else set())
        network.set_submodule(name, operator)
    model = _exported(_Flat(network), image_shape, opset, batch=2)
    if batch_of(model):
        # The network's code takes the number of images for a constant.
        model = _exported(_Flat(network), image_shape, opset, batch=1)
    kernels = to_integers(model, opset_of_2_bits=two_bits) if integers else 0
    RemoveUnusedNodesPass()(model)
    eight = any(quantizer.bits == 8 for quantizer in activations.values())
    narrowed = (
        narrow(model, two_bits=two_bits, eight_bits=eight)
        if takes.zero_points
        else codes_of_weights(model)
    )
    found = (
        kernels + narrowed,
        sum(node.op_type == "QuantizeLinear" for node in model.graph),
    )
    # Layers that round one tensor to one grid have one operator, and so have equal weights.
    quantizers = [layer.weight_quantizer for layer in counted]
    read = (
        len({quantizer.held for quantizer in quantizers if quantizer in weights_read}),
        len({module.values for module in activations_read}),
    )
    if found[0] < read[0] or found[1] < read[1]:
        raise ModelError(
            f"of {read[0]} quantized weights and {read[1]} activations the ONNX "
            f"graph has {found[0]} and {found[1]}; set export.format: none"
        )
    RemoveUnusedNodesPass()(model)
    ClearMetadataAndDocStringPass()(model)
    model.metadata_props["synq"] = json.dumps(record, sort_keys=True)
    return model


def _used(student: nn.Module, image_shape: tuple[int, int, int]) -> set[str]:
    """The layers and quantizers that the logits depend on: a network may have other outputs.

    What those alone come from is not in the graph.
    """
    outputs: dict[str, list[Tensor]] = {}

    def keeper(name: str) -> Any:
        return lambda module, args, output: outputs.setdefault(name, []).append(output)

    modules = {**weight_quantizers(student), **activation_quantizers(student)}
    hooks = [module.register_forward_hook(keeper(name)) for name, module in modules.items()]
    try:
        with torch.enable_grad():
            logits = student(torch.zeros(2, *image_shape).requires_grad_() + 0.5)
        made = [(name, value) for name, values in outputs.items() for value in values]
        # Of an attention with several outputs, and of what has no gradient, nothing is known.
        known = [pair for pair in made if isinstance(pair[1], Tensor) and pair[1].requires_grad]
        slopes = torch.autograd.grad(logits.sum(), [value for _, value in known], allow_unused=True)
    except RuntimeError:  # what it writes in place may have no way back
        return {*modules}
    finally:
        for hook in hooks:
            hook.remove()
    reached = {name for (name, _), slope in zip(known, slopes, strict=True) if slope is not None}
    return reached | ({*modules} - {name for name, _ in known})


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


class _Flat(nn.Module):
    """A network whose linear layers see all tokens of all images as one matrix."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.eval()
        self.eval()

    def forward(self, images: Tensor) -> Any:
        with _FlatProducts():
            return self.network(images)


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


class _CodesOfWeight(Quantizer):
    """Gives a weight from its codes; as it is rounded where no type holds them."""

    def __init__(
        self, weight: Tensor, quantizer: Quantizer, read: set[Quantizer], zero_points: bool
    ) -> None:
        super().__init__(quantizer.bits)
        self.readers = read
        grid = quantizer.grid(weight)
        codes, scales, zeros = codes_of(weight, grid)
        kinds = [torch.uint8, torch.uint16]
        if not zero_points:
            codes = codes - zeros.view((-1,) + (1,) * (codes.dim() - 1))
            zeros, kinds = torch.zeros_like(zeros), [torch.int8]
        least, largest = float(codes.min()), max(float(codes.max()), float(zeros.max()))
        limits = {kind: torch.iinfo(kind) for kind in kinds}
        holding = (k for k, limit in limits.items() if limit.min <= least and largest <= limit.max)
        kind = next(holding, None)
        self.values = grid.values(grid.codes(weight)) if kind is None else None
        if kind is not None:
            self.register_buffer("codes", codes.to(kind))
            self.register_buffer("scales", scales)
            self.register_buffer("zeros", zeros.to(kind))

    @property
    def held(self) -> tuple[Any, ...]:
        """What tells it from another: torch's exporter makes one tensor of equal ones."""
        buffers = (self.get_buffer(name) for name in Codes._fields)
        return tuple((tuple(own.shape), own.numpy().tobytes()) for own in buffers)

    def rounded(self, values: Tensor) -> Tensor:
        if self.values is not None:
            return self.values
        self.readers.add(self)
        codes, scales, zeros = (self.get_buffer(name) for name in Codes._fields)
        inputs = (codes, scales, zeros)
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", inputs, {"axis": 0}, dtype=torch.float32, shape=codes.shape
        )


class _OperatorsOfGrid(Quantizer):
    """Rounds an activation by operators of ONNX. Its grid holds 0, as calibration sets it."""

    def __init__(self, quantizer: Quantizer, read: "set[_OperatorsOfGrid]") -> None:
        super().__init__(quantizer.bits)
        self.readers = read
        grid = quantizer.grid(torch.zeros(1))
        self.values = (float(grid.scale), float(grid.zero_point), grid.bits)
        lo, hi = grid.ends
        self.ends = None if grid.bits == 8 else (WIDER * float(lo), WIDER * float(hi))
        # 8 bits, whatever the width: the type costs nothing, and every runtime knows it.
        self.register_buffer("scale", grid.scale)
        self.register_buffer("zero_point", (grid.zero_point + grid.half).to(torch.uint8))

    def rounded(self, values: Tensor) -> Tensor:
        self.readers.add(self)
        grid = (self.get_buffer("scale"), self.get_buffer("zero_point"))
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear", (values, *grid), dtype=torch.uint8, shape=values.shape
        )
        restored = torch.onnx.ops.symbolic(
            "DequantizeLinear", (codes, *grid), dtype=torch.float32, shape=values.shape
        )
        return restored.clamp(*self.ends) if self.ends else restored


class _CodesOfGrid(_OperatorsOfGrid):
    """The same with the clip among the codes, where an integer engine has it."""

    def __init__(self, quantizer: Quantizer, read: set[_OperatorsOfGrid]) -> None:
        super().__init__(quantizer, read)
        self.register_buffer("first", torch.tensor(0, dtype=torch.uint8))
        self.register_buffer("last", torch.tensor(2**quantizer.bits - 1, dtype=torch.uint8))

    def rounded(self, values: Tensor) -> Tensor:
        self.readers.add(self)
        grid = (self.get_buffer("scale"), self.get_buffer("zero_point"))
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear", (values, *grid), dtype=torch.uint8, shape=values.shape
        )
        if self.bits < 8:
            ends = (self.get_buffer("first"), self.get_buffer("last"))
            codes = torch.onnx.ops.symbolic(
                "Clip", (codes, *ends), dtype=torch.uint8, shape=values.shape
            )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (codes, *grid), dtype=torch.float32, shape=values.shape
        )


def _is_signed(quantizer: Quantizer) -> bool:
    """Whether INT8 holds the codes of an activation less their zero point."""
    grid = quantizer.grid(torch.zeros(1))
    zero = float(grid.zero_point + grid.half)
    return zero <= 128 and 2**quantizer.bits - 1 - zero <= 127


class _SignedOperatorsOfGrid(_OperatorsOfGrid):
    """The same without zero point, clipped before: a layer then reads DequantizeLinear itself."""

    def __init__(self, quantizer: Quantizer, read: set[_OperatorsOfGrid]) -> None:
        super().__init__(quantizer, read)
        self.zero_point = torch.zeros_like(self.get_buffer("zero_point"), dtype=torch.int8)

    def rounded(self, values: Tensor) -> Tensor:
        self.readers.add(self)
        grid = (self.get_buffer("scale"), self.get_buffer("zero_point"))
        clipped = values.clamp(*self.ends) if self.ends else values
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear", (clipped, *grid), dtype=torch.int8, shape=values.shape
        )
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (codes, *grid), dtype=torch.float32, shape=values.shape
        )
