"""Which runs there are, which of them are compared, and what is good enough."""

from dataclasses import dataclass

from synq.config.fields import setting
from synq.errors import ConfigError

LADDER = 4  # bits from which a student begins with the network's own weights
MOST_SEED = 2**63


@dataclass(frozen=True, kw_only=True)
class Grid:
    """What ``rule all`` makes: every combination of these."""

    models: tuple[str, ...] = setting(text="names under models")
    bits: tuple[str, ...] = setting(text="widths, w4a4: weights and activations of 4 bits")
    methods: tuple[str, ...] = setting(
        text="names under methods; NAME@w8a8 is made at that width and no other"
    )
    seeds: tuple[int, ...] = setting(
        text="seeds of the images and of the fine-tuning", minimum=0, maximum=MOST_SEED
    )

    @property
    def entries(self) -> list[tuple[str, str | None]]:
        """The methods' names, each with the width of its own, None where it has those of all."""
        parts = (word.partition("@") for word in self.methods)
        return [(name, bits if at else None) for name, at, bits in parts]

    @property
    def names(self) -> tuple[str, ...]:
        """The methods' names, each once."""
        return tuple(dict.fromkeys(name for name, _ in self.entries))

    def pairs(self) -> list[tuple[str, str]]:
        """Bits and method of every run, those of the methods with a width of their own last."""
        product = [(bits, name) for bits in self.bits for name, own in self.entries if own is None]
        return product + [(own, name) for name, own in self.entries if own is not None]


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """The table that compares methods with one of them."""

    full: str = setting("synq", "the method that the others are compared with")
    methods: tuple[str, ...] = setting((), "its rows, names under methods; none: no such table")


@dataclass(frozen=True, kw_only=True)
class Accept:
    """What a result is judged by."""

    points: float = setting(
        -1.0,
        "top-1 that a shipped student may lose to its full-precision network; left out: nothing is "
        "judged",
        unit="points",
        minimum=0,
        maximum=100,
    )


def parse_bits(bits: str, where: str = "bits") -> tuple[int, int]:
    """``'w4a8'`` -> (4, 8): bits of weights and of activations, 2 to 8 each."""
    parts = bits[1:].split("a") if isinstance(bits, str) and bits.startswith("w") else []
    if len(parts) != 2 or not all(len(part) == 1 and part in "0123456789" for part in parts):
        raise ConfigError(f"{where} is {bits!r}; write the widths as in w4a4")
    for name, part in zip(("weights", "activations"), parts, strict=True):
        if not 2 <= int(part) <= 8:
            raise ConfigError(f"{where} is {bits!r}; {name} of {part} bits are not among 2 to 8")
    return int(parts[0]), int(parts[1])


def wider(bits: str) -> str | None:
    """The widths of the next rung of a ladder: one bit more where there are under 4, as in
    ``'w2a2'`` -> ``'w3a3'`` -> ``'w4a4'`` -> None.
    """
    weights, activations = (width + (width < LADDER) for width in parse_bits(bits))
    found = f"w{weights}a{activations}"
    return None if found == bits else found
