"""What speaks against a student, in words, beside what it lost."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from synq.reporting.changes import Changes, difference_error, measured_on

NAMED = 3  # of a long list in one sentence

Runs = Sequence[Mapping[str, Any]]


def doubts(runs: Runs, found: Mapping[str, Any], beside: Runs, error: float) -> list[str]:
    """A sentence each, without its full stop.

    ``found`` is the verdict of these runs so far, ``beside`` the runs of ``untrained``, and
    ``error`` the standard error of what was lost, of images and seeds.
    """
    said = list(dict.fromkeys(filter(None, (run["remark"] for run in runs))))
    if len(runs) == 1:
        said.append("one seed: by how much another one differs is not known")
    if runs[0]["settings"]["finetune"]["epochs"]:
        said += _training(runs, found, beside)
    left = (found["quantized"] or {}).get("left", [])
    if left:
        some = ", ".join(left[:NAMED]) + (", ..." if len(left) > NAMED else "")
        said.append(f"{several(len(left), 'layer')} in full precision: {some}")
    return [*said, *_runtimes(runs), *_undecided(found, error)]


def untrained(runs: Runs, groups: Mapping[Any, Runs]) -> Runs:
    """Of all runs in groups, those of the best method that trains nothing, at the same network and
    width; none where there is no such method.
    """
    model, bits = runs[0]["model"], runs[0]["bits"]
    same = [own for own in groups.values() if (own[0]["model"], own[0]["bits"]) == (model, bits)]
    still = [own for own in same if not own[0]["settings"]["finetune"]["epochs"]]
    return max(still, key=lambda own: _mean(own, "selected", "top1"), default=())


def mean_changes(runs: Runs, student: str) -> Changes:
    """Of the runs' ``calibrated`` or ``selected`` students."""
    return Changes(*(_mean(runs, student, key) for key in Changes._fields))


def several(count: float, what: str) -> str:
    """``1 seed``, ``2 seeds``."""
    return f"{count:g} {what}{'' if count == 1 else 's'}"


def _mean(runs: Runs, student: str, key: str) -> float:
    return statistics.fmean(run[student][key] for run in runs)


def _training(runs: Runs, found: Mapping[str, Any], beside: Runs) -> Iterator[str]:
    """Where what is not trained is right more often: how surely, and what to do."""
    own, before = found["top1"], _mean(runs, "calibrated", "top1")
    if own < before:
        error = _error(runs, runs, "calibrated", found["test_images"])
        sure = before - own > 2 * error
        shown = "" if sure else f" that {found['test_images']} {measured_on(runs[0])} could show"
        advice = (
            "`finetune: {epochs: 0}` in the method ships that, and `untrained` may be better"
            if sure
            else _known(error)
        )
        yield (
            f"fine-tuning gained nothing{shown}: it is {own:.2f} % trained, and was "
            f"{before:.2f} % calibrated{_closer(runs, found)}; {advice}"
        )
    if beside and own < (best := _mean(beside, "selected", "top1")):
        error = _error(runs, beside, "selected", found["test_images"])
        method = beside[0]["method"]
        yield (
            f"{method}, which trains nothing, has {best:.2f} %, and this {own:.2f} %"
            + ("" if best - own > 2 * error else f"; {_known(error)}")
        )


def _error(runs: Runs, others: Runs, student: str, images: int) -> float:
    """Standard error of the difference to those students of the others, of images and seeds."""
    of_images = difference_error(
        mean_changes(runs, "selected"), mean_changes(others, student), images
    )
    tops = {run["seed"]: run[student]["top1"] for run in others}
    gains = [run["selected"]["top1"] - tops[run["seed"]] for run in runs if run["seed"] in tops]
    if len(gains) < 2:
        return of_images
    return math.hypot(of_images, statistics.stdev(gains) / math.sqrt(len(gains)))


def _known(error: float) -> str:
    return f"the difference is known to ± {error:.2f} points or better (standard error)"


def _closer(runs: Runs, found: Mapping[str, Any]) -> str:
    """What speaks for a trained student that is less often right: answers nearer the original's."""
    before = _mean(runs, "calibrated", "other")
    if found["changes"]["other"] >= before:
        return ""
    shares = [100 * other / found["test_images"] for other in (found["changes"]["other"], before)]
    return ", though it names another class than the original on {:.2f} %, not {:.2f}".format(
        *shares
    )


def _runtimes(runs: Runs) -> Iterator[str]:
    """Where a runtime's answers are not torch's."""
    exports = [run["export"] for run in runs if run.get("export")]
    for runtime, key in {"ONNX Runtime": "", "OpenVINO": "openvino_"}.items():
        for on, images in {"": "images of the training", "test_": "test images"}.items():
            agreements = [export.get(f"{key}{on}agreement") for export in exports]
            known = [agreement for agreement in agreements if agreement is not None]
            if known and min(known) < 100:
                yield (
                    f"{runtime} names another class than torch on {100 - min(known):.2f} % of "
                    f"the {images} that were tried"
                )


def _undecided(found: Mapping[str, Any], error: float) -> list[str]:
    """A doubt where the loss and what may be lost are closer than twice the standard error."""
    if found["judgement"] not in ("within", "over"):
        return []
    if abs(found["lost"] - found["points"]) > 2 * error:
        return []
    return [
        f"too close to decide: the loss is known to ± {error:.2f} points (standard error, of the "
        "test images and the seeds), and is less than two of these from what is allowed"
    ]
