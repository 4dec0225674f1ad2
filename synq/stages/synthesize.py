"""One shard of synthetic images. Needs the teacher alone, and opens no data set."""

from collections.abc import Sequence
from pathlib import Path

import torch

from synq.config.fingerprint import factory_digest, stage_digest
from synq.config.synthesis import Synthesis
from synq.io.shards import write_shard
from synq.models.judgement import Synthesized
from synq.models.scale import rescaled
from synq.models.teacher import Teacher, check_classes, read_teacher, shard_record
from synq.runtime.process import generator_for, prepare
from synq.synthesis.centres import calibration_centres
from synq.synthesis.resume import Batches
from synq.synthesis.synthesize import synthesize


def synthesize_shard(
    *,
    teacher: Path,
    output: Path,
    classes: list[int],
    seed: int,
    settings: Synthesis,
    device: str,
    threads: int,
) -> None:
    """Synthesize ``images_per_class`` images of each of ``classes`` and write them.

    The work folder ``<output>.work`` holds the batches that are made until all are.
    """
    network = read_teacher(teacher, prepare(device, threads))
    settings = settings.of_classes(network.classes)
    record = shard_record(network, classes, seed, settings)
    # What one code began another one does not go on with.
    code = stage_digest("synthesize") + factory_digest(network.factory)
    kept = Batches(output, {**record, "code": code})
    result = synthesized(network, classes, seed, settings, kept)
    write_shard(output, *result, record)
    kept.clear()


def synthesized(
    network: Teacher,
    classes: Sequence[int],
    seed: int,
    settings: Synthesis,
    kept: Batches | None = None,
) -> Synthesized:
    """``images_per_class`` images of each of ``classes``, as one shard has them."""
    check_classes(classes, network)
    # Noise, learning rates and what else has a size are for normalised images.
    scale = network.scale
    model = rescaled(network.model, scale)
    centres = None
    if settings.deep_weight > 0:
        # Every shard needs the same centres, so they depend on the seed and not on the classes.
        centres = calibration_centres(
            model,
            network.classes,
            network.image_shape,
            settings,
            generator_for(seed, "centres"),
        )
    # Neighbouring images are of different classes, so that each batch mixes the shard's classes.
    labels = torch.tensor(classes).repeat(settings.images_per_class)
    generator = generator_for(seed, "synthesis", *classes)
    made = synthesize(
        model, labels, network.image_shape, settings, generator, centres, network.ends, kept
    )
    return made if scale.usual else made._replace(images=scale.of_network(made.images))
