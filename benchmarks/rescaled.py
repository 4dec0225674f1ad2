"""The same network with smaller weights, trained to two bits: ``python -m benchmarks.rescaled``.

Convolution weights in front of BatchNorm are multiplied by a factor, and its running statistics and
epsilon with them, so that the network computes what it did. What comes out should be the same. A
table of the embedded network's top-1, calibrated and shipped, by factor and ``rate_unit``.
"""

import argparse
import copy
from collections.abc import Sequence
from importlib import resources

import torch
from safetensors.torch import load_file
from tabulate import tabulate
from torch import nn

import synq
from synq.models.digits import resnet20

INPUT = {"image_shape": (1, 16, 16), "mean": [0.3054], "std": [0.3189]}
IMAGES = {"images_per_class": 32, "iterations": 100, "classes_per_shard": 10}
TRAINING = {"epochs": 4, "passes": 5, "batch_size": 32, "crop_min": 0.8, "flip": 0.0}
# By unit: the rate of synq-plus, and what it was before it had one.
RATES = {
    "size": {},
    "one": {"rate_unit": "one", "learning_rate": 1e-3, "weight_decay": 0.01},
}


def rescaled(network: nn.Module, factor: float) -> nn.Module:
    """A copy whose convolutions in front of a BatchNorm layer have ``factor`` times the weights."""
    network = copy.deepcopy(network)
    before: nn.Module | None = None
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
            before.weight.data *= factor
            module.running_mean *= factor
            module.running_var *= factor**2
            module.eps *= factor**2
        before = module
    return network


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
    parser.add_argument("--units", nargs="+", choices=RATES, default=[*RATES])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args(arguments)
    rows = []
    for seed in given.seeds:
        images = synq.synthesize(embedded(), **INPUT, synthesis=IMAGES, seed=seed, progress=False)
        for unit in given.units:
            for factor in given.factors:
                found = synq.quantize(
                    rescaled(embedded(), factor),
                    **INPUT,
                    bits="w2a2",
                    images=images,
                    finetune={**TRAINING, **RATES[unit]},
                    test={"dataset": "digits"},
                    seed=seed,
                    progress=False,
                ).measured
                rows.append([unit, factor, seed, found.calibrated, found.student])
    rows.sort(key=lambda row: (row[0] != "size", -row[1], row[2]))
    headers = ["rate unit", "weights times", "seed", "calibrated", "shipped"]
    print(tabulate(rows, headers, tablefmt="github", floatfmt=("", "g", "", ".2f", ".2f")))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
