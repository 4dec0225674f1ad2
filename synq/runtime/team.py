"""Several processes that fine-tune one student together, one for each GPU, started by torchrun."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from synq.errors import ConfigError


@dataclass(frozen=True)
class Team:
    """The processes of one fine-tuning as one of them sees them; by default it is alone.

    Every process holds the whole student, takes its share of each batch, and adds up gradients
    with the others, after which all take the same step.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process is the one that writes files and reports."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """The part of ``count`` images that is this process's own, possibly none."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum each tensor over the processes, in place, all in one message."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        distributed.all_reduce(flat)
        parts = flat.split([tensor.numel() for tensor in tensors])
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, wanted: bool, device: torch.device) -> bool:
        """Whether it is so in any of the processes; all of them get the same answer."""
        if self.size == 1:
            return wanted
        count = torch.tensor(float(wanted), device=device)
        distributed.all_reduce(count)
        return bool(count)

    def agreed(self, numbers: Iterable[int], device: torch.device) -> list[int]:
        """The leader's numbers, in every process."""
        if self.size == 1:
            return [*numbers]
        sent = torch.tensor([*numbers], device=device)
        distributed.broadcast(sent, 0)
        return [int(number) for number in sent]

    def follow(self, model: nn.Module) -> None:
        """Give every process the leader's parameters and buffers."""
        if self.size > 1:
            for tensor in model.state_dict().values():
                dense = tensor.contiguous()  # no other layout can be sent
                distributed.broadcast(dense, 0)
                tensor.copy_(dense)

    def wait(self) -> None:
        """Go on when all processes have come this far."""
        if self.size > 1:
            distributed.barrier()


ALONE = Team()


@contextlib.contextmanager
def joined(processes: int, device: torch.device) -> Iterator[Team]:
    """The team of ``processes``; ConfigError where torchrun started another number of them."""
    started = int(os.environ["WORLD_SIZE"]) if distributed.is_torchelastic_launched() else 1
    if started != processes:
        raise ConfigError(
            f"finetune.processes is {processes}, but this is one of {started}; start it by "
            f"torchrun --nproc-per-node {processes} -m synq finetune ..."
        )
    if processes == 1:
        yield ALONE
        return
    if device.type == "cuda":
        # Cards are chosen by who has them, not by rank: NCCL must be told which one this is.
        torch.cuda.set_device(device)
        distributed.init_process_group("nccl", device_id=device)
    else:
        distributed.init_process_group("gloo")
    try:
        yield Team(distributed.get_rank(), processes)
    finally:
        distributed.destroy_process_group()
