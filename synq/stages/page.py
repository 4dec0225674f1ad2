"""One page of a folder of results, whatever of them is there."""

import json
import math
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy
import pandas
import torch
from torch import nn

from synq.config import layout
from synq.config.grid import parse_bits
from synq.config.plan import shard_classes
from synq.data.lowpass import blur_transfer, lowpass
from synq.errors import ArtifactError, ConfigError, UserError, reason
from synq.io.artifacts import atomic, read_json
from synq.io.benchmarks import read_seconds
from synq.io.hdf5 import refusing
from synq.io.shards import REMEDY, open_shard
from synq.io.students import Students
from synq.models.teacher import read_teacher
from synq.quantization.student import check_teacher, recipe_of, student_of
from synq.reporting import figures, gallery
from synq.reporting.attention import maps
from synq.reporting.layers import errors
from synq.reporting.page import Run, Shown, render

PICTURES = 10  # classes of which an image is shown
# Runs with figures of their own: those of more would be above 5 MB, and a minute in the making.
DRAWN = 60


def write_page(*, results: Path) -> None:
    """Write index.html, the page of all that is there, and its figures as SVG files.

    What is missing, and records that are damaged or of another version, are said on the page.
    ConfigError where the folder holds no results at all. No test image is read.
    """
    if not any((results / name).is_dir() for name in layout.ARTIFACTS):
        raise ConfigError(f"{results} is no folder of results; name the one that the config names")
    missing: list[str] = []
    expected = _expected(results, missing)
    verdict = _verdict(results, missing)
    runs = list(_runs(results, expected))
    for run in runs:
        missing += [f"{run.title}: {fault}" for fault in run.faults]
    measured = [run.metrics for run in runs if run.metrics is not None]
    _check_verdict(verdict, measured, missing)
    target = results / layout.FIGURES
    # What an earlier page drew of runs that are gone would be taken for this one's.
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True, exist_ok=True)
    shown = [_written(drawn, target) for drawn in _overall(results, measured, verdict, missing)]
    told = [(run.anchor, run.metrics) for run in runs if run.metrics is not None]
    of_runs = {
        anchor: [_written(d, target) for d in gallery.of_run(anchor.removeprefix("run-"), metrics)]
        for anchor, metrics in told[:DRAWN]
    }
    page = results / layout.PAGE
    text = render(str(results), verdict["verdicts"], runs, shown, of_runs, missing)
    with atomic(page) as temporary:
        temporary.write_text(text, "utf-8")
    state = f", and says what is missing: {len(missing)} entries" if missing else ""
    print(f"The page of all results is {page}{state}")


def _expected(results: Path, missing: list[str]) -> Mapping[str, Any]:
    """What the workflow meant to make; empty where that is not known."""
    path = results / layout.JOBS
    try:
        found = json.loads(path.read_text("utf-8"))
        outputs = [str(job["output"]) for job in found["jobs"]]
        files = [str(name) for name in found["configfiles"]]
    except FileNotFoundError:
        missing.append(f"{layout.JOBS}, so that it is not known which runs were to be made")
        return {}
    except (OSError, ValueError, KeyError, TypeError):
        missing.append(f"{layout.JOBS} cannot be read; snakemake writes it anew")
        return {}
    return {"outputs": outputs, "configfiles": files}


def _verdict(results: Path, missing: list[str]) -> Mapping[str, Any]:
    try:
        return read_json(results / layout.VERDICT, "verdict")
    except ArtifactError as error:
        missing.append(f"the verdict: {error}")
        return {"verdicts": [], "measured": {}, "real": []}


def _check_verdict(
    verdict: Mapping[str, Any], measured: Sequence[Mapping[str, Any]], missing: list[str]
) -> None:
    """Say where the verdict is of other students than those that the page shows."""
    now = {layout.METRICS.format(**run): run["students_checksum"] for run in measured}
    for path, students in verdict["measured"].items():
        if now.get(path) != students:
            missing.append(f"a verdict on what {path} says now: it is of another state of that run")


def _runs(results: Path, expected: Mapping[str, Any]) -> Iterator[Run]:
    """The runs that are to be made, in their order, and then all others that are there."""
    outputs = expected.get("outputs", [])
    places = {
        layout.METRICS.format(**names): names
        for names in (layout.wildcards(layout.METRICS, path) for path in outputs)
        if names is not None
    }
    for _, names in layout.found(results, f"{layout.RUNS}/{layout.RUN}"):
        places.setdefault(layout.METRICS.format(**names), names)
    for names in places.values():
        yield _run(results, names, expected)


def _run(results: Path, names: Mapping[str, str], expected: Mapping[str, Any]) -> Run:
    faults: list[str] = []
    outputs = expected.get("outputs", [])
    metrics_path, export_path = (t.format(**names) for t in (layout.METRICS, layout.EXPORT))
    metrics = _read(results / metrics_path, "metrics", faults)
    exported = export_path in outputs or (results / export_path).exists()
    export = _read(results / export_path, "export", faults) if exported else None
    files = [layout.STUDENT, layout.SNAPSHOTS]
    files += [layout.PACKED, layout.ONNX] if exported else []
    gone = [Path(f).name for f in files if not (results / f.format(**names)).is_file()]
    if gone:
        faults.append(f"not there: {', '.join(gone)}")
    if metrics is not None and not _usable(metrics):
        faults.append("metrics.json lacks what the page shows; delete it and run evaluate again")
        metrics = None
    if metrics is not None:
        metrics |= {"export": export, "seconds": _seconds(results, metrics)}
    return Run(
        names, metrics, faults, _provenance(metrics, export), _command(results, names, expected)
    )


def _usable(metrics: Mapping[str, Any]) -> bool:
    return {"teacher", "selected", "last", "calibrated", "best_on_test", "epochs"} <= set(metrics)


def _read(path: Path, kind: str, faults: list[str]) -> dict[str, Any] | None:
    if not path.exists():
        faults.append(f"not there: {path.name}")
        return None
    try:
        return read_json(path, kind)
    except ArtifactError as error:
        faults.append(str(error))
        return None


def _command(results: Path, names: Mapping[str, str], expected: Mapping[str, Any]) -> str:
    """What makes the run again; nothing where the config's files are not known."""
    if not expected:
        return ""
    files = expected["configfiles"]
    words = ["snakemake", "--cores", "all", *(["--configfile", *files] if files else [])]
    return " ".join([*words, "--", str(results / layout.METRICS.format(**names))])


def _seconds(results: Path, run: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of each stage that was timed, of all shards of the run together."""
    names = {key: run[key] for key in ("model", "bits", "method", "seed", "image_set")}
    files = {
        "synthesis": [layout.SHARD_SECONDS.format(**names, shard=shard) for shard in run["shards"]],
        "finetune": [layout.FINETUNE_SECONDS.format(**names)],
        "evaluate": [layout.EVALUATE_SECONDS.format(**names)],
        "export": [f"export/{layout.RUN}.tsv".format(**names)],
    }
    sums = {
        stage: sum(read_seconds(results / layout.BENCHMARKS / path) for path in paths)
        for stage, paths in files.items()
    }
    return {stage: value for stage, value in sums.items() if not math.isnan(value)}


def _provenance(
    metrics: Mapping[str, Any] | None, export: Mapping[str, Any] | None
) -> dict[str, str]:
    if metrics is None:
        return {}
    found = {
        "SHA-256 of teacher.safetensors": metrics["teacher_sha256"],
        "checksum of the students": metrics["students_checksum"],
    }
    if export is not None:
        found |= {
            "SHA-256 of student.safetensors": export["student_sha256"],
            "SHA-256 of student.packed.safetensors": export["packed_sha256"],
            "SHA-256 of student.onnx": export["onnx_sha256"],
        }
    found |= {"shards": ", ".join(metrics["shards"]), "seed": str(metrics["seed"])}
    return found | {f"version of {name}": str(value) for name, value in metrics["versions"].items()}


def _overall(
    results: Path,
    measured: Sequence[Mapping[str, Any]],
    verdict: Mapping[str, Any],
    missing: list[str],
) -> Iterator[gallery.Drawn]:
    if not measured:
        return
    yield from gallery.overall(measured, verdict["real"])
    yield from gallery.of_ablation(_ablation(results))
    models = dict.fromkeys(run["model"] for run in measured)
    references = {model: _reference(results, model) for model in models}
    for model, reference in references.items():
        # Without a test set the network is right by definition.
        if reference.get("confusion") is not None or reference.get("top1", 0) is None:
            own = [run for run in measured[:DRAWN] if run["model"] == model]
            yield from gallery.of_confusion(own, reference.get("confusion") or {})
    yield from _sensitivities(results, models, missing)
    for (model, image_set), run in _looked_into(measured).items():
        try:
            pictures = _pictures(results, run)
            yield from _of_images(
                run,
                pictures,
                real=image_set in verdict["real"],
                measured=references[model].get("spectrum"),
            )
            yield gallery.of_difficulty(run, pictures.difficulty)
            yield from _of_networks(results, run, pictures)
        except UserError as error:
            missing.append(f"images of {model}, {image_set}: {error}")


def _looked_into(
    measured: Sequence[Mapping[str, Any]],
) -> dict[tuple[str, str], Mapping[str, Any]]:
    """Model and image set -> the run whose images and layers are shown, since a page has one.

    It is one that was trained, where any was, of the fewest bits of these; the first of several.
    """
    sets: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for run in measured:
        sets.setdefault((run["model"], run["image_set"]), []).append(run)
    return {
        key: min(own, key=lambda run: (not gallery.trained(run), sum(parse_bits(run["bits"]))))
        for key, own in sets.items()
    }


def _reference(results: Path, model: str) -> Mapping[str, Any]:
    """What was measured of the network; empty where that is not there, or of another version.

    What a page cannot do without is in the metrics of the runs.
    """
    try:
        return read_json(results / layout.TEACHER_METRICS.format(model=model), "teacher metrics")
    except ArtifactError:
        return {}


def _ablation(results: Path) -> list[dict[str, Any]]:
    """The rows of the ablation table, where there is one."""
    path = results / layout.TABLE.format(table="ablation", suffix="csv")
    if not path.is_file():
        return []
    rows: list[dict[str, Any]] = pandas.read_csv(path).to_dict("records")
    # That of an older program does not say which method the others are compared with.
    return [row for row in rows if "compared_with" in row]


def _sensitivities(
    results: Path, models: Collection[str], missing: list[str]
) -> Iterator[gallery.Drawn]:
    """What each layer alone costs, wherever that was measured."""
    for path, names in layout.found(results, f"{layout.SENSITIVITY}.json"):
        if names["model"] in models:
            try:
                yield gallery.of_sensitivity(read_json(path, "sensitivity"))
            except ArtifactError as error:
                missing.append(f"the sensitivity: {error}")


class Pictures(NamedTuple):
    """Images ``[K, C, H, W]`` as a network takes them, their classes, and how to show them.

    ``difficulty`` is that of all images of the set, ``[N]``.
    """

    images: torch.Tensor
    labels: list[int]
    difficulty: numpy.ndarray
    mean: torch.Tensor
    std: torch.Tensor

    def shown(self, images: torch.Tensor) -> numpy.ndarray:
        """Such images, or others that were made of them, in [0, 1] for the most part."""
        return (images * self.std + self.mean).numpy()


def _pictures(results: Path, run: Mapping[str, Any]) -> Pictures:
    """The first image of each of the first classes, and how difficult all are."""
    paths = [results / layout.SHARD.format(**{**run, "shard": name}) for name in run["shards"]]
    images: dict[int, torch.Tensor] = {}
    confidences = []
    for path in paths:
        with open_shard(path, run["teacher_sha256"]) as file, refusing(path, REMEDY):
            mean, std = (
                torch.tensor(file.attrs[key], dtype=torch.float32)[:, None, None]
                for key in ("mean", "std")
            )
            labels = file["labels"][:]
            confidences.append(file["confidence"][:])
            for label in shard_classes(path.stem)[: PICTURES - len(images)]:
                (own,) = numpy.nonzero(labels == label)
                if len(own):
                    images[label] = torch.from_numpy(file["images"][own[0]]).float()
    difficulty = 1 - numpy.concatenate(confidences)
    return Pictures(torch.stack(list(images.values())), list(images), difficulty, mean, std)


def _of_images(
    run: Mapping[str, Any],
    pictures: Pictures,
    *,
    real: bool,
    measured: Mapping[str, Sequence[float]] | None,
) -> Iterable[gallery.Drawn]:
    """The images, and filtered as the run's training was shown them."""
    images = pictures.images
    settings = run["settings"]["finetune"]
    filtered = None
    if settings["lowpass"] != "off":
        height, width = images.shape[-2:]
        transfer = blur_transfer(height, width, settings["lowpass_sigma"])
        filtered = pictures.shown(lowpass(images, transfer))
    return gallery.of_images(
        run,
        pictures.shown(images),
        filtered,
        gallery.named(run, pictures.labels),
        real=real,
        measured=measured,
    )


def _of_networks(
    results: Path, run: Mapping[str, Any], pictures: Pictures
) -> Iterator[gallery.Drawn]:
    """Where the network looks, and the run's student before and after its training, if it had any.

    And how far their layers are from the network's. No maps where the network has no convolution
    that one could be of.
    """
    inspection = read_json(results / layout.INSPECTION.format(**run), "inspection")
    network = read_teacher(results / layout.TEACHER.format(**run), torch.device("cpu"))
    students = Students(results / layout.SNAPSHOTS.format(**run))
    check_teacher(students.record, network, students.path)
    own: dict[str, nn.Module] = {}
    states = [("calibrated", "calibrated"), ("shipped", "selected")]
    for label, key in states if gallery.trained(run) else states[1:]:
        student = student_of(network, recipe_of(students.record, students.path))
        student.load_state_dict(students.student(run[key]["epoch"]))
        own[label] = student
    yield from gallery.of_layers(run, errors(network.model, own, pictures.images))
    layer = inspection["cam_layer"]
    if layer is None:
        return
    models = {"original": network.model, **own}
    try:
        found = maps(models, layer, pictures.images, torch.tensor(pictures.labels))
    except RuntimeError as error:
        # Training without maps asks for no gradient here, and the network need not have one.
        print(f"no maps of where {run['model']} looks: {reason(error)}")
        return
    yield gallery.of_attention(
        run, pictures.shown(pictures.images), found, gallery.named(run, pictures.labels)
    )


def _written(drawn: gallery.Drawn, folder: Path) -> Shown:
    """The figure as it stands in the page, after it was written as a file."""
    text = figures.svg(drawn.figure)
    with atomic(folder / f"{drawn.name}.svg") as temporary:
        temporary.write_text(text, "utf-8")
    label = f"{drawn.title}. {drawn.caption}"
    return Shown(drawn.title, drawn.caption, figures.inline(text, drawn.name, label), drawn.wide)
