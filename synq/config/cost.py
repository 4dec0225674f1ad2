"""How long a job may take, from its settings: the only place with measured times.

``Limits`` has the minutes of the jobs of a plan; the functions below it count them. ``core_hours``
is an estimate of all of it.

The unit is F, a full-precision forward of one image; docs/cluster.md has the F of an
image in each stage. On one core of a server a ResNet-18 at 224 px takes 42 ms and a CIFAR ResNet-20
at 32 px 1.5 ms: 0.8 and 1.4 us a pixel. A GPU is taken for twenty such cores, which is far too
little, and not measured. Limits are three times the estimate, and grow with each attempt.
"""

import math
from collections import Counter
from dataclasses import dataclass

from synq.config.calibration import Calibration
from synq.config.finetune import Finetune
from synq.config.images import RealImages, TestSet
from synq.config.model import Model
from synq.config.plan import Plan, shard_classes
from synq.config.synthesis import NETWORKS, Synthesis

SECONDS_A_PIXEL = 1.4e-6  # of a forward, on one core
CORES_A_GPU = 20
# A generator of the image's size costs two to three of such a network.
GENERATED = 4
MARGIN = 3.0
MUCH = 12  # hours of one core, which are told before the first job
START = 10  # minutes that every job has: a file system may be slow, and torch is large
IMAGE_SIZE = 224  # px, where only the zoo knows
SMALL = 64  # px; at 16 a student of two threads takes 22 s of the clock and 25 s of the processor

SYNTHESIS, TRAINING, FULL_TRAINING, EVALUATION = 2.4, 4.3, 12.0, 1.2  # F an image
SNAPSHOTS_AT_ENDS = 3
MOST_PARTS = 50  # that are reconstructed; how many there are the config does not say
MOST_LAYERS = 150  # with a weight; how many there are the config does not say
# Trial calibrations of range_search on half of the images, and the F an image of one, the clips of
# weights and activations too: 11 of a ResNet-18 at 224 px.
TRIALS, CALIBRATION = 4, 12.0
# Of a folder or an array the number of images is not known: ImageNet's.
TEST_IMAGES = {"none": 0, "digits": 599, "cifar10": 10_000, "cifar100": 10_000}
MOST_TEST_IMAGES = 50_000


@dataclass(frozen=True)
class Limits:
    """Minutes that the first attempt of each job of a plan may take, on a GPU or without."""

    plan: Plan
    gpu: bool

    def shard(self, model: str, image_set: str, shard: str) -> int:
        """Of images that are made or collected."""
        settings, classes = self.plan.image_settings(model, image_set), len(shard_classes(shard))
        return synthesis_minutes(self.plan.models[model], settings, classes, gpu=self.gpu)

    def borrowing(self, model: str, image_set: str, shard: str) -> int:
        """Of images that are a relative's."""
        settings = self.plan.image_settings(model, image_set)
        images = len(shard_classes(shard)) * settings.images_per_class
        return _minutes(self.plan.models[model], images, gpu=self.gpu)

    def student(self, model: str, method: str) -> int:
        """Of a calibration and a fine-tuning."""
        chosen = self.plan.models[model]
        images = self.plan.image_settings(model, self.plan.methods[method].images)
        calibration = self.plan.settings("calibration", model, method=method)
        return finetune_minutes(
            chosen,
            self.plan.settings("finetune", model, method=method),
            images.images_per_class * chosen.classes,
            gpu=self.gpu,
            before=sensitivity_forwards(calibration)
            + generator_forwards(calibration)
            + search_forwards(calibration),
        )

    def sensitivity(self, model: str, method: str) -> int:
        """Of the table of all layers."""
        settings = self.plan.settings("calibration", model, method=method)
        # Of each layer its weight, its input, and both.
        forwards = 3 * MOST_LAYERS * settings.sensitivity_images
        return _minutes(self.plan.models[model], forwards, gpu=self.gpu)

    def evaluation(self, model: str, method: str = "") -> int:
        """Of the teacher, and where there is a method of a run's students beside it."""
        networks = 1
        if method:
            networks += kept_students(self.plan.settings("finetune", model, method=method))
        test = self.plan.settings("test", model)
        return evaluation_minutes(self.plan.models[model], test, networks, gpu=self.gpu)


def core_hours(plan: Plan) -> dict[str, float]:
    """Roughly what the grid takes, in hours of one core: images, students, evaluation."""
    limits = Limits(plan, gpu=False)
    runs = Counter((run["model"], run["method"]) for run in (*plan.rungs(), *plan.runs()))
    sets = {(model, plan.methods[method].images) for model, method in runs}
    minutes: Counter[str] = Counter()
    for model, name in {(plan.maker(*pair), pair[1]) for pair in sets}:
        shards = plan.shards(model, name)
        count = len(shards) * len(plan.grid.seeds)
        minutes["images"] += count * (limits.shard(model, name, shards[0]) - START)
    for (model, method), count in runs.items():
        minutes["students"] += count * (limits.student(model, method) - START)
        minutes["evaluation"] += count * (limits.evaluation(model, method) - START)
    return {stage: found / MARGIN / 60 for stage, found in minutes.items()}


def told(plan: Plan) -> str:
    """A line on it, where it is much; empty where it is not."""
    hours = core_hours(plan)
    total = sum(hours.values())
    if total < MUCH:
        return ""
    parts = ", ".join(f"{stage} {_rounded(found)}" for stage, found in hours.items())
    return (
        f"This grid takes roughly {_rounded(total)} hours of one core ({parts}; a GPU was not "
        "measured); docs/own-network.md says what sets it: how many images, and how long"
    )


def _rounded(hours: float) -> str:
    """Two digits: more are not known."""
    return f"{float(f'{hours:.1e}'):,.0f}" if hours >= 1 else "under 1"


def synthesis_minutes(
    model: Model, settings: Synthesis | RealImages, classes: int, *, gpu: bool
) -> int:
    """Of one shard with this many classes."""
    images = settings.images_per_class * classes
    if isinstance(settings, RealImages):
        return _minutes(model, images, gpu=gpu)
    passes = images * settings.iterations
    if settings.parameters in NETWORKS:
        passes *= GENERATED
    if settings.deep_weight > 0:
        # Every class has its centre, and every shard makes them all.
        passes += model.classes * settings.centre_iterations
    return _minutes(model, SYNTHESIS * passes, gpu=gpu)


def finetune_threads(model: Model) -> int:
    """Of one process; small images are too little work to be shared, so two jobs beside one another
    do twice as much."""
    return 1 if (model.image_size or IMAGE_SIZE) <= SMALL else 2


def sensitivity_forwards(settings: Calibration) -> int:
    """Forwards of an image before the widths of a student are chosen; none where they are not."""
    if not settings.mixed:
        return 0
    return MOST_LAYERS * len(settings.widths) * settings.sensitivity_images


def generator_forwards(settings: Calibration) -> int:
    """Forwards of the images of a generator that the ranges are taken from, and its training."""
    if settings.range_source != "generator":
        return 0
    images = settings.generator_steps * settings.generator_batch_size
    return math.ceil(SYNTHESIS * GENERATED * images)


def search_forwards(settings: Calibration) -> int:
    """Forwards of an image before the exponent of the clips is known; none where it is given."""
    if not settings.range_search:
        return 0
    return math.ceil(TRIALS * CALIBRATION * settings.range_images / 2)


def finetune_minutes(
    model: Model, settings: Finetune, images: int, *, gpu: bool, before: int = 0
) -> int:
    """Of one student that is trained on this many images, after so many forwards before."""
    all_terms = settings.perturbation > 0 or settings.feature_weight > 0
    step = FULL_TRAINING if all_terms else TRAINING
    passes = images * (settings.epochs * settings.passes + 1) / settings.processes
    if settings.reconstruct != "off":
        # A step of every part is one of the network; each part has seen all images by both.
        passes += settings.reconstruct_steps * settings.reconstruct_batch_size
        before += 2 * MOST_PARTS * settings.reconstruct_images
    return _minutes(model, step * passes + before, gpu=gpu)


def evaluation_minutes(model: Model, test: TestSet, networks: int, *, gpu: bool) -> int:
    """Of this many networks, each on the whole test set."""
    images = TEST_IMAGES.get(test.dataset, MOST_TEST_IMAGES)
    return _minutes(model, EVALUATION * images * networks, gpu=gpu)


def kept_students(settings: Finetune) -> int:
    """The students that a fine-tuning leaves to evaluate, at most."""
    return settings.epochs + 1 if settings.keep == "all" else SNAPSHOTS_AT_ENDS


def _minutes(model: Model, forwards: float, *, gpu: bool) -> int:
    seconds = forwards * (model.image_size or IMAGE_SIZE) ** 2 * SECONDS_A_PIXEL
    return START + math.ceil(MARGIN * seconds / (CORES_A_GPU if gpu else 1) / 60)
