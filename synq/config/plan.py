"""The config as a whole: which models, image sets and methods there are, and the settings of each.

Settings are layered. Later layers win: defaults of the dataclasses, the stage's section at the top
of the config, the model's own section of that stage, the image set's or the method's.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from synq.config.calibration import Calibration
from synq.config.evaluation import Evaluation
from synq.config.export import Export
from synq.config.fields import convert
from synq.config.finetune import Finetune
from synq.config.grid import Ablation, Accept, Grid
from synq.config.images import RealImages, TestSet
from synq.config.model import Model
from synq.config.synthesis import Synthesis

STAGES = {
    "synthesis": Synthesis,
    "real": RealImages,
    "calibration": Calibration,
    "finetune": Finetune,
    "evaluation": Evaluation,
    "export": Export,
    "test": TestSet,
}


METHOD_STAGES = ("calibration", "finetune")


# Where an image set comes from, and with it the stage that makes it.
IMAGE_STAGES = ("synthesis", "real")


# The others, whose settings are a model's: neither a method nor an image set changes them.
MODEL_STAGES = tuple(stage for stage in STAGES if stage not in (*METHOD_STAGES, *IMAGE_STAGES))


# The rule that makes an image set, by where it comes from.
IMAGE_RULES = {"synthesis": "synthesize", "real": "collect"}


@dataclass(frozen=True)
class ImageSet:
    """What a run trains on: the stage that makes it, and what it changes of its settings."""

    stage: str
    overrides: Mapping[str, Any]


@dataclass(frozen=True)
class Method:
    """A way to quantize: the image set it trains on and what it changes of the settings.

    ``ceiling`` names the method that is the same but for better images, or nothing.
    """

    images: str
    text: str
    overrides: Mapping[str, Mapping[str, Any]]
    ceiling: str = ""


@dataclass(frozen=True)
class Plan:
    """A valid config."""

    results: str
    grid: Grid
    models: Mapping[str, Model]
    image_sets: Mapping[str, ImageSet]
    methods: Mapping[str, Method]
    ablation: Ablation
    accept: Accept
    sections: Mapping[str, Mapping[str, Any]]
    model_sections: Mapping[str, Mapping[str, Mapping[str, Any]]]
    # Model -> the model whose synthetic images it is trained on.
    relatives: Mapping[str, str]

    def settings(self, stage: str, model: str, *, method: str = "") -> Any:
        """The settings of a stage as its dataclass."""
        if not method:
            return self._merged(stage, model, {}, f"models.{model}.{stage}")
        last = self.methods[method].overrides.get(stage, {})
        return self._merged(stage, model, last, f"methods.{method}.{stage}")

    def image_settings(self, model: str, image_set: str) -> Any:
        """The settings of the stage that makes an image set; of borrowed images the relative's."""
        chosen, maker = self.image_sets[image_set], self.maker(model, image_set)
        found = self._merged(chosen.stage, maker, chosen.overrides, f"image_sets.{image_set}")
        if isinstance(found, Synthesis):
            found = found.of_classes(self.models[maker].classes)
        return found

    def images_of(self, section: str, model: str, image_set: str = "") -> Any:
        """The settings of ``test``, or of an image set's ``real`` images; or None, of others."""
        if section == "real":
            return self.image_settings(model, image_set)
        return self.settings(section, model) if section == "test" else None

    def maker(self, model: str, image_set: str) -> str:
        """The model that an image set is made with: itself, or of synthetic images its relative."""
        synthetic = self.image_sets[image_set].stage == "synthesis"
        return self.relatives.get(model, model) if synthetic else model

    def image_rule(self, model: str, image_set: str) -> str:
        """The rule that makes a model's shards of an image set."""
        if self.maker(model, image_set) != model:
            return "borrow"
        return IMAGE_RULES[self.image_sets[image_set].stage]

    def lenders(self) -> list[str]:
        """The models outside of the grid whose images one of its models is trained on."""
        found = (self.relatives.get(model, model) for model in self.grid.models)
        return [model for model in dict.fromkeys(found) if model not in self.grid.models]

    def _merged(self, stage: str, model: str, last: Mapping[str, Any], where: str) -> Any:
        layers = (self.sections[stage], self.model_sections[model].get(stage, {}), last)
        merged = {key: value for layer in layers for key, value in layer.items()}
        return convert(STAGES[stage], merged, where)

    def shards(self, model: str, image_set: str) -> list[str]:
        """Names of the shards of a seed, e.g. class-0003, or classes-0002-0003 where grouped."""
        size = self.image_settings(model, image_set).classes_per_shard
        last = self.models[model].classes - 1
        return [
            shard_name(first, min(first + size - 1, last)) for first in range(0, last + 1, size)
        ]

    def ceilings(self) -> list[tuple[str, str]]:
        """Each method of the grid whose ceiling is in the grid too, with that one."""
        pairs = [(name, self.methods[name].ceiling) for name in self.grid.names]
        return [(name, ceiling) for name, ceiling in pairs if ceiling in self.grid.names]

    def runs(self) -> Iterator[dict[str, Any]]:
        """Model, bits, method and seed of every run in the grid."""
        for model in self.grid.models:
            for bits, method in self.grid.pairs():
                for seed in self.grid.seeds:
                    yield {"model": model, "bits": bits, "method": method, "seed": seed}

    def rungs(self) -> Iterator[dict[str, Any]]:
        """The runs of more bits that those of the grid begin with, and that it has not itself."""
        own = [*self.runs()]
        for run in own:
            settings = self.settings("finetune", run["model"], method=run["method"])
            bits = settings.rung(run["bits"])
            above = {**run, "bits": bits}
            if bits and above not in own:
                own.append(above)
                yield above


def shard_name(first: int, last: int) -> str:
    """Name of the shard that holds classes ``first`` to ``last``."""
    return f"class-{first:04d}" if first == last else f"classes-{first:04d}-{last:04d}"


def shard_classes(name: str) -> list[int]:
    """The classes of a shard, from its name."""
    bounds = [int(part) for part in name.split("-")[1:]]
    return list(range(bounds[0], bounds[-1] + 1))
