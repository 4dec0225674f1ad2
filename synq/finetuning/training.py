"""Quantization-aware fine-tuning of the student on synthetic images (paper, algorithm 1)."""

import contextlib
import math
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synq.config.finetune import Finetune
from synq.errors import ConfigError, DivergenceError
from synq.finetuning import losses
from synq.finetuning.average import ENTRIES, Average
from synq.finetuning.batches import Images
from synq.finetuning.objective import Objective
from synq.finetuning.rates import optimizer_for
from synq.quantization.convert import weight_quantizers
from synq.quantization.kernels import settle_biases
from synq.quantization.quantizers import LearnedStep
from synq.runtime.process import autocast, generator_for
from synq.runtime.progress import progress
from synq.runtime.team import ALONE, Team

# Looking at a loss makes a GPU wait. A loss that is not finite stays so in the epoch's sum.
STEPS_UNSEEN = 20
# A training that diverges begins anew so often, each time with a tenth of its rates.
RESTARTS = 2
RESTART_FACTOR = 0.1


class Part(NamedTuple):
    """Where an epoch was stopped: steps done, sums of the losses, state of its generator."""

    steps: int
    sums: Tensor
    generator: Tensor


@dataclass(frozen=True)
class Progress:
    """All that an interrupted fine-tuning needs to go on, beside the student itself.

    ``epoch`` counts whole epochs; ``part`` is what was done of the next one.
    """

    epoch: int = 0
    history: tuple[dict[str, float], ...] = ()
    optimizer: dict[str, Tensor] = field(default_factory=dict)
    part: Part | None = None

    @property
    def restarts(self) -> int:
        """How often the training began anew because it diverged; the first entry says so."""
        return int(self.history[0].get("restarts", 0)) if self.history else 0


@contextlib.contextmanager
def terminations() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGTERM came, which is held back within the block.

    A second one ends the process at once, as it does outside. In another thread than the main one
    signals cannot be held back.
    """
    came: list[int] = []

    def handle(number: int, _: Any) -> None:
        came.append(number)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield lambda: bool(came)
    finally:
        signal.signal(signal.SIGTERM, before)


def held_out_loss(
    teacher: nn.Module, student: nn.Module, images: Images, settings: Finetune, team: Team = ALONE
) -> float:
    """Mean distillation loss on the held-out images, which selects the epoch; nan if none."""
    if not len(images.held_out):
        return math.nan
    total = torch.zeros((), device=images.device)
    with torch.inference_mode(), autocast(images.device, settings.precision):
        for batch, _ in images.batches(images.held_out.split(settings.batch_size), team=team):
            if len(batch):
                own, wanted = student(batch).float(), teacher(batch).float()
                total += losses.distillation(own, wanted, settings.temperature) * len(batch)
    with torch.no_grad():
        team.add([total])
    return float(total) / len(images.held_out)


def optimizer_tensors(
    optimizer: torch.optim.Optimizer, named: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """The optimizer's state on the CPU, as ``parameter/entry``."""
    return {
        f"{name}/{entry}": value.detach().cpu().clone()
        for name, parameter in named.items()
        for entry, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _restore(
    optimizer: torch.optim.Optimizer,
    named: Mapping[str, nn.Parameter],
    tensors: Mapping[str, Tensor],
) -> None:
    for key, value in tensors.items():
        name, _, entry = key.rpartition("/")
        if entry in ENTRIES:
            continue
        parameter = named[name]
        # Adam counts its steps on the CPU.
        device = "cpu" if entry == "step" else parameter.device
        optimizer.state[parameter][entry] = value.to(device)


def finetune(
    teacher: nn.Module,
    student: nn.Module,
    images: Images,
    settings: Finetune,
    seed: int,
    state: Progress,
    team: Team = ALONE,
    stopped: Callable[[], bool] = lambda: False,
    calibrated: Callable[[], Mapping[str, Tensor]] | None = None,
) -> Iterator[Progress]:
    """Fine-tune in place and yield the progress after every epoch, the state's own to begin with.

    ``student`` is calibrated, or holds the weights of ``state``. Each epoch's randomness depends on
    the seed and its number alone, so that a resumed run is the uninterrupted one. When ``stopped``
    says so, the last progress is within an epoch.

    Where a loss is not finite the calibrated student is trained anew with a tenth of the learning
    rates, at most ``RESTARTS`` times, and the first entry of the history says how often; then
    DivergenceError. A run that is resumed takes that student's tensors from ``calibrated``.
    """
    student.eval().requires_grad_(True)
    _scale_gradients(student, settings.gradient_scaling)
    if not state.history:
        settle_biases(student, images.shape)
        loss = held_out_loss(teacher, student, images, settings, team)
        state = replace(state, history=({"epoch": 0, "held_out": loss},))
        yield state
    if state.epoch == 0 and not state.part:
        tensors = {name: tensor.clone() for name, tensor in student.state_dict().items()}
        calibrated = partial(dict, tensors)
    while True:
        try:
            for reached in _epochs(teacher, student, images, settings, seed, state, team, stopped):
                state = reached
                yield state
        except DivergenceError:
            if calibrated is None or state.restarts == RESTARTS:
                raise
        else:
            return
        student.load_state_dict(calibrated())
        state = Progress(history=({**state.history[0], "restarts": state.restarts + 1},))
        yield state


def _scale_gradients(student: nn.Module, share: float) -> None:
    """Let the gradient of every learned grid's weights have that ``scaling``."""
    grids = [layer.weight_quantizer for layer in weight_quantizers(student).values()]
    learned = [grid for grid in grids if isinstance(grid, LearnedStep)]
    if share and not learned:
        raise ConfigError(
            "finetune.gradient_scaling is for learned steps; write calibration.weights: learned, "
            "or finetune.gradient_scaling: 0"
        )
    for grid in learned:
        grid.scaling = share


def _epochs(
    teacher: nn.Module,
    student: nn.Module,
    images: Images,
    settings: Finetune,
    seed: int,
    state: Progress,
    team: Team,
    stopped: Callable[[], bool],
) -> Iterator[Progress]:
    """The rest of the epochs; DivergenceError when a loss is not finite."""
    named = dict(student.named_parameters())
    factor = RESTART_FACTOR**state.restarts
    optimizer = optimizer_for(
        student,
        replace(
            settings,
            learning_rate=factor * settings.learning_rate,
            scale_learning_rate=factor * settings.scale_learning_rate,
        ),
        teacher,
    )
    _restore(optimizer, named, state.optimizer)
    average = Average(named, settings.average) if settings.average else None
    if average:
        average.restore(state.optimizer)
    with Objective(teacher, student, settings, images.shape, team, images.unit) as objective:
        epochs = Epochs(objective, optimizer, images, seed, team, stopped, average)
        while state.epoch < settings.epochs:
            if average:
                average.hide()
            record, part = epochs.run(state.epoch + 1, state.part)
            tensors = optimizer_tensors(optimizer, named)
            if average:
                tensors |= average.tensors()
            if part:
                yield replace(state, optimizer=tensors, part=part)
                return
            if average:
                average.show()
            settle_biases(student, images.shape)
            loss = held_out_loss(teacher, student, images, settings, team)
            if len(images.held_out) and not math.isfinite(loss):
                raise DivergenceError(
                    f"the loss on the held-out images is not finite after epoch {state.epoch + 1}; "
                    "lower finetune.learning_rate"
                )
            record["held_out"] = loss
            state = Progress(state.epoch + 1, (*state.history, record), tensors)
            yield state


class Epochs:
    """Epochs of one or more passes over the training images, and what they have in common."""

    def __init__(
        self,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        images: Images,
        seed: int,
        team: Team = ALONE,
        stopped: Callable[[], bool] = lambda: False,
        average: Average | None = None,
    ) -> None:
        self.average = average
        self.objective, self.optimizer, self.images = objective, optimizer, images
        self.seed, self.team, self.stopped = seed, team, stopped
        self.rates = [group["lr"] for group in optimizer.param_groups]
        self.names = objective.names()

    def run(self, epoch: int, part: Part | None) -> tuple[dict[str, float], Part | None]:
        """One epoch, or the rest of it: the mean of each loss; or where it was stopped."""
        settings = self.objective.settings
        generator = generator_for(self.seed, "finetune", epoch)
        batches = [
            batch
            for _ in range(settings.passes)
            for batch in self.images.one_pass(generator).split(settings.batch_size)
        ]
        done, device = 0, self.images.device
        sums = torch.zeros(len(self.names), device=device)
        if part:
            done, sums = part.steps, part.sums.to(device)
            generator.set_state(part.generator)
        bar = progress(
            self.images.batches(batches[done:], generator, self.team),
            f"epoch {epoch}/{settings.epochs}",
            len(batches),
            done,
        )
        for step, (images, labels) in enumerate(bar, done + 1):
            self._set_rates(epoch, (step - 1) / len(batches))
            sums += self.step(images, labels, len(batches[step - 1]))
            last = step == len(batches)
            seen = last or step % STEPS_UNSEEN == 0
            if seen and self.team.any(not torch.isfinite(sums[-1]), device):
                raise DivergenceError(
                    f"the fine-tuning loss is not finite in epoch {epoch}, at step {step} or up to "
                    f"{STEPS_UNSEEN - 1} before; "
                    "lower finetune.learning_rate or finetune.cam_weight"
                )
            # To ask the others is to wait for them.
            asked = seen or self.team.size == 1
            if asked and not last and self.team.any(self.stopped(), device):
                return {}, Part(step, sums, generator.get_state())
        means = (sums / sum(map(len, batches))).tolist()
        return {"epoch": epoch, **dict(zip(self.names, means, strict=True))}, None

    def _set_rates(self, epoch: int, share: float) -> None:
        """The learning rates in ``epoch``, of which ``share`` is done."""
        settings = self.objective.settings
        if settings.schedule == "cosine":
            factor = (1 + math.cos(math.pi * (epoch - 1 + share) / settings.epochs)) / 2
        else:
            passed = sum(epoch > milestone for milestone in settings.lr_milestones)
            factor = settings.lr_decay**passed
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor

    def step(self, images: Tensor, labels: Tensor, count: int) -> Tensor:
        """One step on a batch of ``count`` images, of which these are the process's own share.

        The sum of each loss over the whole batch.
        """
        self.optimizer.zero_grad(set_to_none=True)
        if len(images):
            terms = self.objective.backward(images, labels, count)
            sums = torch.stack([terms[name] for name in self.names]) * len(images)
        else:
            self.objective.absent()
            sums = torch.zeros(len(self.names), device=images.device)
        if self.team.size > 1:
            gradients = []
            for parameter in (p for group in self.optimizer.param_groups for p in group["params"]):
                if parameter.grad is None:  # no image of this batch was the process's own
                    parameter.grad = torch.zeros_like(parameter)
                # The losses are means over the images.
                gradients.append(parameter.grad.mul_(len(images) / count))
            self.team.add([sums, *gradients])
        self.optimizer.step()
        if self.average:
            self.average.follow()
        return sums
