"""A student in torch and its file in ONNX Runtime: the same classes, and where they part."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from synq.quantization.convert import activation_quantizers
from synq.quantization.quantizers import Quantizer

# Of the images whose class differs, so many are looked at.
LOOKED_AT = 8
PREFIX, SCALE = "network.", ".scale"


class Compared(NamedTuple):
    """What was found on some images, in percent of them; ``parted`` are images that differ.

    ``difference`` is the largest of a logit. Without labels the two accuracies mean nothing.
    """

    images: int
    agreement: float
    difference: float
    top1: float
    top1_in_torch: float
    parted: Tensor | None


class Difference(NamedTuple):
    """The first quantizer whose codes are not the same, and in percent how many are not."""

    name: str
    share: float


def session_of(model: Path | bytes, threads: int) -> onnxruntime.InferenceSession:
    """A session on the CPU at the runtime's default options, but for the number of threads."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def compared(
    path: Path, student: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], threads: int
) -> Compared:
    """Both on batches of images ``[n, C, H, W]`` and labels, each of a size that the file takes."""
    session = session_of(path, threads)
    counts, difference = torch.zeros(4, dtype=torch.long), 0.0
    parted: list[Tensor] = []
    for images, labels in batches:
        with torch.inference_mode():
            wanted = student(images)
        found = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
        classes = wanted.argmax(1), found.argmax(1)
        same = classes[0] == classes[1]
        parted.extend(images[~same][: max(0, LOOKED_AT - len(parted))])
        right = [(own == labels).sum() for own in classes]
        counts += torch.stack([torch.tensor(len(images)), same.sum(), *right])
        difference = max(difference, float((found - wanted).abs().max()))
    total, *own = counts.tolist()
    shares = [100 * count / total for count in own]
    stacked = torch.stack(parted) if parted else None
    return Compared(total, shares[0], difference, shares[2], shares[1], stacked)


def first_difference(path: Path, student: nn.Module, images: Tensor) -> Difference | None:
    """Where the codes of the two are not the same for the first time, on these images.

    None where all are. Activations are compared by the names of their quantizers; those that the
    graph has in another shape are left out. A code that differs may be one whose value is at the
    border of two; the share tells that from an operator that computes something else.
    """
    model = onnx.load(path)
    named = _quantizers_in(model)
    # The types are inferred by the runtime.
    model.graph.output.extend(onnx.ValueInfoProto(name=output) for output in named.values())
    session = session_of(model.SerializeToString(), 0)
    wanted = _codes(student, images)
    outputs = dict(zip(named, _run(session, list(named.values()), images), strict=True))
    for name, own in outputs.items():
        if name in wanted and wanted[name].shape == own.shape:
            share = 100 * float((wanted[name] != own).mean())
            if share > 0:
                return Difference(name, share)
    return None


def _run(session: onnxruntime.InferenceSession, outputs: list[str], images: Tensor) -> list[Any]:
    """The outputs for all images, of a file that may take one at a time."""
    batch = session.get_inputs()[0].shape[0]
    size = batch if isinstance(batch, int) else len(images)
    parts = [session.run(outputs, {"images": part.numpy()}) for part in images.split(size)]
    return [numpy.concatenate(own) for own in zip(*parts, strict=True)]


def _quantizers_in(model: onnx.ModelProto) -> dict[str, str]:
    """Name of each quantizer -> the codes that it gives in the graph, in the order of execution."""
    following = {name: node for node in model.graph.node for name in node.input}
    found: dict[str, str] = {}
    for node in model.graph.node:
        scale = node.input[1] if node.op_type == "QuantizeLinear" else ""
        if scale.startswith(PREFIX) and scale.endswith(SCALE):
            name = scale.removeprefix(PREFIX).removesuffix(SCALE)
            reader = following.get(node.output[0])
            clip = reader is not None and reader.op_type == "Clip"
            found.setdefault(name, reader.output[0] if clip and reader else node.output[0])
    return found


def _codes(student: nn.Module, images: Tensor) -> dict[str, Any]:
    """Name of each quantizer -> its codes from 0 on, of its first call."""
    found: dict[str, Any] = {}

    def note(name: str, quantizer: Quantizer, args: tuple[Tensor, ...]) -> None:
        grid = quantizer.grid(args[0])
        found.setdefault(name, (grid.codes(args[0].float()) + grid.half).to(torch.uint8).numpy())

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
