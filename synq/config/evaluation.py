"""How accuracy is measured."""

from dataclasses import dataclass

from synq.config.fields import setting


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Accuracy on the real test images."""

    batch_size: int = setting(256, "images a forward", minimum=1)
