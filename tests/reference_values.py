"""The reference numbers and the network they belong to."""

import copy
from functools import cache
from pathlib import Path

import numpy
import torch
from safetensors.torch import load_file

from synq.models.build import build, frozen
from synq.models.weights import load_weights
from synq.quantization.convert import activation_quantizers, quantize
from synq.quantization.quantizers import Recipe

FOLDER = Path(__file__).parent / "reference"
BITS = (2, 3, 4, 5, 6, 8)


class Reference:
    """The arrays of one file, as tensors."""

    def __init__(self, area):
        self._arrays = numpy.load(FOLDER / f"{area}.npz")

    def __getitem__(self, key):
        return torch.from_numpy(numpy.asarray(self._arrays[key.replace("/", "|")]))

    def number(self, key):
        return float(self[key])

    def names(self, key):
        return [name.decode() for name in self._arrays[key.replace("/", "|")]]


@cache
def teacher():
    model = build("resnet20_cifar10", classes=10, channels=3, image_size=32)
    load_weights(model, load_file(FOLDER / "resnet20.safetensors"), "the reference weights")
    return frozen(model)


def student(step, bits):
    """The student of the reference step, with the ranges that it had."""
    model = quantize(copy.deepcopy(teacher()), Recipe(bits, bits))
    ranges = step[f"w{bits}a{bits}/act_ranges"]
    for quantizer, (lo, hi) in zip(activation_quantizers(model).values(), ranges, strict=True):
        quantizer.set_range(lo, hi)
    return model.eval().requires_grad_(True)
