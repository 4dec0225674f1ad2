"""Real images: to train the embedded teacher and to measure accuracy. Synthesis never comes here.

A data set is a function from its split and the model's input to ``Images``.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from synq.errors import DataError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".tif", ".tiff"}
# Share of the resized image that the centre crop keeps: 224 of 256, as for ImageNet. Images that
# have the network's size are left alone.
CROP_SHARE = 0.875


@dataclass(frozen=True)
class Images:
    """Labelled images in [0, 1]; ``read`` gives those of some positions, ``[n, C, H, W]``."""

    labels: Tensor
    read: Callable[[Tensor], Tensor]
    classes: int

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images ``[n, C, H, W]`` and labels ``[n]``, in order."""
        for indices in torch.arange(len(self)).split(size):
            yield normalise(self.read(indices), mean, std), self.labels[indices]


class _Files:
    def __init__(self, paths: Sequence[Path], channels: int, size: int) -> None:
        self.paths, self.channels, self.size = paths, channels, size

    def __call__(self, indices: Tensor) -> Tensor:
        return torch.stack([self._one(self.paths[index]) for index in indices.tolist()])

    def _one(self, path: Path) -> Tensor:
        try:
            with Image.open(path) as file:
                image = file.convert("L" if self.channels == 1 else "RGB")
        except (OSError, UnidentifiedImageError) as error:
            raise DataError(f"{path} cannot be read as an image ({error})") from None
        if image.size != (self.size, self.size):
            image = _resize_and_crop(image, self.size)
        array = numpy.asarray(image, dtype=numpy.float32) / 255
        return torch.from_numpy(numpy.atleast_3d(array)).permute(2, 0, 1)


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    shorter = round(size / CROP_SHARE)
    width, height = image.size
    scale = shorter / min(width, height)
    image = image.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std for each channel."""
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def digits(split: str, channels: int, size: int) -> Images:
    """scikit-learn's digits (1,797 images of 8x8 in grey), a fixed stratified third as test set."""
    # Imported here: the evaluation of any other data set does not need it.
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    data = load_digits()
    train, test = train_test_split(
        numpy.arange(len(data.target)), test_size=1 / 3, stratify=data.target, random_state=0
    )
    chosen = numpy.sort(train if split == "train" else test)
    small = torch.from_numpy(data.images[chosen]).float()[:, None] / 16
    large = torch.nn.functional.interpolate(
        small, (size, size), mode="bilinear", align_corners=False
    )
    images = large.expand(-1, channels, -1, -1)
    return Images(torch.from_numpy(data.target[chosen]).long(), images.__getitem__, 10)


def folder(path: str, channels: int, size: int) -> Images:
    """Images in one directory a class; classes are numbered in the order of their names."""
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{path} is not a folder; path names the folder that holds the classes")
    classes = sorted(entry for entry in root.iterdir() if entry.is_dir())
    files = [
        (file, number)
        for number, directory in enumerate(classes)
        for file in sorted(directory.rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if not files:
        raise DataError(f"{path} holds no images; it needs one folder a class with images in it")
    labels = torch.tensor([number for _, number in files])
    return Images(labels, _Files([file for file, _ in files], channels, size), len(classes))


def read(
    dataset: str,
    path: str,
    split: str,
    *,
    classes: int,
    image_shape: tuple[int, int, int],
    name: str,
) -> Images:
    """The images that a config names, for the network ``name`` of that many classes and input.

    ``split`` is ``test`` or ``train``; a folder is what it is. Raises DataError where the images
    are not of as many classes.
    """
    channels, size, _ = image_shape
    images = digits(split, channels, size) if dataset == "digits" else folder(path, channels, size)
    if images.classes != classes:
        raise DataError(f"the images have {images.classes} classes, but {name} has {classes}")
    return images
