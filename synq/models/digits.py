"""The network of the embedded default, whose weights are a file of this package."""

from torch import nn

from synq.models.build import build


def resnet20() -> nn.Module:
    """pytorchcv's CIFAR ResNet-20 for grey images of 16 px and ten classes, without weights.

    A quarter of CIFAR's pixels, and a third of its channels. The pool at the end is of fixed size
    in pytorchcv; here it is the whole of what is left of 16 px.
    """
    network = build("resnet20_cifar10", 10, 1, 32)
    network.features.final_pool = nn.AvgPool2d(kernel_size=4, stride=1)  # type: ignore[union-attr]
    return network
