"""Which figures there are of a folder of results, with their titles and captions."""

import math
import statistics
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy
from matplotlib.figure import Figure

from synq.data.spectrum import radial_amplitude
from synq.reporting import figures
from synq.reporting.layers import Errors
from synq.reporting.sensitivity import MOST_LAYERS, sensitivity_figure

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
    measured: Mapping[str, Sequence[float]] | None = None,
) -> Iterator[Drawn]:
    """One image of each class of a run's set, and the spectrum of them all, filtered and not.

    ``images`` are ``[K, C, H, W]`` in [0, 1]. ``measured`` is the spectrum of test images, as
    metrics.json of the network has it.
    """
    model, image_set = run["model"], run["image_set"]
    kind = "real" if real else "synthetic"
    rows = {kind: images}
    curves = {kind: radial_amplitude(images)}
    text = f"{'Real' if real else 'Synthetic'} images of the set {image_set}, a class a column"
    if filtered is not None:
        rows["filtered"], curves["filtered"] = filtered, radial_amplitude(filtered)
        sigma = run["settings"]["finetune"]["lowpass_sigma"]
        text += f", and as {run['method']} trains on them: filtered by a blur of {sigma:g} px"
    noise = numpy.random.default_rng(0).standard_normal(images.shape) * images.std()
    curves["noise"] = radial_amplitude(noise)
    beside = "white noise of the same deviation"
    if measured:
        curves["test images"] = (
            numpy.array(measured["frequencies"]),
            numpy.array(measured["amplitudes"]),
        )
        beside += " and the test images, which only the evaluation has seen"
    yield Drawn(
        f"spectra-{model}-{image_set}",
        f"{model}: spectra of {kind} images",
        f"Mean amplitude of these images by frequency, beside {beside}; set {image_set}.",
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
        f"original network and of {_student(run)}.",
        figures.picture_rows(rows, names),
        wide=True,
    )


def of_difficulty(run: Mapping[str, Any], values: numpy.ndarray) -> Drawn:
    """How difficult the images of a run's set are to the network, ``[N]`` in [0, 1]."""
    settings = run["settings"]["finetune"]
    threshold = settings["difficulty_threshold"]
    used = settings["hard_labels"] == "easy" and settings["ce_weight"] > 0
    role = (
        "those under it are taught by their label too"
        if used
        else "it plays no part, since difficulty does not change how an image is taught"
    )
    return Drawn(
        "difficulty-{model}-{image_set}".format(**run),
        "{model}: difficulty of the images".format(**run),
        f"Of the {len(values)} images as they were made, set {run['image_set']}, seed "
        f"{run['seed']}. The threshold of {run['method']} is {threshold:g}; {role}.",
        figures.difficulties(values, threshold),
    )


def of_layers(run: Mapping[str, Any], errors: Mapping[str, Errors]) -> Iterator[Drawn]:
    """How far weights and activations of a run's students are from the network's, by layer."""
    title = "{model}: error of {bits} by {method}".format(**run)
    moved = " The training moves weights, so that theirs may grow." if trained(run) else ""
    for kind, text, more in (
        ("weights", "weight", moved),
        ("activations", "activation, on one image of each class,", ""),
    ):
        found = {name: getattr(own, kind) for name, own in errors.items()}
        if not any(found.values()):
            continue
        yield Drawn(
            f"{kind}-{run['model']}-{run['image_set']}",
            f"{title}, {kind}",
            f"Squared error of each rounded {text} in units of its square in full precision, of "
            f"{_student(run)}.{more}",
            figures.errors_of_layers(found),
        )


def trained(run: Mapping[str, Any]) -> bool:
    """Whether the student that is shipped is another one than the calibrated one."""
    return bool(run["selected"]["epoch"] > 0)


def _student(run: Mapping[str, Any]) -> str:
    """Whose figure it is, and in which states, as a part of a sentence."""
    states = (
        "before (calibrated) and after its training (shipped)"
        if trained(run)
        else "which is shipped as it was calibrated"
    )
    return "the student {bits} by {method} of seed {seed}, {states}".format(
        **{**run, "bits": run["bits"].upper(), "states": states}
    )


def named(run: Mapping[str, Any], labels: Iterable[int]) -> list[str]:
    """What classes are called, as the run's export has it; their numbers where it does not."""
    names = (run.get("export") or {}).get("names") or []
    return [names[label] if label < len(names) else str(label) for label in labels]


def of_sensitivity(found: Mapping[str, Any]) -> Drawn:
    """What each layer alone costs, of the contents of a file of ``synq sensitivity``."""
    shown, count = min(len(found["layers"]), MOST_LAYERS), len(found["layers"])
    which = "all" if shown == count else f"the {shown} most sensitive of"
    return Drawn(
        "sensitivity-{model}-{bits}-{method}-seed{seed}".format(**found),
        "{model}: sensitivity at {bits} by {method}".format(**found),
        f"Divergence of the answers with one layer quantized and all else in full precision, "
        f"{which} {count} layers, on {found['images']} images of {found['image_set']}, seed "
        f"{found['seed']}.",
        figures.styled(sensitivity_figure)(found),
    )


def of_ablation(rows: Sequence[Mapping[str, Any]]) -> Iterator[Drawn]:
    """Each method's difference to the full one; rows are those of tables/ablation.csv."""
    for model, bits in dict.fromkeys((row["model"], row["bits"]) for row in rows):
        own = [row for row in rows if (row["model"], row["bits"]) == (model, bits)]
        full = own[0]["compared_with"]
        others = [row for row in own if row["method"] != full]
        if not others:
            continue
        yield Drawn(
            f"ablation-{model}-{bits}",
            f"{model}: {bits} without parts of {full}",
            f"What the shipped student of each method has above that of {full}, seed by seed; "
            "the bars' ends are one standard deviation, where there are several seeds.",
            figures.differences(
                {row["method"]: row["selected_difference_mean"] for row in others},
                {row["method"]: row["selected_difference_std"] for row in others},
            ),
        )


def of_confusion(
    runs: Sequence[Mapping[str, Any]], before: Mapping[str, Mapping[str, int]]
) -> Iterator[Drawn]:
    """What is mistaken for what more often than in full precision, per width and method.

    ``before`` is ``confusion`` of the network's metrics.json. Runs without theirs are left out.
    """
    known = [run for run in runs if run.get("confusion") is not None and run.get("per_class")]
    for (bits, method), group in _groups(known).items():
        model, classes = group[0]["model"], len(group[0]["per_class"]["images"])
        after = [_counts(run["confusion"], classes) for run in group]
        difference = numpy.mean(after, axis=0) - _counts(before, classes)
        seeds = f", mean of {len(group)} seeds" if len(group) > 1 else ""
        yield Drawn(
            f"confusion-{model}-{bits}-{method}",
            f"{model}: what {bits} by {method} confuses",
            f"Images more (or fewer) than in full precision that are taken for another class, of "
            f"{group[0]['test_images']}{seeds}.",
            figures.confusions(difference, named(group[0], range(classes))),
        )


def _counts(confusion: Mapping[str, Mapping[str, int]], classes: int) -> numpy.ndarray:
    counts = numpy.zeros((classes, classes))
    for label, row in confusion.items():
        for taken, count in row.items():
            counts[int(label), int(taken)] = count
    return counts


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
            figures.losses_of_classes(named(run, range(len(found["images"]))), losses(found)),
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
