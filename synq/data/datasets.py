"""Real images: to train the embedded teacher and to measure accuracy. Synthesis never comes here.

``read`` gives what a config names as ``Images``, for the network that will see them.
"""

import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy
import torch
from filelock import FileLock
from torch import Tensor
from torch.nn import functional

from synq.config.images import Data
from synq.data.arrays import read_arrays
from synq.data.pictures import middle, resized
from synq.data.rows import evenly_spread
from synq.errors import DataError, reason

# A bit for each digit, 1 where it is a test image: a stratified third, drawn once by scikit-learn's
# train_test_split(test_size=1 / 3, random_state=0).
TEST_DIGITS = bytes.fromhex(
    "482004c8b52630c009166121d742450c5a000c1122a40028062c1e081108960a009019320430fca092c396e442"
    "284adab0441724c942c8e24a2130806004d82140eba02000588dc58010420ea09000054ae801f01000328ecc09"
    "005a36840083b8053ca3a69e4e0224000fcbd42804a499dd02124061e540812c604e9c376ba592174154c84048"
    "42a0a4980a5000b64b8561ee891388cf126c82c02205068f422109f202c141bd8813c809190101948e21028410"
    "a8f52033283920c944c8c8688a2102932292030932a6402da6862108aa608198c8a0141286124a12853cb41d20"
)

LOOKED_AT = 16  # images of a file of arrays, which tell it from another one


@dataclass(frozen=True)
class Images:
    """Images in [0, 1]; ``read`` gives those of some positions, ``[n, C, H, W]``.

    ``stream`` gives all of them in order, so many at a time, where there is a faster way to that.
    Where they are not ``labelled``, the labels say nothing of what is on them. ``source`` gives
    another text where they come from other files.
    """

    labels: Tensor
    read: Callable[[Tensor], Tensor]
    classes: int
    stream: Callable[[int], Iterator[Tensor]] | None = None
    labelled: bool = True
    source: Callable[[], str] = str

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def digest(self) -> str:
        """16 hexadecimal digits, other ones for other images, as far as files and labels tell."""
        told = f"{self.source()} {self.labelled} ".encode() + self.labels.numpy().tobytes()
        return hashlib.sha256(told).hexdigest()[:16]

    def batches(
        self, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Normalised images ``[n, C, H, W]`` and labels ``[n]``, in order."""
        parts = torch.arange(len(self)).split(size)
        pixels = self.stream(size) if self.stream else map(self.read, parts)
        for indices, images in zip(parts, pixels, strict=True):
            yield normalise(images, mean, std), self.labels[indices]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x - mean) / std for each channel."""
    return (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def read(
    dataset: str,
    settings: Data,
    split: str,
    *,
    classes: int,
    image_shape: tuple[int, int, int],
    name: str,
) -> Images:
    """The images that a config names, for the network ``name`` of that many classes and input.

    ``split`` is ``test`` or ``train``; a folder and a file without splits are what they are.
    Raises DataError where the images have labels, and not of as many classes.
    """
    channels, size, _ = image_shape
    if dataset == "digits":
        images = digits(split, channels, size)
    elif dataset == "folder":
        images = folder(settings, channels, size)
    elif dataset == "arrays":
        images = arrays(settings, split, channels, size, classes)
    else:
        images = cifar(dataset, settings, split, channels, size)
    if images.labelled and images.classes != classes:
        raise DataError(
            f"the images of dataset: {dataset} have {images.classes} classes, but {name} has "
            f"{classes}"
        )
    if settings.part == "all":
        return images
    if len(images) < 2:
        raise DataError(f"one image has no {settings.part} half; write part: all, or give more")
    return half_of(images, settings.part)


def half_of(images: Images, part: str) -> Images:
    """The ``development`` or the ``report`` half, the same ones wherever they are asked for."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    middle = (len(images) + 1) // 2
    chosen = (order[:middle] if part == "development" else order[middle:]).sort().values
    labels = images.labels[chosen]

    def read_rows(rows: Tensor) -> Tensor:
        return images.read(chosen[rows])

    return replace(images, labels=labels, read=read_rows, stream=None)


def digits(split: str, channels: int, size: int) -> Images:
    """The 1,797 digits of scikit-learn, 8x8 in grey, enlarged bilinearly; 599 are test images."""
    table = _digits_table()
    bits = numpy.unpackbits(numpy.frombuffer(TEST_DIGITS, numpy.uint8), count=len(table))
    chosen = torch.from_numpy(table[bits == (split == "test")])
    small = chosen[:, :-1].reshape(-1, 1, 8, 8) / 16
    large = functional.interpolate(small, (size, size), mode="bilinear", align_corners=False)
    images = large.expand(-1, channels, -1, -1)
    return Images(chosen[:, -1].long(), images.__getitem__, 10)


def _digits_table() -> "numpy.ndarray[Any, Any]":
    """Pixels and class of each digit, ``[1797, 65]``."""
    # To import scikit-learn for its file takes as long as to measure a student.
    package = importlib.util.find_spec("sklearn")
    for folder_ in (package and package.submodule_search_locations) or []:
        path = Path(folder_, "datasets", "data", "digits.csv.gz")
        if path.is_file():
            return numpy.loadtxt(path, delimiter=",", dtype=numpy.float32)
    raise DataError("dataset: digits is a file of scikit-learn, which is not here; install that")


def folder(settings: Data, channels: int, size: int) -> Images:
    """Images in one directory a class, numbered by ``class_folders``; unlabelled where none is."""
    # A torchvision that was built for another torch fails with RuntimeError.
    try:
        from synq.data.folders import Folder
    except (ImportError, RuntimeError) as error:
        raise _without_torchvision("folder", error) from None
    files = Folder(Path(settings.path), channels, size, settings)
    return Images(
        files.labels, files.read, files.classes, files.stream, files.labelled, files.digest
    )


def _without_torchvision(dataset: str, error: Exception) -> DataError:
    return DataError(
        f"dataset: {dataset} needs torchvision, which cannot be imported ({reason(error)}); "
        f"install the one that fits torch {torch.__version__}"
    )


def arrays(settings: Data, split: str, channels: int, size: int, classes: int) -> Images:
    """Images, and labels if any, in one .npz or HDF5 file, each read when it is asked for."""
    file = read_arrays(Path(settings.path), split, channels)
    if int(file.labels.max()) >= classes:
        raise DataError(
            f"{settings.path} has the label {int(file.labels.max())}, but the network has classes "
            f"0 to {classes - 1}"
        )

    def read_rows(indices: Tensor) -> Tensor:
        images = file.read(indices)
        height, width = images.shape[2:]
        if (height, width) == (size, size):
            return images
        width, height = resized(width, height, size, settings.resized_crop)
        images = functional.interpolate(
            images,
            (height, width),
            mode=settings.interpolation,
            align_corners=False,
            antialias=True,
        ).clamp(0, 1)
        left, top = middle(width, size), middle(height, size)
        return images[:, :, top : top + size, left : left + size]

    def digest() -> str:
        some = file.read(evenly_spread(len(file.labels), LOOKED_AT))
        return hashlib.sha256(some.numpy().tobytes()).hexdigest()

    return Images(file.labels, read_rows, classes, labelled=file.labelled, source=digest)


def cifar(name: str, settings: Data, split: str, channels: int, size: int) -> Images:
    """CIFAR-10 or CIFAR-100 through torchvision, downloaded once into ``path``."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise _without_torchvision(name, error) from None
    if (channels, size) != (3, 32):
        raise DataError(f"{name} has images of 3x32x32, the network takes {channels}x{size}x{size}")
    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's, about torchvision's pickles
            data = _brought(partial(source, settings.path, train=split == "train"), settings.path)
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{name} cannot be read or downloaded ({str(error).splitlines()[0]}); "
            f"put the extracted {source.base_folder} of {source.url} into {settings.path}"
        ) from None
    pixels = torch.from_numpy(data.data)

    def read_rows(indices: Tensor) -> Tensor:
        return pixels[indices].permute(0, 3, 1, 2).float() / 255

    return Images(torch.tensor(data.targets), read_rows, len(data.classes))


def _brought(source: Callable[..., Any], folder: str) -> Any:
    """What torchvision finds in the folder, downloaded where it is not whole.

    Jobs begin together, and torchvision writes where others read: one of them does it.
    """
    try:
        return source(download=False)
    except RuntimeError:  # torchvision's, of files that are not there or not whole
        Path(folder).mkdir(parents=True, exist_ok=True)
        with FileLock(Path(folder, ".download.lock")):
            return source(download=True)
