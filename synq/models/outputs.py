"""Logits from what a network returns: out of several outputs, without a softmax or sigmoid behind.

Both are settled when a network is built, leave the keys of its state dict as they are, and are told
by ``told``.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from synq.errors import ModelError

# How far from 1 the probabilities of an image may sum up to, by rounding alone.
TOLERANCE = 1e-3
SQUASHING = (nn.Softmax, nn.LogSoftmax, nn.Sigmoid)


class Choice:
    """A forward hook that gives one of several outputs, the logits, in place of all."""

    def __init__(self, key: str | int, text: str) -> None:
        self.key, self.text = key, text

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:
        return output if isinstance(output, Tensor) else dict(_entries(output))[self.key]


class Removed(nn.Identity):
    """What stands in the place of a softmax or sigmoid that was taken off."""

    text = ""


def settle(model: nn.Module, images: Tensor, classes: int, name: str) -> Any:
    """Make the model give logits, where it does not yet; what it gives for ``images`` then.

    Of a tuple or a mapping it gives the entry ``logits``, or the first of ``[N, classes]``, an
    auxiliary one last. An ``nn.Softmax``, ``nn.LogSoftmax`` or ``nn.Sigmoid`` that is called last
    becomes an identity; ModelError where the outputs are probabilities in any other way. A result
    that is still no tensor is for the caller to refuse.
    """
    output = model(images)
    if not isinstance(output, Tensor):
        chosen = _chosen(output, [len(images), classes])
        if chosen is None:
            return output
        model.register_forward_hook(chosen)
        output = model(images)
    if not (_probabilities(output) or _by_sigmoid(output, model, images)):
        return output
    place = _squashing(model, images)
    if place:
        removed = Removed()
        removed.text = f"without {place}, a {type(model.get_submodule(place)).__name__}"
        model.set_submodule(place, removed)
        output = model(images)
    if _probabilities(output) or _by_sigmoid(output, model, images):
        raise ModelError(
            f"{name} gives probabilities, or their logarithms, and logits are needed: "
            "let its forward end before the softmax or sigmoid"
        )
    return output


def count_classes(output: Any, images: int) -> list[int]:
    """How many classes the logits in a network's output have; empty where it holds no ``[N, K]``.

    Of several outputs the logits are the entry of that name; without one they may be any of two
    axes, and there are several numbers where those are not alike.
    """
    if isinstance(output, Tensor):
        return [output.shape[1]] if output.dim() == 2 and len(output) == images else []
    entries = [(key, value) for key, value in _entries(output) if isinstance(value, Tensor)]
    named = [entry for entry in entries if entry[0] == "logits"]
    counts = [count for _, value in named or entries for count in count_classes(value, images)]
    return [*dict.fromkeys(counts)]


def told(model: nn.Module) -> list[str]:
    """What was done to the model's output, in words; empty where it gave logits itself."""
    hooks = [hook for hook in model._forward_hooks.values() if isinstance(hook, Choice)]
    removed = [module for module in model.modules() if isinstance(module, Removed)]
    return [*(hook.text for hook in hooks), *(module.text for module in removed)]


def _chosen(output: Any, shape: list[int]) -> Choice | None:
    entries = [(key, value) for key, value in _entries(output) if isinstance(value, Tensor)]
    named = [key for key, _ in entries if key == "logits"]
    shaped = [key for key, value in entries if list(value.shape) == shape]
    if not named + shaped:
        return None
    # Of several that fit, what torchvision's networks with auxiliary heads call theirs.
    main = [key for key in shaped if not str(key).startswith("aux")]
    called = named + [key for key in shaped if key == "out"]
    key = (called + main + shaped)[0]
    text = f"{_spoken(key)} of a {type(output).__name__}"
    if not called and len(main or shaped) > 1:
        others = " and ".join(_spoken(other) for other in (main or shaped)[1:])
        text += f" ({others} would fit as well: where it is that, let the network return it alone)"
    return Choice(key, text)


def _spoken(key: str | int) -> str:
    return f"entry {key}" if isinstance(key, int) else key


def _entries(output: Any) -> Iterator[tuple[str | int, Any]]:
    """The parts of an output that is a mapping, a named or plain tuple, a list or a record."""
    if isinstance(output, Mapping):
        yield from output.items()
    elif isinstance(output, (tuple, list)):
        yield from zip(getattr(output, "_fields", range(len(output))), output, strict=True)
    else:
        yield from getattr(output, "__dict__", {}).items()


def _probabilities(output: Any) -> bool:
    """Whether each image's outputs are probabilities, or the logarithms of some."""
    if not isinstance(output, Tensor) or output.dim() != 2 or output.shape[1] < 2:
        return False
    for values in (output.float(), output.float().exp()):
        sums = values.sum(1)
        if bool((values >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), 0, TOLERANCE):
            return True
    return False


def _by_sigmoid(output: Any, model: nn.Module, images: Tensor) -> bool:
    """Whether a sigmoid is the last thing that the network computes, by what its gradient is of.

    The values alone do not tell: the logits of a network may all lie between 0 and 1. Where they do
    not, there is no need of another forward.
    """
    if not isinstance(output, Tensor) or not bool(((output >= 0) & (output <= 1)).all()):
        return False
    with torch.enable_grad():
        try:
            # Of a copy, which a network may write into.
            again = model(images.clone().requires_grad_().clone())
        except Exception:  # a network's own code raises whatever it likes
            return False
    node = getattr(again, "grad_fn", None)
    return node is not None and str(node.name()).startswith("SigmoidBackward")


def _squashing(model: nn.Module, images: Tensor) -> str:
    """Name of the module of ``SQUASHING`` whose output is the network's, if it is called once."""
    outputs: dict[str, list[Tensor]] = {}
    handles = []
    for name, module in model.named_modules():
        if name and type(module) in SQUASHING:
            calls = outputs.setdefault(name, [])
            keep = _keeper(calls)
            handles.append(module.register_forward_hook(keep))
    try:
        output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    last = [name for name, calls in outputs.items() if len(calls) == 1 and calls[0] is output]
    return last[0] if last else ""


def _keeper(calls: list[Tensor]) -> Any:
    return lambda module, args, output: calls.append(output)
