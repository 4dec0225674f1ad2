"""Layers whose outputs fine-tuning aligns, found by the role that they have in a forward.

Names and classes differ from zoo to zoo, and a layer's role does not: what is added to a shortcut
(feature alignment), what ends in such a sum (block matching), the last convolution with a map
(CAM). One image of zeros shows it.
"""

import contextlib
import math
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synq.errors import ModelError
from synq.models.hooks import recorded
from synq.models.structure import CONVOLUTIONS, LINEAR, attention_layers, is_attention

# What has a weight to fit, by the exact type, as it is quantized by.
WEIGHTED: tuple[type[nn.Module], ...] = (*CONVOLUTIONS, *LINEAR)
ADDITIONS = ("add", "iadd", "radd")
# Where a network has no residual units, what stands for the end of a block: by the functions, which
# torch's modules call, too.
ACTIVATIONS = ("relu", "relu6", "hardtanh", "silu", "hardswish", "gelu", "leaky_relu")


class _Made(NamedTuple):
    """A tensor as it was at one moment: in-place functions give the same tensor another version."""

    tensor: int
    version: int


class _Flow(TorchFunctionMode):
    """One forward: which module made each feature map, what was summed, in which order.

    ``makers`` are the modules that gave out a map, from the inside out; ``units`` those whose own
    forward summed two of them; ``depth`` the convolutions behind a tensor on the longest way;
    ``activations`` the maps before and behind each activation.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.makers: dict[_Made, list[str]] = {}
        self.visits: list[tuple[nn.Module, _Made, tuple[int, ...]]] = []
        self.branches: list[_Made] = []
        self.units: dict[str, None] = {}
        self.activations: list[tuple[_Made, _Made]] = []
        self._running: list[str] = []
        self._depth: dict[int, int] = {}
        self._alive: list[Tensor] = []  # so that no later tensor has the number of an earlier one

    def run(self, image_shape: tuple[int, int, int]) -> None:
        """Send one image of zeros through the model; it has no hook any more afterwards."""
        image = next(self.model.parameters()).new_zeros(1, *image_shape)
        with contextlib.ExitStack() as stack:
            for name, module in self.model.named_modules():
                stack.callback(module.register_forward_pre_hook(self._enter(name)).remove)
                stack.callback(module.register_forward_hook(self._leave(name)).remove)
            with torch.no_grad(), self:
                self.model(image)

    def _enter(self, name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            self._running.append(name)

        return hook

    def _leave(self, name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            self._running.pop()
            if isinstance(output, Tensor) and output.dim() == 4:
                made = self._now(output)
                self.makers.setdefault(made, []).append(name)
                self.visits.append((module, made, tuple(output.shape[2:])))

        return hook

    def _now(self, tensor: Tensor) -> _Made:
        self._alive.append(tensor)
        return _Made(id(tensor), tensor._version)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        given = [entry for entry in args if isinstance(entry, Tensor)]
        for entry in args:
            if isinstance(entry, list | tuple):
                given += [inner for inner in entry if isinstance(inner, Tensor)]
        depths = [self._depth.get(id(tensor), 0) for tensor in given]
        if name in ADDITIONS and len(given) == 2 and _maps(*given) and max(depths) > 0:
            self.units[self._running[-1]] = None
            # The deeper one is the branch; the other is what it is added to, or a projection of it.
            self.branches.append(self._now(given[depths[1] > depths[0]]))
        before = self._now(given[0]) if name in ACTIVATIONS and given else None
        result = func(*args, **(kwargs or {}))
        if before and result.dim() == 4:
            self.activations.append((before, self._now(result)))
        depth = max(depths, default=0) + name.startswith("conv")
        for tensor in result if isinstance(result, list | tuple) else [result]:
            if isinstance(tensor, Tensor):
                self._alive.append(tensor)
                self._depth[id(tensor)] = depth
        return result


def _maps(one: Tensor, other: Tensor) -> bool:
    return one.dim() == 4 and one.shape == other.shape


def feature_blocks(model: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the layers whose outputs are aligned (HAST), in the order of execution.

    By what they do and not by their names, which differ from zoo to zoo. Of one forward:

    - each residual branch as it is before its sum: of the two summed maps, the one with more
      convolutions behind it;
    - of each depthwise-separable block, residual or not, the BatchNorm layer of the 1x1 convolution
      that follows the depthwise one;
    - where there is neither, the last BatchNorm layer of each size of the map.

    These are the layers of HAST's program: the bodies of ResNet's units, all linear bottlenecks of
    MobileNetV2, the pointwise BatchNorm layers of MobileNet. ModelError where there is none, and
    where the network attends: its maps are no channels over space.
    """
    if not attention_layers(model):
        flow = _Flow(model)
        flow.run(image_shape)
        chosen = [made for made in flow.branches if made in flow.makers]
        chosen += _separable(flow)
        chosen = chosen or _ends_of_sizes(flow)
        order = list(flow.makers)
        found = sorted(set(chosen), key=order.index)
        # A residual branch is named after the outermost module that ends in it.
        branches = set(flow.branches)
        names = [flow.makers[made][-1 if made in branches else 0] for made in found]
        if names:
            return list(dict.fromkeys(names))
    raise ModelError(
        "the model has no residual branch, no depthwise block and no BatchNorm layer over a map "
        "to align features of; set finetune.feature_weight: 0"
    )


def _pointwise(layer: nn.Conv2d | None) -> bool:
    return layer is not None and layer.groups == 1 and set(layer.kernel_size) == {1}


def _separable(flow: _Flow) -> list[_Made]:
    found, waiting, last = [], False, None
    for module, made, _ in flow.visits:
        if isinstance(module, nn.Conv2d):
            last = module
            waiting = waiting or 1 < module.groups == module.in_channels
        elif isinstance(module, nn.BatchNorm2d) and waiting and _pointwise(last):
            found.append(made)
            waiting = False
    return found


def _ends_of_sizes(flow: _Flow) -> list[_Made]:
    ends: dict[tuple[int, ...], _Made] = {}
    for module, made, size in flow.visits:
        if isinstance(module, nn.BatchNorm2d) and math.prod(size) > 1:
            ends[size] = made
    return list(ends.values())


def cam_layer(model: nn.Module, image_shape: tuple[int, int, int]) -> str:
    """Name of the last convolution before the logits, in the order of execution, over one pixel.

    A 1x1 classifier convolution after the pooling (MobileNetV2) has a map of one pixel, which the
    normalisation turns into a constant: aligning it would teach nothing. Nor is there a map where
    attention follows the last such convolution, which only cuts the image into patches. Raises
    ModelError in both cases.
    """
    attentions = attention_layers(model)
    convolutions: dict[str, nn.Module] = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)
    }
    example = next(model.parameters()).new_zeros(1, *image_shape).requires_grad_()
    with torch.enable_grad(), recorded(convolutions | attentions) as record:
        logits = model(example)
    # Some networks' own convolutions give a pair of maps (octave convolutions): not one to align.
    maps = {
        name: output
        for name, output in record.items()
        if name in convolutions
        and isinstance(output, Tensor)
        and output.shape[-1] * output.shape[-2] > 1
    }
    # An auxiliary head, which a network computes beside its logits, is none that they come from.
    slopes = torch.autograd.grad(logits.sum(), [*maps.values()], allow_unused=True) if maps else ()
    used = {name for name, slope in zip(maps, slopes, strict=True) if slope is not None}
    order = [name for name in record if name in used or name in attentions]
    if not order:
        raise ModelError(
            "no convolution of the model has an output of more than one pixel, so there is no "
            "class activation map; set finetune.cam: off"
        )
    if order[-1] in attentions:
        raise ModelError(
            "the model attends after its last convolution, so there is no class activation map of "
            "a transformer; set finetune.cam: off"
        )
    return order[-1]


def residual_units(model: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the modules whose outputs are matched block by block, in the order of execution.

    Those whose own forward adds two feature maps, as a residual unit does; of a network without
    sums those that give out an activation, or what a function makes one of. Raises ModelError where
    there are neither.
    """
    flow = _Flow(model)
    flow.run(image_shape)
    # A sum in the forward of the network itself, whose name is empty, is in no unit.
    units = [name for name in flow.units if name]
    if units:
        return units
    makers = [flow.makers.get(made) or flow.makers.get(from_) for from_, made in flow.activations]
    found = list(dict.fromkeys(own[0] for own in makers if own))
    if not found:
        raise ModelError(
            "the model has no residual unit and no activation to match block by block; "
            "set finetune.block_weight: 0"
        )
    return found


def fitted_parts(model: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """Names of the modules that are fitted one after the other, in the order of execution (BRECQ).

    The residual units, modules of their classes (a unit with a stride has no sum in some networks),
    and outside of them each layer with what one module has around it. Each is called once, with a
    tensor of a batch of images, and gives one: only so it can be called by itself. A unit that
    holds others is divided into these, and an attention is left out. Raises ModelError where there
    is none.
    """
    flow = _Flow(model)
    flow.run(image_shape)
    units = {name: model.get_submodule(name) for name in flow.units if name}
    kinds = {type(unit) for unit in units.values()} - {nn.Sequential}
    called = _called_once(model, image_shape)

    def whole(name: str, module: nn.Module) -> bool:
        if name not in called:
            return False
        inner = any(other.startswith(f"{name}.") for other in units)
        unit = type(module) in kinds and not inner
        return unit or sum(type(layer) in WEIGHTED for layer in module.modules()) == 1

    def parts(name: str, module: nn.Module) -> Iterator[str]:
        weighted = any(type(layer) in WEIGHTED for layer in module.modules())
        if not weighted or is_attention(module):
            return
        if whole(name, module):
            yield name
            return
        for child, inner in module.named_children():
            yield from parts(f"{name}.{child}".removeprefix("."), inner)

    found = sorted(set(parts("", model)), key=called.index)
    if not found:
        raise ModelError(
            "the model has no layer that is called once, with one tensor, to be fitted by itself; "
            "set finetune.reconstruct: off"
        )
    return found


def _called_once(model: nn.Module, image_shape: tuple[int, int, int]) -> list[str]:
    """The modules within a network that are called once, with a batch's tensor, and give one."""
    images = next(model.parameters()).new_zeros(2, *image_shape)
    calls: Counter[str] = Counter()
    apart: set[str] = set()

    def of_batch(values: Any) -> bool:
        return isinstance(values, Tensor) and values.dim() > 1 and len(values) == len(images)

    def before(name: str, *_: Any) -> None:
        calls[name] += 1

    def behind(name: str, _: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not (len(args) == 1 and not kwargs and of_batch(args[0]) and of_batch(output)):
            apart.add(name)

    with contextlib.ExitStack() as stack:
        for name, module in model.named_modules():
            if name:
                hook = module.register_forward_pre_hook(partial(before, name))
                stack.callback(hook.remove)
                hook = module.register_forward_hook(partial(behind, name), with_kwargs=True)
                stack.callback(hook.remove)
        stack.enter_context(torch.no_grad())
        model(images)
    return [name for name, count in calls.items() if count == 1 and name not in apart]
