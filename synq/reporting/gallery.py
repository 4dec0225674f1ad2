"""Which figures there are of a folder of results, with their titles and captions."""

import math
import statistics
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from matplotlib.figure import Figure

from synq.reporting import figures

STAGES = {
    "synthesis": "images",
    "finetune": "fine-tuning",
    "evaluate": "evaluation",
    "export": "export",
}


@dataclass(frozen=True)
class Drawn:
    """A figure with the name of its file, and what stands below it."""

    name: str
    title: str
    caption: str
    figure: Figure
    wide: bool = False


def overall(runs: Sequence[Mapping[str, Any]], real: Collection[str]) -> Iterator[Drawn]:
    """Figures of all runs together, which are contents of metrics.json.

    Each has its own ``export`` and ``seconds`` by stage beside it. ``real`` names image sets.
    """
    for model in dict.fromkeys(run["model"] for run in runs):
        own = [run for run in runs if run["model"] == model]
        full = own[0]["teacher"]["top1"]
        measure = "top-1 [%]" if full is not None else "agreement with the original [%]"
        groups = _groups(own)
        widths = list(dict.fromkeys(run["bits"] for run in own))
        methods = list(dict.fromkeys(run["method"] for run in own))
        trained = {run["method"] for run in own if run["image_set"] in real}
        spread = (
            "Bars are one standard deviation over the seeds"
            if any(len(group) > 1 for group in groups.values())
            else "One seed, so that no deviation is known"
        )
        yield Drawn(
            f"accuracy-{model}",
            f"{model}: accuracy by bits",
            f"The shipped students. {spread}.",
            figures.accuracy_by_bits(
                widths,
                {m: [_mean(groups.get((b, m))) for b in widths] for m in methods},
                full=full,
                real=trained,
                measure=measure,
            ),
        )
        points = [
            (method, bits.upper(), _bytes(group[0]) / 1000, _top1(group))
            for (bits, method), group in groups.items()
        ]
        size = own[0]["teacher"]["weight_bytes"] / 1000
        yield Drawn(
            f"size-{model}",
            f"{model}: accuracy by size",
            "The line is the front: no other student is both smaller and more accurate.",
            figures.size_and_accuracy(
                points, full=None if full is None else (size, full), measure=measure
            ),
        )
        labels, seconds = _seconds(groups)
        yield Drawn(
            f"seconds-{model}",
            f"{model}: seconds of each stage",
            "Means over the seeds, as measured where the jobs ran. Runs that share images are each "
            "told the seconds of all of them.",
            figures.stage_seconds(labels, seconds),
        )


def of_images(
    run: Mapping[str, Any],
    images: numpy.ndarray,
    filtered: numpy.ndarray | None,
    names: Sequence[str],
    *,
    real: bool,
) -> Iterator[Drawn]:
    """One image of each class of a run's set, and the spectrum of them all, filtered and not.

    ``images`` are ``[K, C, H, W]`` in [0, 1].
    """
    model, image_set = run["model"], run["image_set"]
    kind = "real" if real else "synthetic"
    rows = {kind: images}
    curves = {kind: figures.radial_amplitude(images)}
    text = f"{'Real' if real else 'Synthetic'} images of the set {image_set}, a class a column"
    if filtered is not None:
        rows["filtered"], curves["filtered"] = filtered, figures.radial_amplitude(filtered)
        sigma = run["settings"]["finetune"]["lowpass_sigma"]
        text += f", and as {run['method']} trains on them: filtered by a blur of {sigma:g} px"
    noise = numpy.random.default_rng(0).standard_normal(images.shape) * images.std()
    curves["noise"] = figures.radial_amplitude(noise)
    yield Drawn(
        f"spectra-{model}-{image_set}",
        f"{model}: spectra of {kind} images",
        f"Mean amplitude of these images by frequency, beside white noise of the same "
        f"deviation; set {image_set}.",
        figures.spectra(curves),
    )
    yield Drawn(
        f"images-{model}-{image_set}",
        f"{model}: {kind} images",
        f"{text}.",
        figures.picture_rows({label: _drawable(some) for label, some in rows.items()}, names),
        wide=True,
    )


def of_attention(
    run: Mapping[str, Any],
    images: numpy.ndarray,
    maps: Mapping[str, numpy.ndarray],
    names: Sequence[str],
) -> Drawn:
    """Class activation maps ``[K, 1, H, W]`` of the original and a run's students."""
    rows = {"image": _drawable(images), **maps}
    title = "{model}: where {bits} by {method} looks".format(**run)
    return Drawn(
        "attention-{model}-{image_set}".format(**run),
        title,
        f"Grad-CAM for the class of each column, bright where it speaks for that class, of the "
        f"original network and of its student of seed {run['seed']}, before and after the "
        "training.",
        figures.picture_rows(rows, names),
        wide=True,
    )


def _drawable(images: numpy.ndarray) -> numpy.ndarray:
    """Images of one or three channels; of any other number the first."""
    return images if images.shape[1] in (1, 3) else images[:, :1]


def of_run(name: str, run: Mapping[str, Any]) -> Iterator[Drawn]:
    """The terms of the loss by epoch, and what each class lost; files begin with ``name``."""
    epochs = run["epochs"]
    terms = {
        term: [entry.get(term) for entry in epochs]
        for term in dict.fromkeys(key for entry in epochs for key in entry)
        if term not in ("epoch", "top1")
    }
    if len(epochs) > 1:
        yield Drawn(
            f"{name}-training",
            "Training",
            "Each weighted term of the loss, their total, and the loss on held-out images, where "
            "there are any.",
            figures.training_curves({term: _finite(values) for term, values in terms.items()}),
        )
    found = run.get("per_class")
    if found:
        measured = found["teacher"] is not None
        yield Drawn(
            f"{name}-classes",
            "What each class lost",
            f"Points below the {'full-precision network' if measured else 'original, of agreement'}"
            f", of {min(found['images'])} to {max(found['images'])} images a class.",
            figures.losses_of_classes(
                [str(number) for number in range(len(found["images"]))], losses(found)
            ),
        )


def losses(per_class: Mapping[str, Any]) -> dict[str, list[float]]:
    """Points that each class lost: ``calibrated`` alone, and as it is ``shipped``.

    A class of which there is no image has lost nothing that is known.
    """
    counts = per_class["images"]
    before = per_class["teacher"] or counts
    return {
        name: [
            100 * (old - new) / count if count else 0.0
            for old, new, count in zip(before, per_class[key], counts, strict=True)
        ]
        for name, key in (("calibrated", "calibrated"), ("shipped", "selected"))
    }


def _groups(runs: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["bits"], run["method"]), []).append(run)
    return groups


def _top1(group: Sequence[Mapping[str, Any]]) -> float:
    return statistics.fmean(run["selected"]["top1"] for run in group)


def _mean(group: Sequence[Mapping[str, Any]] | None) -> tuple[float, float] | None:
    """Mean and deviation over the seeds; one seed has a bar of no length."""
    if not group:
        return None
    reached = [run["selected"]["top1"] for run in group]
    return _top1(group), statistics.stdev(reached) if len(reached) > 1 else 0.0


def _bytes(run: Mapping[str, Any]) -> int:
    return int((run.get("export") or {}).get("packed_bytes") or run["weight_bytes"])


def _seconds(
    groups: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]],
) -> tuple[list[str], dict[str, list[float]]]:
    labels = [f"{bits.upper()} {method}" for bits, method in groups]
    seconds = {
        label: [
            statistics.fmean(run["seconds"].get(stage, math.nan) for run in group)
            for group in groups.values()
        ]
        for stage, label in STAGES.items()
    }
    return labels, seconds


def _finite(values: Sequence[float | None]) -> list[float | None]:
    return [value if value is not None and math.isfinite(value) else None for value in values]
