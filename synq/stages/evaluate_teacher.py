"""Accuracy of the full-precision network on the real test images, where these have labels.

Apart from the students' evaluation, so that no change to quantization measures the teacher again.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from synq.config.evaluation import Evaluation
from synq.config.images import TestSet
from synq.data.datasets import Images
from synq.data.rows import evenly_spread
from synq.data.spectrum import radial_amplitude
from synq.io.artifacts import write_json
from synq.models.teacher import Teacher, read_teacher, stored_bytes
from synq.reporting.accuracy import answers, confused, confusion, doubt, per_class, top1
from synq.runtime.process import prepare, versions
from synq.runtime.progress import progress
from synq.stages.real_images import test_images

SPECTRUM_IMAGES = 64


def evaluate_teacher(
    *, teacher: Path, test: TestSet, settings: Evaluation, output: Path, device: str, threads: int
) -> None:
    """Write the full-precision accuracy and size; without a labelled test set the size alone."""
    network = read_teacher(teacher, prepare(device, threads))
    accuracy, warning, count, classes = None, "", 0, None
    mistakes, spectrum, digest = None, None, None
    if test.dataset != "none":
        images = test_images(network, test)
        count, spectrum, digest = len(images), _spectrum(images), images.digest
        if images.labelled:
            labels, (found,) = predictions([network.model], network, images, settings)
            counts = confusion(labels, found, network.classes)
            accuracy, warning = top1(counts), doubt(counts)
            classes, mistakes = per_class(counts), confused(counts)
    write_json(
        output,
        "teacher metrics",
        {
            "model": network.name,
            "teacher_sha256": network.sha256,
            "top1": accuracy,
            "warning": warning,
            "test_images": count,
            "test_digest": digest,
            "per_class": classes,
            "confusion": mistakes,
            "spectrum": spectrum,
            "weight_bytes": stored_bytes(network.model),
            "versions": versions(),
        },
    )
    shown = f"{count} real images without labels" if count else "no test set"
    if accuracy is not None:
        shown = f"top-1 {accuracy:.2f} % of {count} test images"
    print(f"{network.name}: {shown}")
    if warning:
        print(f"warning: {warning}")


def _spectrum(images: Images) -> dict[str, list[float]]:
    """Mean amplitude of some images, evenly spread, by frequency [cycles per pixel]."""
    rows = evenly_spread(len(images), SPECTRUM_IMAGES)
    frequencies, amplitudes = radial_amplitude(images.read(rows).numpy())
    return {"frequencies": frequencies.tolist(), "amplitudes": amplitudes.tolist()}


def predictions(
    models: Sequence[torch.nn.Module], network: Teacher, images: Images, settings: Evaluation
) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels ``[images]`` and all models' answers ``[models, images]``; images are read once."""
    size = settings.batch_size
    batches = images.batches(size, network.mean, network.std)
    shown = progress(batches, "evaluation", -(-len(images) // size))
    return answers(models, shown)
