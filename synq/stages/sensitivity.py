"""Which layers cost accuracy: each alone is quantized, on synthetic images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from synq.config.calibration import Calibration
from synq.data.rows import evenly_spread
from synq.io.artifacts import atomic, read_json, write_json
from synq.io.shards import ImageSource, ShardSet
from synq.models.teacher import Teacher, read_teacher
from synq.quantization.coverage import Part, examine, refuse
from synq.quantization.mixed import code_bytes
from synq.quantization.sensitivity import Loss, Trial, losses_alone
from synq.quantization.student import recipe_from
from synq.quantization.trace import QUANTIZED
from synq.reporting.sensitivity import draw_sensitivity, readable_sensitivity, sensitivity_table
from synq.runtime.process import prepare, versions

BATCH = 64


def sensitivity(
    *,
    teacher: Path,
    shards: Sequence[Path],
    shard_folder: Path,
    bits: str,
    method: str,
    image_set: str,
    seed: int,
    calibration: Calibration,
    output: Path,
    device: str,
    threads: int,
) -> None:
    """Write the loss of each layer alone at ``bits`` as JSON, and beside it as CSV and Markdown.

    It is measured on ``sensitivity_images`` of the shards' images, as they are.
    """
    network = read_teacher(teacher, prepare(device, threads))
    shard_set = ShardSet(
        [shard_folder / path for path in shards],
        network.sha256,
        network.classes,
        network.image_shape,
    )
    record = {
        "model": network.name,
        "teacher_sha256": network.sha256,
        "bits": bits,
        "method": method,
        "image_set": image_set,
        "shards": [path.stem for path in shards],
        "shard_checksums": shard_set.checksums,
        "seed": seed,
        "calibration": dataclasses.asdict(calibration),
        **layers_alone(network, shard_set, bits, calibration),
        "versions": versions(),
    }
    with atomic(output.with_suffix(".csv")) as temporary:
        sensitivity_table(record).to_csv(temporary, index=False, float_format="%.6g")
    text = readable_sensitivity(record)
    with atomic(output.with_suffix(".md")) as temporary:
        temporary.write_text(text + "\n", "utf-8")
    write_json(output, "sensitivity", record)
    print(text)


def layers_alone(
    network: Teacher, images: ImageSource, bits: str, calibration: Calibration
) -> dict[str, Any]:
    """How many of ``images`` it was measured on, and a row for each layer, worst first.

    Raises ModelError where the network cannot be quantized.
    """
    recipe = recipe_from(bits, calibration)
    anatomy = examine(network.model, network.image_shape)
    refuse(anatomy)
    rows = evenly_spread(len(images), calibration.sensitivity_images)
    target = next(network.model.parameters()).device
    batches = [images.images(own).to(target) for own in rows.split(BATCH)]
    layers = [layer for layer in anatomy.of("layer") if not layer.reason]
    weight, activation = recipe.weight_bits, recipe.activation_bits
    trials = {}
    for layer in layers:
        read = activation if layer.input == QUANTIZED else 0
        trials[layer.name, "both"] = Trial(layer.name, weight, read)
        trials[layer.name, "weight"] = Trial(layer.name, weight)
        trials[layer.name, "input"] = Trial(layer.name, 0, read)
    found = losses_alone(network.model, recipe, calibration, batches, [*trials.values()])
    losses = dict(zip(trials, found, strict=True))
    told = [
        _row(layer, weight, losses[layer.name, "both"], losses[layer.name, "weight"])
        | {
            "input_divergence": (
                losses[layer.name, "input"].divergence if layer.input == QUANTIZED else None
            )
        }
        for layer in layers
    ]
    return {"images": len(rows), "layers": sorted(told, key=lambda row: -row["divergence"])}


def _row(layer: Part, bits: int, both: Loss, weight: Loss) -> dict[str, Any]:
    shape = layer.weight or []
    parameters = int(torch.Size(shape).numel())
    return {
        "layer": layer.name,
        "kind": layer.kind,
        "divergence": both.divergence,
        "weight_divergence": weight.divergence,
        "error": both.error,
        "parameters": parameters,
        "multiply_adds": layer.multiply_adds,
        "bytes": code_bytes(parameters, bits),
    }


def draw(*, sensitivity: Path, output: Path) -> None:
    """Write a figure of what ``sensitivity`` found, as SVG."""
    found = read_json(sensitivity, "sensitivity")
    with atomic(output) as temporary:
        draw_sensitivity(found, temporary)
