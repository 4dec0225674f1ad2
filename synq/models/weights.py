"""Networks by the name of their architecture, and weights that are known to fit them."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from synq.errors import ModelError, reason

# What wrappers put before the names of a network's parameters: DataParallel, and many a trainer.
PREFIXES = ("module.", "model.", "module.model.", "model.module.")


# What a checkpoint of a training calls its network's part.
NESTED = ("state_dict", "model")


COUNTER = "num_batches_tracked"


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], origin: str) -> str:
    """Load a state dict that must fit; ModelError names the first keys that do not.

    Keys may all have a prefix of ``PREFIXES`` that the model's have not, or lack one that they
    have. Returns a line that says so, empty where the keys are the same.
    """
    wanted = model.state_dict()
    tensors, note = _without_prefix(tensors, wanted)
    missing, surplus = _differences(tensors, wanted)
    shapes = [
        f"{name} {list(tensors[name].shape)} instead of {list(wanted[name].shape)}"
        for name in wanted
        if name in tensors and tensors[name].shape != wanted[name].shape
    ]
    for what, names in (("lacks", missing), ("has unknown", surplus), ("has other shapes", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ModelError(f"{origin} {what}: {', '.join(names[:3])}{more}")
    _check_values(tensors, model, origin)
    # The model's own state knows the version of each module's format; a plain mapping does not.
    wanted.update(tensors)
    model.load_state_dict(wanted)
    return note


def check_numbers(model: nn.Module, name: str) -> None:
    """ModelError where parameters are not float32, or something of the state is no number."""
    for key, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            kind = str(parameter.dtype).removeprefix("torch.")
            raise ModelError(f"{name} has {kind} in {key}; make it float32, by network.float()")
    _check_values(model.state_dict(), model, name)


def _check_values(tensors: Mapping[str, Tensor], model: nn.Module, origin: str) -> None:
    """ModelError where there are NaN, infinite parameters (a mask may be), or variances below 0."""
    parameters = {name for name, _ in model.named_parameters()}
    for key, tensor in tensors.items():
        if not tensor.is_floating_point():
            continue
        negative = key.endswith("running_var") and bool((tensor < 0).any())
        infinite = key in parameters and bool(tensor.isinf().any())
        found = {"NaN": bool(tensor.isnan().any()), "infinity": infinite, "less than 0": negative}
        for what, there in found.items():
            if there:
                raise ModelError(
                    f"{origin} holds {what} in {key}; its training diverged, or it is damaged"
                )


def _differences(tensors: Collection[str], wanted: Collection[str]) -> tuple[list[str], list[str]]:
    """The keys that are missing and those that are too many."""
    # Checkpoints from before the counter existed lack it, and evaluation does not read it.
    missing = {name for name in set(wanted) - set(tensors) if name.split(".")[-1] != COUNTER}
    return sorted(missing), sorted(set(tensors) - set(wanted))


def _without_prefix(
    tensors: Mapping[str, Tensor], wanted: Collection[str]
) -> tuple[Mapping[str, Tensor], str]:
    """The tensors under the model's own names, if no more than a prefix is different."""
    if not any(_differences(tensors, wanted)):
        return tensors, ""
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in tensors):
            found = {name.removeprefix(prefix): value for name, value in tensors.items()}
            if not any(_differences(found, wanted)):
                return found, f"the keys of the weights lost their prefix {prefix}"
        found = {prefix + name: value for name, value in tensors.items()}
        if not any(_differences(found, wanted)):
            return found, f"the keys of the weights got the model's prefix {prefix}"
    return tensors, ""


def read_weights(path: Path, origin: str = "") -> dict[str, Tensor]:
    """A state dict from a safetensors or a torch file, without running code from it.

    Errors name the file as its user does, by ``origin``, where it was brought from there.
    """
    named = origin or str(path)
    try:
        if _is_safetensors(path):
            return load_file(path)
        with open(path, "rb") as file:  # of a path, torch too would look at the suffix
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"{path} does not exist") from None
    except safetensors.SafetensorError as error:
        raise ModelError(f"{named} cannot be read as safetensors ({error})") from None
    except Exception as error:  # torch.load raises whatever a damaged file makes it raise
        # torch gives advice behind its first sentence, some of it unsafe and none of it ours.
        first = reason(error).partition(". ")[0]
        raise ModelError(
            f"{named} cannot be read as a state dict ({first}); write one by "
            "torch.save(network.state_dict(), ...)"
        ) from None
    for key in NESTED:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise ModelError(
            f"{named} holds no state dict (a mapping of names to tensors){_held(content)}"
        )
    return content


def _held(content: Any) -> str:
    """What a file holds in its place, as a part of a sentence."""
    if not isinstance(content, dict):
        return f", but a {type(content).__name__}"
    keys = [str(key) for key in content]
    more = ", ..." if len(keys) > 5 else ""
    return f", but {', '.join(keys[:5])}{more}; write the network's part of it as a file of its own"


def _is_safetensors(path: Path) -> bool:
    """By the content: eight bytes that say how long the JSON object after them is."""
    with open(path, "rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    return start[8:] == b"{" and length <= path.stat().st_size
