"""A shard that is not whole yet: its batches in a work folder."""

import contextlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from synq.errors import ArtifactError
from synq.io.artifacts import read_checkpoint, write_checkpoint
from synq.models.judgement import Synthesized


class Batches:
    """The folder ``<output>.work``: a file a batch, with the state of the generator after it."""

    def __init__(self, output: Path, record: Mapping[str, Any]) -> None:
        """``record`` is all that must be equal for the saved batches to be continued."""
        self.folder = output.with_name(f"{output.stem}.work")
        self.record = json.dumps(record, sort_keys=True)

    def resume(self, generator: torch.Generator) -> list[Synthesized]:
        """The batches of the same shard, from the first on; the generator is as after them."""
        found: list[Synthesized] = []
        with contextlib.suppress(ArtifactError, KeyError):
            while self._path(len(found)).exists():
                tensors, saved = read_checkpoint(self._path(len(found)), "batch")
                if saved["shard"] != self.record:
                    break
                generator.set_state(tensors.pop("generator"))
                found.append(Synthesized(**tensors))
        return found

    def save(self, number: int, batch: Synthesized, generator: torch.Generator) -> None:
        """Keep a batch, counted from 0, of which the generator has drawn all."""
        tensors = {**batch._asdict(), "generator": generator.get_state()}
        write_checkpoint(self._path(number), "batch", tensors, {"shard": self.record})

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"batch-{number:04d}.safetensors"
