"""A student in torch and its file in a runtime: the same classes, and where they part."""

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from synq.config.targets import EXACT, INT8_ALLOWED
from synq.errors import ConfigError, ModelError, reason
from synq.quantization.convert import activation_quantizers
from synq.quantization.quantizers import Quantizer

# Of the images whose class differs, so many are looked at.
LOOKED_AT = 8
PREFIX, SCALE = "network.", ".scale"

# Images [N, C, H, W] -> logits [N, classes].
Run = Callable[[Tensor], Tensor]


class Compared(NamedTuple):
    """What was found on some images, in percent of them; ``parted`` are images that differ.

    ``difference`` is the largest of a logit. Without labels there are no accuracies.
    """

    images: int
    agreement: float
    difference: float
    top1: float | None
    top1_in_torch: float | None
    parted: Tensor | None


class Difference(NamedTuple):
    """The first quantizer whose codes are not the same, and in percent how many are not."""

    name: str
    share: float


def session_of(
    model: Path | bytes, threads: int, *, int8: bool = False
) -> onnxruntime.InferenceSession:
    """A session on the CPU at the runtime's default options, but for threads and exact sums.

    ``int8`` is for activations in INT8. ModelError where the runtime does not take the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry(EXACT, "1")
    if int8:
        options.add_session_config_entry(INT8_ALLOWED, "1")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own kinds have no base but this
        raise ModelError(
            f"ONNX Runtime {onnxruntime.__version__} does not take the network's graph "
            f"({reason(error)}); set export.format: none"
        ) from None


def in_onnxruntime(path: Path, threads: int, *, int8: bool = False) -> Run:
    """The file in ONNX Runtime, as ``session_of`` opens it."""
    session = session_of(path, threads, int8=int8)
    return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def in_openvino(path: Path, threads: int) -> Run:
    """The file in OpenVINO on the CPU, in its mode for accuracy, in float32 where not in integers.

    By default it rounds what linear layers read to 8 bits once more, and computes in bfloat16 where
    a processor has that. ConfigError where it is not installed, ModelError where it does not take
    the file.
    """
    try:
        import openvino  # an extra
    except ImportError:
        raise ConfigError(
            "export.target is openvino, which is not installed; pip install openvino"
        ) from None
    settings = {
        "EXECUTION_MODE_HINT": "ACCURACY",
        "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads,
    }
    try:
        core = openvino.Core()
        compiled = core.compile_model(core.read_model(path), "CPU", settings)
    except RuntimeError as error:
        last = str(error).strip().splitlines()[-1]
        raise ModelError(
            f"OpenVINO {openvino.__version__} does not take {path.name} ({last})"
        ) from None
    # The array is the request's own, which the next one overwrites.
    return lambda images: torch.from_numpy(compiled(images.numpy())[0].copy())


def compared(
    run: Run, student: nn.Module, batches: Iterable[tuple[Tensor, Tensor | None]]
) -> Compared:
    """Both on batches of images ``[n, C, H, W]``, each of a size that the file takes.

    With each go its labels, or None.
    """
    counts, difference = torch.zeros(4, dtype=torch.long), 0.0
    parted: list[Tensor] = []
    labels: Tensor | None = None
    for images, labels in batches:
        with torch.inference_mode():
            wanted = student(images)
        found = run(images)
        classes = wanted.argmax(1), found.argmax(1)
        same = classes[0] == classes[1]
        parted.extend(images[~same][: max(0, LOOKED_AT - len(parted))])
        right = [(own == (-1 if labels is None else labels)).sum() for own in classes]
        counts += torch.stack([torch.tensor(len(images)), same.sum(), *right])
        difference = max(difference, float((found - wanted).abs().max()))
    total, *own = counts.tolist()
    agreement, in_torch, there = (100 * count / total for count in own)
    stacked = torch.stack(parted) if parted else None
    if labels is None:
        return Compared(total, agreement, difference, None, None, stacked)
    return Compared(total, agreement, difference, there, in_torch, stacked)


def first_difference(path: Path, student: nn.Module, images: Tensor) -> Difference | None:
    """Where the codes of the two are not the same for the first time, on these images.

    None where all are. Activations are compared by the names of their quantizers; those that the
    graph has in another shape are left out. A code that differs may be one whose value is at the
    border of two; the share tells that from an operator that computes something else.
    """
    model = onnx.load(path)
    named = _quantizers_in(model)
    # The types are inferred by the runtime.
    model.graph.output.extend(onnx.ValueInfoProto(name=output) for output, _ in named.values())
    signed = any(zero.dtype == numpy.int8 for _, zero in named.values())
    session = session_of(model.SerializeToString(), 0, int8=signed)
    wanted = _codes(student, images)
    outputs = _run(session, [output for output, _ in named.values()], images)
    for (name, (_, zero)), own in zip(named.items(), outputs, strict=True):
        if name in wanted and wanted[name].shape == own.shape:
            share = 100 * float((wanted[name] != own.astype(numpy.int16) - zero).mean())
            if share > 0:
                return Difference(name, share)
    return None


def _run(session: onnxruntime.InferenceSession, outputs: list[str], images: Tensor) -> list[Any]:
    """The outputs for all images, of a file that may take one at a time."""
    batch = session.get_inputs()[0].shape[0]
    size = batch if isinstance(batch, int) else len(images)
    parts = [session.run(outputs, {"images": part.numpy()}) for part in images.split(size)]
    return [numpy.concatenate(own) for own in zip(*parts, strict=True)]


def _quantizers_in(model: onnx.ModelProto) -> dict[str, tuple[str, Any]]:
    """Name of each quantizer -> its codes in the graph and their zero point, as they are executed.

    Of several with equal grids the graph has the name of the first.
    """
    following = {name: node for node in model.graph.node for name in node.input}
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    found: dict[str, tuple[str, Any]] = {}
    for node in model.graph.node:
        scale = node.input[1] if node.op_type == "QuantizeLinear" else ""
        if scale.startswith(PREFIX) and scale.endswith(SCALE):
            name = scale.removeprefix(PREFIX).removesuffix(SCALE)
            reader = following.get(node.output[0])
            clip = reader is not None and reader.op_type == "Clip"
            zero = numpy_helper.to_array(constants[node.input[2]])
            output = reader.output[0] if clip and reader else node.output[0]
            found.setdefault(name, (output, zero))
    return found


def _codes(student: nn.Module, images: Tensor) -> dict[str, Any]:
    """Name of each quantizer -> its codes less their zero point, of its first call."""
    found: dict[str, Any] = {}

    def note(name: str, quantizer: Quantizer, args: tuple[Tensor, ...]) -> None:
        grid = quantizer.grid(args[0])
        codes = grid.codes(args[0].float()) - grid.zero_point
        found.setdefault(name, codes.to(torch.int16).numpy())

    hooks = [
        quantizer.register_forward_pre_hook(partial(note, name))
        for name, quantizer in activation_quantizers(student).items()
    ]
    try:
        with torch.inference_mode():
            student(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found
