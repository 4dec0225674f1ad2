"""The images as fine-tuning sees them: read ahead, split, filtered, augmented."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from synq.config.finetune import Finetune
from synq.data.augment import cropped, jittered, random_crops, random_jitter
from synq.data.lowpass import blur_transfer, lowpass
from synq.io.shards import ImageSource, split
from synq.runtime.team import ALONE, Team


class Images:
    """A shard set's images for training (``train``) and for selection (``held_out``)."""

    def __init__(
        self,
        shards: ImageSource,
        settings: Finetune,
        device: torch.device,
        unit: Tensor | None = None,
    ) -> None:
        """``unit`` ``[C, 1, 1]`` is what the network takes a deviation of an image for; 1."""
        self.shards, self.settings, self.device = shards, settings, device
        self.unit = torch.ones(shards.image_shape[0], 1, 1) if unit is None else unit
        self.train, self.held_out = split(shards.labels, settings.holdout)
        self.labels = shards.labels
        self.others: Tensor | None = None
        self.shape = shards.image_shape
        _, height, width = self.shape
        self.transfer = blur_transfer(height, width, settings.lowpass_sigma).to(device)

    def add(self, others: Tensor, labels: Tensor) -> None:
        """Other images ``[n, C, H, W]`` to train on, which take the place of some in each pass."""
        self.others = others
        self.labels = torch.cat([self.labels, labels])

    def one_pass(self, generator: torch.Generator) -> Tensor:
        """The positions of a pass in random order: as many as ``train`` has, the others among them.

        Those whose place they take are others in each pass.
        """
        order = self.train[torch.randperm(len(self.train), generator=generator)]
        if self.others is None:
            return order
        others = len(self.shards) + torch.arange(len(self.others))
        order = torch.cat([order[len(others) :], others])
        return order[torch.randperm(len(order), generator=generator)]

    def batches(
        self,
        indices: Sequence[Tensor],
        generator: torch.Generator | None = None,
        team: Team = ALONE,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Images and labels on the device for each of ``indices``; augmented with a generator.

        The next batch is read while the last one is used. Of each batch a process gets its share
        alone, and the same images, augmented in the same way, as if it had the whole.
        """
        own = [batch[team.share(len(batch))] for batch in indices]
        # One thread and one batch ahead: a disk is as fast as that, and memory stays flat.
        with ThreadPoolExecutor(1, "reader") as reader:
            coming = [reader.submit(self._read, rows) for rows in own[:1]]
            for number, rows in enumerate(own):
                images = coming.pop().result()
                if number + 1 < len(own):
                    coming.append(reader.submit(self._read, own[number + 1]))
                count = len(indices[number])
                crops = self._crops(count, generator)
                jitter = self._jitter(count, generator)
                images = images.to(self.device, non_blocking=True)
                yield (
                    self._seen(images, crops, jitter, team.share(count)),
                    self.labels[rows].to(self.device),
                )

    def _read(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return torch.empty(0, *self.shape)
        images = self._images(rows)
        # From pinned memory a GPU copies while it computes.
        return images.pin_memory() if self.device.type == "cuda" else images

    def _images(self, rows: Tensor) -> Tensor:
        if self.others is None:
            return self.shards.images(rows)
        other = rows - len(self.shards)
        images = torch.empty(len(rows), *self.shape)
        images[other < 0] = self.shards.images(rows[other < 0])
        images[other >= 0] = self.others[other[other >= 0]].float()
        return images

    def _crops(self, count: int, generator: torch.Generator | None) -> Tensor | None:
        s = self.settings
        if generator is None:
            return None
        return random_crops(count, generator, crop_min=s.crop_min, flip=s.flip)

    def _jitter(
        self, count: int, generator: torch.Generator | None
    ) -> tuple[Tensor, Tensor] | None:
        if generator is None:
            return None
        jitter = random_jitter(count, self.shape[0], generator, self.settings.jitter)
        return None if jitter is None else (jitter[0], jitter[1] * self.unit)

    def _seen(
        self,
        images: Tensor,
        crops: Tensor | None,
        jitter: tuple[Tensor, Tensor] | None,
        share: slice,
    ) -> Tensor:
        """Filtered before or after the augmentation."""
        if not len(images):
            return images
        if self.settings.lowpass == "before":
            images = lowpass(images, self.transfer)
        if crops is not None:
            images = cropped(images, crops[share])
        if self.settings.lowpass == "batch":
            images = lowpass(images, self.transfer)
        if jitter is not None:
            images = jittered(images, (jitter[0][share], jitter[1][share]))
        return images
