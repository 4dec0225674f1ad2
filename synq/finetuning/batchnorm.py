"""BatchNorm layers of a student in training: each batch's statistics, held against the teacher's.

A weight of few bits moves in jumps, and with it the mean and the variance behind it. With
statistics that stay as they were, the layers behind pay for that until the weights have moved on.
The batch's own statistics take it up at once, but those of synthetic images are not those of real
ones. Here the student's layer gives each channel the mean and the variance that the teacher's gives
on the same images, by way of its own affine part, and what is wrong with the images is in both.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from synq.finetuning.batches import Images
from synq.quantization.calibration import (
    BatchNormCorrection,
    Moments,
    batchnorm_layers,
    moments,
)

# On so many images the statistics are corrected at an epoch's end.
CORRECTED_ON = 512
BATCH = 128


@contextlib.contextmanager
def matched(teacher: nn.Module, student: nn.Module) -> Iterator[None]:
    """Within this block a forward of the student that has a gradient follows the teacher's newest.

    With u_t, u_s what the two layers get, m and v the teacher's running statistics, g and b the
    student's affine part, and moments over batch and space, the student's layer gives

        y = g (std(u_t) normalised(u_s) + mean(u_t) - m) / sqrt(v + eps) + b

    which for equal g and b has the moments of what the teacher's gives. Without a gradient, and for
    a single value a channel, a layer is what it was.
    """
    wanted: dict[str, Moments] = {}
    teachers, students = batchnorm_layers(teacher), batchnorm_layers(student)
    with contextlib.ExitStack() as stack:
        for name in students.keys() & teachers.keys():
            hook = teachers[name].register_forward_pre_hook(partial(_remember, wanted, name))
            stack.callback(hook.remove)
            layer = students[name]
            layer.forward = partial(_forward, layer, teachers[name], wanted, name)  # type: ignore[method-assign]
            stack.callback(delattr, layer, "forward")
        yield


def _remember(
    wanted: dict[str, Moments], name: str, _: nn.Module, args: tuple[Tensor, ...]
) -> None:
    with torch.no_grad():
        wanted[name] = moments(args[0])


def _forward(
    layer: nn.BatchNorm2d,
    teacher: nn.BatchNorm2d,
    wanted: dict[str, Moments],
    name: str,
    values: Tensor,
) -> Tensor:
    if not torch.is_grad_enabled() or values.numel() == values.shape[1]:
        return type(layer).forward(layer, values)
    # What is computed here is none of the calls of the layer's own, which are counted.
    with torch._C.DisableTorchFunction():
        mean, variance = wanted[name]
        assert teacher.running_mean is not None
        assert teacher.running_var is not None
        scale = (teacher.running_var + teacher.eps).rsqrt()
        shift = (mean - teacher.running_mean) * scale
        factor = variance.sqrt() * scale
        if layer.affine:
            shift, factor = layer.weight * shift + layer.bias, layer.weight * factor
        return functional.batch_norm(values, None, None, factor, shift, True, 0.0, layer.eps)


def corrected_anew(teacher: nn.Module, student: nn.Module, images: Images) -> None:
    """Move the student's statistics by the difference to the teacher's, in place, on images of the
    training as they are held out: filtered, not augmented.
    """
    rows = images.train[:: -(-len(images.train) // CORRECTED_ON)]
    correction = BatchNormCorrection(teacher, student)
    with torch.no_grad(), correction.following():
        for batch, _ in images.batches(rows.split(BATCH)):
            teacher(batch)
            student(batch)
            correction.batches += 1
