"""Test images that the caller gave as batches, and not as settings."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from synq.data.rows import evenly_spread
from synq.errors import DataError
from synq.models.teacher import Teacher


@dataclass(frozen=True)
class Given:
    """``images`` of them in batches, which are read anew each time: a DataLoader, or a list."""

    given: Iterable[tuple[Tensor, Tensor]]
    network: Teacher
    images: int

    def batches(self, count: int, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """At most ``count`` of them, evenly spread, on the CPU, by batches of at most ``size``.

        DataError where there are fewer than there were.
        """
        wanted, seen = evenly_spread(self.images, count), 0
        for images, labels in checked(self.given, self.network):
            own = wanted[(wanted >= seen) & (wanted < seen + len(images))] - seen
            seen += len(images)
            for rows in own.split(size) if len(own) else ():
                yield images.cpu()[rows], labels[rows]
        if seen < self.images:
            raise DataError(
                f"test gave {self.images} images, and {seen} when it was read again; give a "
                "DataLoader, or a list of batches"
            )


def checked(
    batches: Iterable[tuple[Tensor, Tensor]], network: Teacher
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same in float32; DataError where a batch is not of what the network takes and names."""
    for batch in batches:
        pair = isinstance(batch, Sequence) and len(batch) == 2
        if not (pair and all(isinstance(part, Tensor) for part in batch)):
            raise DataError("test gives batches that are no pairs of tensors, images and labels")
        images, labels = batch
        if not len(images):
            continue
        if images.shape[1:] != network.image_shape or labels.shape != (len(images),):
            raise DataError(
                f"test gives batches of {list(images.shape)} with labels {list(labels.shape)}, "
                f"not of [n, {', '.join(map(str, network.image_shape))}] with labels [n]"
            )
        whole = not labels.is_floating_point() and labels.dtype != torch.bool
        if not (images.is_floating_point() and bool(images.isfinite().all()) and whole):
            raise DataError(
                f"test gives {_kind(images)} images with {_kind(labels)} labels; write finite "
                "floats, normalised as the network takes them, and the numbers of the classes"
            )
        if int(labels.min()) < 0 or int(labels.max()) >= network.classes:
            raise DataError(
                f"test has the label {int(labels.max())}, but {network.name} has classes 0 to "
                f"{network.classes - 1}"
            )
        yield images.float(), labels.long().cpu()


def _kind(values: Tensor) -> str:
    kind = str(values.dtype).removeprefix("torch.")
    return kind if bool(values.isfinite().all()) else f"{kind} (NaN or infinite)"
