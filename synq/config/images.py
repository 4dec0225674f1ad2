"""Real images: test sets, and the few of a few-shot method."""

from dataclasses import dataclass

from synq.config.fields import setting
from synq.config.published import benchmarks
from synq.errors import ConfigError

DATASETS = ("none", "digits", "folder", "arrays", "cifar10", "cifar100")


_DATASET = (
    "digits: scikit-learn's, inside the package; folder: one directory of images a class, or "
    "images alone, which have no labels; arrays: an .npz or HDF5 file, with labels or without; "
    "cifar10, cifar100: torchvision's, downloaded into path; none: "
)


_PATH = "the folder (folder), the file (arrays), or where to keep the download (cifar10, cifar100)"


@dataclass(frozen=True, kw_only=True)
class Data:
    """Real images, as an evaluation or a few-shot method reads them."""

    path: str = setting("", _PATH)
    resized_crop: float = setting(
        0.875,
        "share of the resized image's shorter side that the centre crop keeps; images that have "
        "the input's size are left alone (folder, arrays)",
        above=0,
        maximum=1,
    )
    interpolation: str = setting(
        "bilinear", "of the resizing (folder, arrays)", choices=("bilinear", "bicubic")
    )

    part: str = setting(
        "all",
        "which of the images: all, or one of two halves that chance has made once and for all, "
        "development (to decide by) and report (to report on)",
        choices=("all", "development", "report"),
    )

    names: tuple[str, ...] = setting(
        (),
        "names of the classes in the network's order, or one text file with a name a line; where "
        "the directories have exactly these names, that is their order, and else the alphabet's "
        "(folder)",
    )

    def __post_init__(self) -> None:
        dataset = getattr(self, "dataset", "none")
        if dataset in ("folder", "arrays", "cifar10", "cifar100") and not self.path:
            raise ConfigError(f"path is missing; dataset: {dataset} needs {_PATH}")


@dataclass(frozen=True, kw_only=True)
class TestSet(Data):
    """The real images that accuracy is measured on."""

    dataset: str = setting(
        "none",
        _DATASET + "there is no test set, so agreement with the teacher is measured, "
        "on the synthetic images that were held out",
        choices=DATASETS,
    )
    published: str = setting(
        "",
        "the papers' benchmark that model and test set are, to show their numbers beside",
        choices=("", *benchmarks()),
    )


@dataclass(frozen=True, kw_only=True)
class RealImages(Data):
    """A few real images in place of synthetic ones (image sets with source: real)."""

    dataset: str = setting("none", _DATASET + "there are none", choices=DATASETS)
    images_per_class: int = setting(16, "images of each class, drawn by the seed", minimum=1)
    classes_per_shard: int = setting(1, "classes in one file", minimum=1)
