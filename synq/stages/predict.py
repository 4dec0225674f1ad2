"""Images classified by an exported student in ONNX Runtime, preprocessed as evaluation does it."""

import json as json_
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import onnxruntime

from synq.config.fields import convert
from synq.config.images import Data
from synq.config.targets import EXACT, INT8_ALLOWED
from synq.data.pictures import picture
from synq.errors import ArtifactError, ConfigError, reason

REMEDY = "export the student again"

# In what ONNX Runtime says of a file of a version to come.
UNKNOWN = ("opset", "ir version", "unknown model file format")


def predict(*, model: Path, images: Sequence[Path], top: int, json: bool) -> None:
    """Print the likeliest classes of each image, with their probabilities.

    Nothing is printed where an image cannot be read.
    """
    if top < 1:
        raise ConfigError(f"top is {top}; write 1 or more")
    session, about = _opened(model)
    found = []
    for path in images:
        logits = _logits(session, about, path)
        likely = numpy.exp(logits - logits.max())
        likely /= likely.sum()
        best = numpy.argsort(-likely, kind="stable")[:top].tolist()
        found.append(
            {
                "image": str(path),
                "top": [
                    {"class": c, "name": about["names"][c], "probability": float(likely[c])}
                    for c in best
                ],
            }
        )
    print(json_.dumps(found, indent=2) if json else "\n".join(map(_shown, found)))


def _shown(entry: Mapping[str, Any]) -> str:
    """A line for an image and one for each class."""
    lines = [f"{100 * one['probability']:6.2f} %  {one['name']}" for one in entry["top"]]
    return "\n".join([entry["image"], *lines])


def _opened(path: Path) -> tuple[Any, dict[str, Any]]:
    """The student in ONNX Runtime and its record; ArtifactError where it is something else."""
    if not path.is_file():
        raise ArtifactError(f"{path} does not exist; name a student.onnx")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is told by the exception
    options.add_session_config_entry(EXACT, "1")
    options.add_session_config_entry(INT8_ALLOWED, "1")  # for a file of target tensorrt
    providers = ["CPUExecutionProvider"]
    try:
        # A fallback would be the same provider, and is told in several lines.
        session = onnxruntime.InferenceSession(path, options, providers, enable_fallback=0)
        metadata = session.get_modelmeta().custom_metadata_map
    except Exception as error:  # the runtime has an exception of its own for each kind of fault
        text = _said(error)
        if any(word in text.lower() for word in UNKNOWN):
            raise ArtifactError(
                f"{path} is of a version of ONNX that ONNX Runtime {onnxruntime.__version__} does "
                f"not know ({text}); install a newer one"
            ) from None
        remedy = REMEDY if path.suffix == ".onnx" else "name the student.onnx that export writes"
        raise ArtifactError(f"{path} cannot be read as an ONNX model ({text}); {remedy}") from None
    return session, _record(path, metadata.get("synq"))


def _said(error: Exception) -> str:
    """What ONNX Runtime says, without the number of the error and the place in its source."""
    text = reason(error).rpartition(" failed:")[2]
    return re.sub(r"^\S*onnxruntime_src/.*?\) (?=[A-Z])", "", text)


def _record(path: Path, text: str | None) -> dict[str, Any]:
    if text is None:
        raise ArtifactError(f"{path} is no student of this program: it has no metadata synq")
    try:
        about: dict[str, Any] = json_.loads(text)
        classes, channels, size = (about[key] for key in ("classes", "channels", "image_size"))
        # What a resize needs; the converter has the limits.
        kept = {key: about[key] for key in ("resized_crop", "interpolation")}
        about["pictures"] = convert(Data, kept, "metadata")
        numbers = [*about["mean"], *about["std"], classes, channels, size]
        right = all(type(value) in (int, float) and math.isfinite(value) for value in numbers)
        right = right and len(about["mean"]) == len(about["std"]) == channels
        right = right and len(about["names"]) == classes and min(about["std"]) > 0
    except (ConfigError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"{path} does not say how images are prepared for it ({error}); {REMEDY}"
        ) from None
    if not right:
        raise ArtifactError(f"{path} has metadata that contradict one another; {REMEDY}")
    return about


def _logits(session: Any, about: Mapping[str, Any], path: Path) -> Any:
    """The logits of one image: a network may take no more at a time."""
    pixels = picture(str(path), about["channels"], about["image_size"], about["pictures"]).numpy()
    mean, std = (numpy.array(about[key], numpy.float32)[:, None, None] for key in ("mean", "std"))
    try:
        (logits,) = session.run(None, {"images": ((pixels - mean) / std)[None]})
    except Exception as error:  # as above
        raise ArtifactError(f"the model does not take {path} ({reason(error)}); {REMEDY}") from None
    if logits.shape != (1, about["classes"]):
        raise ArtifactError(f"the model gives {logits.shape}, not {about['classes']} logits")
    return logits[0].astype(numpy.float64)
