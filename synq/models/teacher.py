"""Teachers and students on disk: a checkpoint and everything that is needed to build it again."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from synq.config.images import RealImages
from synq.config.model import Model
from synq.config.synthesis import Synthesis
from synq.errors import ArtifactError, ConfigError
from synq.io.artifacts import checksum, file_sha256, read_checkpoint, write_checkpoint
from synq.models.build import checked, frozen
from synq.models.layout import LAYOUTS, arranged, layout_of
from synq.models.scale import Scale, scale_of
from synq.models.sources import construct
from synq.models.structure import copied
from synq.models.weights import load_weights
from synq.runtime.process import versions

LARGEST_IMAGE = 2048  # pixels a side
# By how much of the largest logit two processors may differ; other code differs by more.
SAME_ANSWERS = 0.02
ANSWERS = 64  # logits of an image that a file keeps, at most


@dataclass(frozen=True)
class Teacher:
    """A full-precision network, frozen, and what its input looks like."""

    model: nn.Module
    sha256: str
    name: str
    classes: int
    image_shape: tuple[int, int, int]
    mean: list[float]
    std: list[float]
    factory: str = ""  # the user's own function that makes it, if any

    @property
    def scale(self) -> Scale:
        """Of its input, to images that are normalised by their mean and deviation."""
        return scale_of(self.mean, self.std)

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """Black and white in that scale, ``[C, 1, 1]`` each: no image has a pixel beyond them."""
        means, deviations = (torch.tensor(v)[:, None, None] for v in (self.mean, self.std))
        black, white = (self.scale.of_images((v - means) / deviations) for v in (0.0, 1.0))
        return black, white


def write_teacher(
    path: Path,
    tensors: Mapping[str, Tensor],
    settings: Model,
    *,
    name: str,
    mean: Sequence[float],
    std: Sequence[float],
    origin: str,
    memory_format: str = "channels_last",
    output: Sequence[str] = (),
    answers: Sequence[Sequence[float]] = (),
) -> None:
    """Write a teacher as safetensors, with all that ``read_teacher`` needs to build it again.

    ``memory_format`` is what ``layout_of`` says, ``output`` what ``told`` does, and ``answers``
    what ``answers_of`` does, by which a network of other code is told.
    """
    record = {
        "name": name,
        "source": settings.source,
        "architecture": settings.architecture,
        "factory": settings.factory,
        "classes": settings.classes,
        "channels": settings.channels,
        "image_size": settings.image_size,
        "mean": list(mean),
        "std": list(std),
        "origin": origin,
        "memory_format": memory_format,
        "output": list(output),
        "answers": [list(logits) for logits in answers],
        "versions": versions(),
    }
    write_checkpoint(path, "teacher", tensors, record)


def answers_of(
    model: nn.Module, image_shape: Sequence[int], mean: Sequence[float], std: Sequence[float]
) -> list[list[float]]:
    """The first logits for two images of noise in [0, 1], of a frozen model on the CPU."""
    noise = torch.rand(2, *image_shape, generator=torch.Generator().manual_seed(0))
    means, deviations = (torch.tensor(values)[:, None, None] for values in (mean, std))
    with torch.no_grad():
        logits: Tensor = model((noise - means) / deviations)
    found: list[list[float]] = logits[:, :ANSWERS].float().tolist()
    return found


def read_teacher(path: Path, device: torch.device) -> Teacher:
    """Build the network that a teacher's file describes and load it, frozen."""
    tensors, record = read_checkpoint(path, "teacher")
    _check_record(path, record, tensors)
    try:
        channels, size = record["channels"], record["image_size"]
        model = construct(
            record["source"],
            record["architecture"],
            record["factory"],
            classes=record["classes"],
            channels=channels,
            image_size=size,
        )
        load_weights(model, tensors, str(path))
        # Channels last: a third less time a forward on a CPU (docs/experiments.md).
        model = arranged(frozen(model), record["memory_format"])
        _check_answers(path, model, record)
        return Teacher(
            model.to(device),
            file_sha256(path),
            record["name"],
            record["classes"],
            (channels, size, size),
            record["mean"],
            record["std"],
            record["factory"],
        )
    except KeyError as error:
        raise ArtifactError(f"{path} lacks {error} in its record; make it again") from None


def held_teacher(model: nn.Module, settings: Model, name: str, device: torch.device) -> Teacher:
    """A copy of a network as the teacher that a file of it would be read as.

    ``sha256`` is of its state and not of a file. Raises ModelError where it is no such classifier.
    """
    shape = (settings.channels, settings.image_size, settings.image_size)
    network = checked(lambda: copied(model, name), name, settings.classes, shape[0], shape[1])
    state = {key: value.detach().contiguous() for key, value in network.state_dict().items()}
    return Teacher(
        arranged(frozen(network), layout_of(network, shape)).to(device),
        checksum({}, state),
        name,
        settings.classes,
        shape,
        list(settings.mean),
        list(settings.std),
    )


def _check_record(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """ArtifactError where these tensors cannot be the weights of the network that is asked for.

    The network is built before they are loaded, and building an absurd one takes all memory.
    """
    largest = max((max(tensor.shape, default=1) for tensor in tensors.values()), default=1)
    limits = {"classes": largest, "channels": largest, "image_size": LARGEST_IMAGE}
    right = all(
        type(record.get(key)) is int and 1 <= record[key] <= limit for key, limit in limits.items()
    )
    right = right and all(isinstance(record.get(key), str) for key in ("name", "architecture"))
    for key in ("mean", "std"):
        values: Any = record.get(key)
        right = right and isinstance(values, list) and len(values) == record["channels"]
        right = right and all(type(v) in (int, float) and abs(v) < math.inf for v in values)
    right = right and record.get("memory_format") in tuple(LAYOUTS)
    if not right or min(record["std"]) <= 0:
        raise ArtifactError(f"{path} has a record that does not fit its weights; make it again")


def _check_answers(path: Path, model: nn.Module, record: Mapping[str, Any]) -> None:
    """ArtifactError where the code that builds the network has changed what it computes."""
    if not record.get("answers"):  # a file of before
        return
    shape = (record["channels"], record["image_size"], record["image_size"])
    found = torch.tensor(answers_of(model, shape, record["mean"], record["std"]))
    wanted = torch.tensor(record["answers"])
    difference = SAME_ANSWERS * float(wanted.abs().max())
    if found.shape == wanted.shape and float((found - wanted).abs().max()) <= difference:
        return
    raise ArtifactError(
        f"{path} was written of a network that answers otherwise than the one that "
        f"{record['factory'] or record['architecture']} builds now; its code has changed: delete "
        "that file, and what was made of it is made again"
    )


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the parameters and statistics as they are stored, those in common once."""
    tensors = {id(tensor): tensor for tensor in model.state_dict(keep_vars=True).values()}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


def check_classes(classes: Sequence[int], teacher: Teacher) -> None:
    """ConfigError where the teacher has no such class."""
    for number in classes:
        if not 0 <= number < teacher.classes:
            raise ConfigError(
                f"class {number} does not exist; {teacher.name} has 0 to {teacher.classes - 1}"
            )


def shard_record(
    teacher: Teacher, classes: Sequence[int], seed: int, settings: Synthesis | RealImages
) -> dict[str, Any]:
    """The attributes of a shard that was made with this teacher."""
    return {
        "classes": classes,
        "model": teacher.name,
        "teacher_sha256": teacher.sha256,
        "mean": teacher.mean,
        "std": teacher.std,
        "seed": seed,
        "settings": json.dumps(dataclasses.asdict(settings), sort_keys=True),
        "versions": versions(),
    }
