"""A small network of a user's own, and settings with which it is quantized in a second."""

from torch import nn
from torch.nn import functional

INPUT = {"image_shape": (3, 8, 8), "mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}
FEW = {
    "synthesis": {"images_per_class": 8, "iterations": 2, "classes_per_shard": 2},
    "finetune": {"epochs": 2, "batch_size": 8, "holdout": 0.25},
    "device": "cpu",
    "threads": 1,
    "progress": False,
}


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.output = nn.Linear(4 * 16, 3)

    def forward(self, x):
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.relu(self.bn2(self.conv2(x)) + x)
        return self.output(functional.max_pool2d(x, 2).view(x.size(0), -1))
