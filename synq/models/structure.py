"""What layers a network has: BatchNorm, attention, residual blocks, the convolution of the CAM."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.overrides import TorchFunctionMode

from synq.errors import ModelError
from synq.models.hooks import recorded

# What the layer that makes queries, keys and values at once is called: DeiT, Swin and all that
# follow them; MaxViT.
FUSED = ("qkv", "to_qkv")
# By their exact type: a subclass may use its weight in another way. The second is the output
# projection of nn.MultiheadAttention, and the same thing under another name.
LINEAR: tuple[type[nn.Linear], ...] = (nn.Linear, NonDynamicallyQuantizableLinear)


# Where a network has no residual units, what stands for the end of a block.
ACTIVATION_MODULES = (nn.ReLU, nn.ReLU6, nn.SiLU, nn.Hardswish, nn.GELU, nn.LeakyReLU)


def batchnorms(model: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """Name -> BatchNorm layer; ModelError where there is none with running statistics."""
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
    }
    if not layers:
        raise ModelError(
            "the model has no BatchNorm layer with running statistics to synthesize images from "
            "(a transformer does without, by synthesis.prior: patches)"
        )
    return layers


def attention_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Name -> attention layer: nn.MultiheadAttention, or what owns a linear layer of ``FUSED``."""
    return {name: module for name, module in model.named_modules() if is_attention(module)}


def is_attention(module: nn.Module) -> bool:
    fused = (getattr(module, name, None) for name in FUSED)
    return isinstance(module, nn.MultiheadAttention) or any(
        isinstance(layer, nn.Linear) for layer in fused
    )


def feature_blocks(model: nn.Module) -> list[str]:
    """Names of the residual branches, whose outputs HAST aligns (``body`` in pytorchcv)."""
    names = [name for name, _ in model.named_modules() if name.split(".")[-1] == "body"]
    if not names:
        raise ModelError(
            "the model has no residual branch (a module named body) to align features of; "
            "set finetune.feature_weight: 0"
        )
    return names


def cam_layer(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """Name of the last convolution, in the order of execution, whose output has over one pixel.

    A 1x1 classifier convolution after the pooling (MobileNetV2) has a map of one pixel, which the
    normalisation turns into a constant: aligning it would teach nothing. Nor is there a map where
    attention follows the last such convolution, which only cuts the image into patches. Raises
    ModelError in both cases.
    """
    attentions = attention_layers(model)
    convolutions: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    example = next(model.parameters()).new_zeros(1, *image_shape)
    with torch.no_grad(), recorded(convolutions | attentions) as record:
        model(example)
    # Some networks' own convolutions give a pair of maps (octave convolutions): not one to align.
    spatial = [
        name
        for name, output in record.items()
        if name in attentions
        or (isinstance(output, Tensor) and output.shape[-1] * output.shape[-2] > 1)
    ]
    if not spatial:
        raise ModelError(
            "no convolution of the model has an output of more than one pixel, so there is no "
            "class activation map; set finetune.cam: off"
        )
    if spatial[-1] in attentions:
        raise ModelError(
            "the model attends after its last convolution, so there is no class activation map of "
            "a transformer; set finetune.cam: off"
        )
    return spatial[-1]


class _Sums(TorchFunctionMode):
    """The modules whose own forward adds two feature maps of the same shape."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[nn.Module, None] = {}
        self.running: list[nn.Module] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        maps = [x for x in args[:2] if isinstance(x, Tensor) and x.dim() == 4]
        added = name in ("add", "iadd", "radd") and len(maps) == 2
        if added and maps[0].shape == maps[1].shape and self.running:
            self.found[self.running[-1]] = None
        return func(*args, **(kwargs or {}))

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Keep track of the module that is running."""
        with contextlib.ExitStack() as stack:
            for module in model.modules():
                if module is not model:
                    stack.callback(module.register_forward_pre_hook(self._enter).remove)
                    stack.callback(module.register_forward_hook(self._leave).remove)
            yield

    def _enter(self, module: nn.Module, args: Any) -> None:
        self.running.append(module)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.running.pop()


def residual_units(model: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the modules whose outputs are matched block by block, in the order of execution.

    Those whose own forward adds two feature maps, as a residual unit does; of a network without
    sums the activation modules. Raises ModelError where there are neither.
    """
    sums = _Sums()
    example = next(model.parameters()).new_zeros(1, *image_shape)
    with torch.no_grad(), sums.following(model), sums:
        model(example)
    names = {module: name for name, module in model.named_modules()}
    if sums.found:
        return [names[module] for module in sums.found]
    activations = {n: m for n, m in model.named_modules() if isinstance(m, ACTIVATION_MODULES)}
    with torch.no_grad(), recorded(activations) as record:
        model(example)
    found = [name for name, output in record.items() if output.dim() == 4]
    if not found:
        raise ModelError(
            "the model has no residual unit and no activation module to match block by block; "
            "set finetune.block_weight: 0"
        )
    return found
