"""The same network with other weights, trained to two bits: ``python -m benchmarks.rescaled``.

Convolution weights in front of BatchNorm are multiplied by a factor, of each channel another where
there is a spread, and its running statistics and epsilon with them, so that the network computes
what it did. With ``--pixels bytes`` it takes images from 0 to 255, which it normalises itself. What
comes out should be the same. A table of the embedded network's top-1, calibrated and shipped, by
factor, by the largest factor of a channel over the smallest, and by ``rate_unit``.
"""

import argparse
import copy
import itertools
from collections.abc import Sequence
from importlib import resources

import torch
from safetensors.torch import load_file
from tabulate import tabulate
from torch import Tensor, nn

import synq
from synq.models.digits import resnet20

MEAN, STD = 0.3054, 0.3189
INPUTS = {
    "normalised": {"image_shape": (1, 16, 16), "mean": [MEAN], "std": [STD]},
    "bytes": {"image_shape": (1, 16, 16), "mean": [0.0], "std": [1 / 255]},
}
IMAGES = {"images_per_class": 32, "iterations": 100, "classes_per_shard": 10}
TRAINING = {"epochs": 4, "passes": 5, "batch_size": 32, "crop_min": 0.8, "flip": 0.0}
# By unit: the rate of synq-plus, and what it was before it had one.
RATES = {
    "size": {},
    "one": {"rate_unit": "one", "learning_rate": 1e-3, "weight_decay": 0.01},
}


def rescaled(network: nn.Module, factor: float, spread: float = 1.0) -> nn.Module:
    """A copy whose convolutions in front of a BatchNorm layer have ``factor`` times the weights.

    Channels times as much again, by up to the root of ``spread`` up or down.
    """
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    before: nn.Module | None = None
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            drawn = torch.rand(len(before.weight), generator=generator)
            factors = factor * spread ** (drawn - 0.5)
            before.weight.data *= factors[:, None, None, None]
            module.running_mean *= factors
            # One epsilon for all of them, so that the variances make up for the rest of it.
            eps = module.eps * float(factors.min()) ** 2
            module.running_var = (module.running_var + module.eps) * factors**2 - eps
            module.eps = eps
        before = module
    return network


class OfBytes(nn.Module):
    """A network for images from 0 to 255."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network((images / 255 - MEAN) / STD)
        return logits


def embedded() -> nn.Module:
    """The digits' ResNet-20 of the package."""
    network = resnet20()
    folder = resources.files("synq.models") / "pretrained"
    with resources.as_file(folder / "digits-resnet20.safetensors") as path:
        network.load_state_dict(load_file(path))
    return network.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", type=float, nargs="+", default=[1.0, 0.1, 0.03])
    parser.add_argument("--spreads", type=float, nargs="+", default=[1.0])
    parser.add_argument("--pixels", choices=INPUTS, default="normalised")
    parser.add_argument("--bits", default="w2a2")
    parser.add_argument("--units", nargs="+", choices=RATES, default=[*RATES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args(arguments)
    rows = []
    about, wrap = INPUTS[given.pixels], OfBytes if given.pixels == "bytes" else nn.Sequential
    for seed in given.seeds:
        images = synq.synthesize(
            wrap(embedded()), **about, synthesis=IMAGES, seed=seed, progress=False
        )
        for unit in given.units:
            for factor, spread in itertools.product(given.factors, given.spreads):
                found = synq.quantize(
                    wrap(rescaled(embedded(), factor, spread)),
                    **about,
                    bits=given.bits,
                    images=images,
                    finetune={**TRAINING, **RATES[unit]},
                    test={"dataset": "digits"},
                    seed=seed,
                    progress=False,
                ).measured
                rows.append([unit, factor, spread, seed, found.calibrated, found.student])
    rows.sort(key=lambda row: (row[0] != "size", -row[1], *row[2:4]))
    headers = ["rate unit", "weights times", "spread", "seed", "calibrated", "shipped"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", "g", "g", "", ".2f", ".2f")))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
