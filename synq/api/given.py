"""The test images that a caller gave: settings of them, or batches."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synq.data.rows import evenly_spread
from synq.errors import DataError
from synq.models.teacher import Teacher

# Images alone, as a tensor or a sequence of one, or images and labels.
Batch = Tensor | Sequence[Tensor]
# A folder, settings as in the config's ``test``, or images as the network takes them.
Test = str | Path | Mapping[str, Any] | Iterable[Batch] | None


def settings_or_batches(test: Test) -> tuple[Iterable[Batch] | None, Mapping[str, Any] | None]:
    """Batches of images, or settings of a test set, whichever was given."""
    if isinstance(test, str | Path):
        return None, {"dataset": "folder", "path": str(test)}
    if test is None or isinstance(test, Mapping):
        return None, test
    if not isinstance(test, Iterable):
        raise DataError(
            f"test is a {type(test).__name__}; give a folder, settings, or batches of images and "
            "labels"
        )
    if isinstance(test, Tensor):
        return [test], None
    if isinstance(test, Sequence) and len(test) == 2 and getattr(test[1], "ndim", 0) == 1:
        return [[*test]], None  # images and labels, and no two batches
    # What can be read once alone is kept: ``to_onnx`` looks at test images, too.
    return list(test) if isinstance(test, Iterator) else test, None


@dataclass(frozen=True)
class Given:
    """``images`` of them in batches, which are read anew each time: a DataLoader, or a list."""

    given: Iterable[Batch]
    network: Teacher
    images: int

    def batches(self, count: int, size: int) -> Iterator[tuple[Tensor, Tensor | None]]:
        """At most ``count`` of them, evenly spread, on the CPU, by batches of at most ``size``.

        None are the labels of images alone. DataError where there are fewer than there were.
        """
        wanted, seen = evenly_spread(self.images, count), 0
        for images, labels in checked(self.given, self.network):
            own = wanted[(wanted >= seen) & (wanted < seen + len(images))] - seen
            seen += len(images)
            for rows in own.split(size) if len(own) else ():
                yield images.cpu()[rows], None if labels is None else labels[rows]
        if seen < self.images:
            raise DataError(
                f"test gave {self.images} images, and {seen} when it was read again; give a "
                "DataLoader, or a list of batches"
            )


def checked(batches: Iterable[Batch], network: Teacher) -> Iterator[tuple[Tensor, Tensor | None]]:
    """The same in float32; DataError where a batch is not of what the network takes and names."""
    labelled: bool | None = None
    for batch in batches:
        parts: Sequence[Tensor] = [batch] if isinstance(batch, Tensor) else batch
        pair = isinstance(parts, Sequence) and len(parts) in (1, 2)
        if not (pair and all(isinstance(part, Tensor) for part in parts)):
            raise DataError(
                "test gives batches that are neither tensors of images nor pairs of tensors, "
                "images and labels"
            )
        images, labels = parts[0], parts[1] if len(parts) == 2 else None
        if not len(images):
            continue
        if labelled not in (None, labels is not None):
            raise DataError("test gives batches with labels and without; give one kind alone")
        labelled = labels is not None
        _check_images(images, network)
        if labels is not None:
            _check_labels(labels, len(images), network)
        yield images.float(), None if labels is None else labels.long().cpu()


def _check_images(images: Tensor, network: Teacher) -> None:
    if images.shape[1:] != network.image_shape:
        raise DataError(
            f"test gives images of {list(images.shape)}, not of "
            f"[n, {', '.join(map(str, network.image_shape))}]"
        )
    if not (images.is_floating_point() and bool(images.isfinite().all())):
        raise DataError(
            f"test gives images of {_kind(images)}; write finite floats, normalised as the network "
            "takes them"
        )


def _check_labels(labels: Tensor, count: int, network: Teacher) -> None:
    if labels.shape != (count,):
        raise DataError(f"test gives labels of {list(labels.shape)}, not of [{count}]")
    if labels.is_floating_point() or labels.dtype == torch.bool:
        raise DataError(f"test gives labels of {_kind(labels)}; write the numbers of the classes")
    if int(labels.min()) < 0 or int(labels.max()) >= network.classes:
        raise DataError(
            f"test has the label {int(labels.max())}, but {network.name} has classes 0 to "
            f"{network.classes - 1}"
        )


def answered(
    batches: Iterable[tuple[Tensor, Tensor | None]], network: Teacher
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same, with the network's answers for the labels that are None."""
    device = next(network.model.parameters()).device
    for images, labels in batches:
        seen = network.model(images.to(device)).argmax(1).cpu() if labels is None else labels
        yield images, seen


def _kind(values: Tensor) -> str:
    kind = str(values.dtype).removeprefix("torch.")
    return kind if bool(values.isfinite().all()) else f"{kind} (NaN or infinite)"
