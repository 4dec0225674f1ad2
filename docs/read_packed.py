"""The weights of a ``student.packed.safetensors``, with numpy alone: see packed.md beside this."""

import json
import math
import sys

import numpy as np

TYPES = {"U8": "u1", "I8": "i1", "I16": "<i2", "I32": "<i4", "I64": "<i8"}
TYPES |= {"F16": "<f2", "F32": "<f4", "F64": "<f8", "BOOL": "?"}


def read_safetensors(path):
    """The tensors of a safetensors file, and the record that this project keeps in it."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        content = file.read()
    record = json.loads(header.pop("__metadata__")["synq"])
    tensors = {}
    for name, about in header.items():
        first, last = about["data_offsets"]
        values = np.frombuffer(content[first:last], TYPES[about["dtype"]])
        tensors[name] = values.reshape(about["shape"])
    return tensors, record


def codes_of(stream, bits, shape):
    """The codes of a bit stream, 0 to 2^bits - 1."""
    count = math.prod(shape)
    table = np.unpackbits(stream, count=count * bits, bitorder="little").reshape(count, bits)
    return np.packbits(table, axis=1, bitorder="little").reshape(shape)


def read_packed(path):
    """Every tensor under its name in the network: weights as they are rounded, the rest as is."""
    tensors, record = read_safetensors(path)
    arrays = {}
    for name, about in record["weights"].items():
        codes = codes_of(tensors.pop(name + ".codes"), about["bits"], about["shape"])
        each = (-1,) + (1,) * (codes.ndim - 1)  # one for each output channel, the first axis
        zero_point = tensors.pop(name + ".zero_point").reshape(each)
        scale = tensors.pop(name + ".scale").reshape(each)
        steps = (codes.astype(np.int64) - zero_point).astype(np.float32)
        weight = (steps * scale).astype(np.float32)
        if "groups" in about:  # of a transposed convolution, which has the inputs first
            groups, (out, inputs, *kernel) = about["groups"], weight.shape
            weight = weight.reshape(groups, out // groups, inputs, *kernel).swapaxes(1, 2)
            weight = weight.reshape(groups * inputs, out // groups, *kernel)
        arrays[name] = weight
        tensors.pop(name + ".range", None)  # what the training needs to go on
    arrays |= tensors
    return arrays | {name: arrays[first] for name, first in record["aliases"].items()}, record


if __name__ == "__main__":
    for name, array in read_packed(sys.argv[1])[0].items():
        print(name, array.dtype, list(array.shape))
