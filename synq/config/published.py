"""Published top-1 accuracies in percent, shown beside ours where model, data and widths are theirs.

Each method at W3A3 and W4A4, from the SynQ paper (ICLR 2025), the rows from ``none`` to
``cam-soft`` from its ablation, and HAST from its own paper. All are the best test accuracy over the
epochs, so that ``best_on_test`` is what to compare with.
"""

PUBLISHED: dict[str, dict[str, dict[str, float]]] = {
    "resnet20-cifar10": {
        "full precision": {"w32a32": 93.89},
        "zeroq-tuned": {"w3a3": 29.32, "w4a4": 84.68},
        "gdfq": {"w3a3": 75.11, "w4a4": 90.11},
        "intraq": {"w3a3": 77.07, "w4a4": 91.49},
        "adadfq": {"w3a3": 84.89, "w4a4": 92.31},
        "hast": {"w3a3": 88.34, "w4a4": 92.36},
        "texq": {"w3a3": 86.47, "w4a4": 92.68},
        "synq": {"w3a3": 88.11, "w4a4": 92.76},
    },
    "resnet20-cifar100": {
        "full precision": {"w32a32": 70.33},
        "zeroq-tuned": {"w3a3": 15.38, "w4a4": 58.42},
        "gdfq": {"w3a3": 47.61, "w4a4": 63.75},
        "intraq": {"w3a3": 48.25, "w4a4": 64.98},
        "adadfq": {"w3a3": 52.74, "w4a4": 66.81},
        "hast": {"w3a3": 55.67, "w4a4": 66.68},
        "texq": {"w3a3": 55.87, "w4a4": 67.18},
        "synq": {"w3a3": 57.28, "w4a4": 67.34},
    },
    # The older ResNet-18 file of pytorchcv (0.0.58 and before); the newer one has 73.06.
    "resnet18-imagenet": {
        "full precision": {"w32a32": 71.47},
        "zeroq-tuned": {"w4a4": 60.68},
        "gdfq": {"w3a3": 20.23, "w4a4": 60.60},
        "intraq": {"w3a3": 45.51, "w4a4": 66.47},
        "adadfq": {"w3a3": 38.10, "w4a4": 66.53},
        "hast": {"w3a3": 51.15, "w4a4": 66.91},
        "texq": {"w3a3": 50.28, "w4a4": 67.73},
        "synq": {"w3a3": 52.02, "w4a4": 67.90},
        "none": {"w3a3": 43.63},
        "filter": {"w3a3": 49.43},
        "cam": {"w3a3": 48.26},
        "soft": {"w3a3": 46.42},
        "filter-cam": {"w3a3": 51.24},
        "filter-soft": {"w3a3": 50.81},
        "cam-soft": {"w3a3": 50.06},
    },
    "resnet50-imagenet": {
        "full precision": {"w32a32": 77.73},
        "gdfq": {"w3a3": 0.31, "w4a4": 54.16},
        "adadfq": {"w3a3": 17.63, "w4a4": 68.38},
        "texq": {"w3a3": 25.27, "w4a4": 70.72},
        "synq": {"w3a3": 26.89, "w4a4": 71.05},
    },
    "mobilenetv2-imagenet": {
        "full precision": {"w32a32": 73.03},
        "gdfq": {"w3a3": 1.46, "w4a4": 59.43},
        "intraq": {"w4a4": 65.10},
        "adadfq": {"w3a3": 28.99, "w4a4": 65.41},
        "hast": {"w4a4": 65.60},
        "texq": {"w3a3": 32.80, "w4a4": 67.07},
        "synq": {"w3a3": 34.21, "w4a4": 67.27},
    },
}


# Methods of the config whose published counterpart has another name.
SAME_AS = {"synq-paper": "synq", "synq-released": "synq", "texq-like": "texq"}


def published(benchmark: str, method: str, bits: str) -> float | None:
    """The published accuracy of a run, or None where there is none."""
    return PUBLISHED.get(benchmark, {}).get(SAME_AS.get(method, method), {}).get(bits)
