"""Images in one folder a class, or in one, by torchvision's ImageFolder; imported when needed."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder

from synq.config.images import Data
from synq.data.names import class_folders
from synq.data.pictures import is_picture, picture
from synq.errors import DataError

# What stands for the classes of images that nobody has sorted.
UNSORTED = ["."]


class _Visible(ImageFolder):
    """An ImageFolder with the classes of ``class_folders``: names may say their order."""

    def __init__(self, root: Path, names: Sequence[str], **more: Any) -> None:
        self._names = names
        super().__init__(root, **more)

    def find_classes(self, directory: Any) -> tuple[list[str], dict[str, int]]:
        ordered = class_folders(Path(directory), self._names) or UNSORTED
        return ordered, {name: number for number, name in enumerate(ordered)}


class Folder(Dataset[Tensor | DataError]):
    """The images below ``root``, classes numbered by the settings' names, or by the alphabet.

    Where there is no folder below it, its own images, which are not ``labelled``.
    """

    def __init__(self, root: Path, channels: int, size: int, settings: Data) -> None:
        """List the files; DataError where there is no folder, no image, or none of a class."""
        if not root.is_dir():
            raise DataError(f"{root} is not a folder; path names the folder that holds the classes")
        load = partial(picture, channels=channels, size=size, settings=settings)
        self._files = _Visible(
            root,
            settings.names,
            loader=load,
            is_valid_file=partial(is_picture, root=root),
            allow_empty=True,
        )
        self.labelled = self._files.classes != UNSORTED
        self.labels = torch.tensor(self._files.targets, dtype=torch.long)
        if not len(self.labels):
            raise DataError(
                f"{root} holds no images; it needs one folder a class with images in it, or images "
                "alone, without labels"
            )
        counts = self.labels.bincount(minlength=len(self._files.classes))
        for name, count in zip(self._files.classes, counts.tolist(), strict=True):
            if not count:
                raise DataError(f"{root / name} holds no image; fill or remove this class")
        self.classes = len(counts)

    def __len__(self) -> int:
        return len(self._files)

    def digest(self) -> str:
        """SHA-256 of the files' names below ``root`` and their sizes; none is opened."""
        told = hashlib.sha256()
        for file, _ in self._files.samples:
            name = os.path.relpath(file, self._files.root)
            told.update(f"{name} {os.path.getsize(file)}\n".encode(errors="surrogateescape"))
        return told.hexdigest()

    def __getitem__(self, index: int) -> Tensor | DataError:
        """An image ``[C, H, W]``, or why there is none: a worker's exceptions lose their line."""
        try:
            image, _ = self._files[index]
        except DataError as error:
            return error
        return image  # type: ignore[no-any-return]

    def read(self, indices: Tensor) -> Tensor:
        """The images of these positions, ``[n, C, H, W]``."""
        return _whole(_batch([self[index] for index in indices.tolist()]))

    def stream(self, size: int) -> Iterator[Tensor]:
        """All images in order, ``size`` at a time, decoded by a process for each thread."""
        threads = torch.get_num_threads()
        workers = min(threads, -(-len(self) // size)) if threads > 1 else 0
        loader = DataLoader(self, size, num_workers=workers, collate_fn=_batch)
        yield from map(_whole, loader)


def _batch(images: list[Tensor | DataError]) -> Tensor | DataError:
    tensors = []
    for image in images:
        if isinstance(image, DataError):
            return image
        tensors.append(image)
    return torch.stack(tensors)


def _whole(batch: Tensor | DataError) -> Tensor:
    if isinstance(batch, DataError):
        raise batch
    return batch
