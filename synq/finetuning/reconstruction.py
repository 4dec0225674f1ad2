"""Block reconstruction: the student's parts are fitted one after the other, before it is trained.

Yuhang Li et al., *BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction*
(ICLR 2021): a residual unit at a time, on what the units before it give. Xiuying Wei et al.,
*QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization* (ICLR
2022): some values stay as they are in each step.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from synq.config.finetune import Finetune
from synq.errors import DivergenceError
from synq.finetuning.batches import Images
from synq.finetuning.rates import optimizer_for
from synq.models.features import fitted_parts
from synq.quantization.adaround import SoftRounding, exponent_at, softened
from synq.quantization.convert import activation_quantizers, weight_quantizers
from synq.quantization.routes import part_of_forward
from synq.runtime.process import autocast, generator_for
from synq.runtime.progress import progress

MEGABYTE, BYTES = 10**6, 4
# Images that tell whether a part came closer.
JUDGES = 64


class Fitted(NamedTuple):
    """A part that is done: its number from 1 on, of how many, its name, and its error."""

    number: int
    parts: int
    name: str
    before: float
    after: float


class Seen(NamedTuple):
    """A part on n images: what the student gives it, what the teacher gives its own, and makes."""

    given: Tensor
    teachers: Tensor
    wanted: Tensor

    def rows(self, rows: Any) -> "Seen":
        return Seen(*(tensor[rows] for tensor in self))


def output_error(found: Tensor, wanted: Tensor) -> Tensor:
    """||f_q(x) - f(x)||^2: a sum over the channels, a mean over images and places (BRECQ).

    Channels are the second axis of a map ``[N, C, H, W]``, of all else the last one.
    """
    return (found - wanted).square().sum(1 if found.dim() == 4 else -1).mean()


def dropped(values: Tensor, others: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """``values``, each of which is with this probability the one of ``others`` (QDrop)."""
    chance = torch.rand(values.shape, generator=generator, device=values.device)
    return torch.where(chance < share, others, values)


def reconstruct(
    teacher: nn.Module,
    student: nn.Module,
    images: Images,
    settings: Finetune,
    seed: int,
    done: int = 0,
    ended: Callable[[], bool] = lambda: False,
) -> Iterator[Fitted]:
    """Fit the student's parts in place, from the ``done``-th on, and yield each that is done.

    The student is calibrated, or was given out with the last part. Each part's randomness depends
    on the seed and its number alone, so that a resumed run is the uninterrupted one. When ``ended``
    says so, the part that is not done is left. Raises ModelError where the network has no part,
    DivergenceError where an error is not finite.
    """
    if settings.reconstruct == "off":
        return
    student.eval().requires_grad_(True)
    names = [
        name
        for name in fitted_parts(teacher, images.shape)
        if weight_quantizers(student.get_submodule(name))
    ]
    for number, name in enumerate(names[done:], done + 1):
        part = _Part(teacher, student, name, images, settings, seed)
        before = {key: value.clone() for key, value in part.own.state_dict().items()}
        generator = generator_for(seed, "reconstruction", number)
        errors = part.fit(generator, f"{number}/{len(names)}", ended)
        if errors is None or errors[1] >= errors[0]:
            part.own.load_state_dict(before)
        if errors is None:
            return
        yield Fitted(number, len(names), name, errors[0], min(errors))


class _Part:
    """A module of the student, and the teacher's of the same name."""

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        name: str,
        images: Images,
        settings: Finetune,
        seed: int,
    ) -> None:
        self.teacher, self.student, self.name = teacher, student, name
        self.own, self.theirs = student.get_submodule(name), teacher.get_submodule(name)
        self.images, self.settings = images, settings
        # Every part sees the same images, cropped and mirrored in the same way.
        self.drawing = generator_for(seed, "reconstruction")
        order = torch.randperm(len(images.train), generator=self.drawing)
        rows = images.train[order][: settings.reconstruct_images]
        self.autocast = partial(autocast, images.device, settings.precision)
        (one, _), *_ = images.batches([rows[:1]])
        size = sum(tensor.numel() * BYTES for tensor in self._look(one))
        room = max(settings.reconstruct_memory * MEGABYTE // size, 1)
        # They are drawn batch by batch, so that a turn ends where a batch does.
        whole = room - room % settings.reconstruct_batch_size
        self.turns = rows.split(whole or room)

    def fit(
        self, generator: torch.Generator, place: str, ended: Callable[[], bool]
    ) -> tuple[float, float] | None:
        """The error before and after; None where it was ended before."""
        settings = self.settings
        # Random numbers of the size of a feature map are drawn where they are used.
        dropping = torch.Generator(self.images.device).manual_seed(generator.initial_seed())
        turns = map(self._seen, self.turns)
        seen = next(turns)
        judges = Seen(*(tensor[:JUDGES].clone() for tensor in seen))
        before = self._error(judges)
        with contextlib.ExitStack() as stack:
            soft: Sequence[SoftRounding] = ()
            if settings.reconstruct == "rounding":
                soft = stack.enter_context(softened(self.own))
            optimizers = self._optimizers(soft)
            rates = [group["lr"] for optimizer in optimizers for group in optimizer.param_groups]
            count = settings.reconstruct_steps
            turn = -(-count // len(self.turns))
            for step in progress(range(count), f"reconstruction {place}"):
                if ended():
                    return None
                if step and step % turn == 0:
                    # What was seen goes first: both would be twice the memory that is allowed.
                    del seen
                    seen = next(turns)
                _follow_cosine(optimizers[:1], rates, step / count)
                batch = torch.randperm(len(seen.given), generator=generator)
                loss = self._loss(seen.rows(batch[: settings.reconstruct_batch_size]), dropping)
                exponent = exponent_at(step / count)
                if exponent is not None:
                    for one in soft:
                        loss = loss + settings.rounding_weight * one.penalty(exponent)
                for optimizer in optimizers:
                    optimizer.zero_grad(set_to_none=True)
                loss.backward(inputs=_parameters(optimizers))
                for optimizer in optimizers:
                    optimizer.step()
        after = self._error(judges)
        if not math.isfinite(after):
            rate = "rounding_" if soft else ""
            raise DivergenceError(
                f"the reconstruction of {self.name} is not finite; lower "
                f"finetune.{rate}learning_rate or finetune.scale_learning_rate"
            )
        return before, after

    def _optimizers(self, soft: Sequence[SoftRounding]) -> list[torch.optim.Optimizer]:
        """That of weights and scales, whose rates fall, and that of the rounding."""
        if self.settings.reconstruct == "weights":
            return [optimizer_for(self.own, self.settings, self.theirs)]
        scales = [p for name, p in self.own.named_parameters() if name.endswith("log_scale")]
        roundings = [one.up for one in soft]
        return [
            torch.optim.Adam(parameters, rate)
            for parameters, rate in (
                (scales, self.settings.scale_learning_rate),
                (roundings, self.settings.rounding_learning_rate),
            )
            if parameters
        ]

    def _loss(self, seen: Seen, generator: torch.Generator) -> Tensor:
        """The error of a step, with values of the input and of activations dropped."""
        share = self.settings.reconstruct_drop
        given = dropped(seen.given, seen.teachers, share, generator)

        def keep(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return dropped(output, args[0], share, generator)

        with contextlib.ExitStack() as stack:
            for quantizer in activation_quantizers(self.own).values():
                stack.callback(quantizer.register_forward_hook(keep).remove)
            return output_error(self._output(given), seen.wanted)

    def _error(self, seen: Seen) -> float:
        with torch.no_grad():
            return float(output_error(self._output(seen.given), seen.wanted))

    def _output(self, given: Tensor) -> Tensor:
        with part_of_forward(self.student), self.autocast():
            output: Tensor = self.own(given)
        return output.float()

    def _seen(self, rows: Tensor) -> Seen:
        """The part on the images of these positions, augmented."""
        whole: Seen | None = None
        first = 0
        batches = rows.split(self.settings.reconstruct_batch_size)
        for images, _ in self.images.batches(batches, self.drawing):
            found = self._look(images)
            if whole is None:
                # At once, since to join the batches would need twice the memory.
                whole = Seen(*(t.new_empty(len(rows), *t.shape[1:]) for t in found))
            for tensor, own in zip(whole, found, strict=True):
                tensor[first : first + len(images)] = own
            first += len(images)
        assert whole is not None
        return whole

    def _look(self, images: Tensor) -> Seen:
        with torch.no_grad(), self.autocast():
            with _passing(self.own) as own:
                self.student(images)
            with _passing(self.theirs) as theirs:
                self.teacher(images)
        return Seen(own["given"], theirs["given"], theirs["made"])


@contextlib.contextmanager
def _passing(module: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What a module is given and makes: copies, as what follows may work in place."""
    found: dict[str, Tensor] = {}

    def before(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        found["given"] = args[0].float().clone()

    def behind(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        found["made"] = output.float().clone()

    with contextlib.ExitStack() as stack:
        stack.callback(module.register_forward_pre_hook(before).remove)
        stack.callback(module.register_forward_hook(behind).remove)
        yield found


def _parameters(optimizers: Sequence[torch.optim.Optimizer]) -> list[Tensor]:
    return [p for o in optimizers for group in o.param_groups for p in group["params"]]


def _follow_cosine(
    optimizers: Sequence[torch.optim.Optimizer], rates: Sequence[float], done: float
) -> None:
    """The rates when a share is done: from the whole to nothing."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    for group, rate in zip(groups, rates, strict=False):
        group["lr"] = rate * (1 + math.cos(math.pi * done)) / 2
