"""Following one forward of a network: what runs, what it calls, where each tensor comes from."""

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from synq.quantization.activations import PRESERVING, activation
from synq.quantization.attention import owned_products, owners
from synq.quantization.sites import FORWARD, Calls, Site, evaluating, opaque

IMAGE, QUANTIZED = "image", "quantized"


SPOKEN = {"add": "sum", "iadd": "sum", "radd": "sum", "mul": "product", "imul": "product"}


# What computes as a layer does where one of its tensors is a weight.
PRODUCTS = frozenset(
    ("matmul", "rmatmul", "mm", "bmm", "mv", "addmm", "baddbmm", "einsum", "tensordot")
)


class Visit(NamedTuple):
    """One call of a module: the whole shape of its first output, and the multiply-adds in it."""

    output: list[int] | None
    multiply_adds: int | None


@dataclass
class Visits:
    """All calls of one module, and where the input of the first came from."""

    calls: list[Visit] = field(default_factory=list)
    origin: str = ""


class Trace(TorchFunctionMode):
    """One forward, as it was seen.

    ``visits`` holds the modules, and the sites of ``calls``, in the order of execution,
    ``functions`` the pairs of a module (None outside of all) and a torch function that its own
    forward called, and ``products`` those of ``PRODUCTS`` in which a weight met another tensor; a
    weight is a parameter, a buffer, or what was computed of these alone. ``origin`` is
    ``quantized`` where the tensor came from a module of the types ``quantized`` or from a site and
    kept its values, or else the function that made it. ``attended`` has the multiply-adds of
    the attentions' weights, by who owns each. Those of all others are known where it is
    ``counting``, for which torch imports its compiler: seconds that only who asks for them shall
    wait.
    """

    def __init__(
        self,
        model: nn.Module,
        quantized: Collection[type[nn.Module]],
        calls: Calls | None = None,
        *,
        counting: bool = False,
    ) -> None:
        super().__init__()
        self.model, self.quantized = model, quantized
        self.sites = {(site.module, site.key): site for site in (calls or Calls()).sites}
        self.visits: dict[nn.Module | Site, Visits] = {}
        self.functions: dict[tuple[nn.Module | None, Callable[..., Any]], None] = {}
        self.products: dict[tuple[nn.Module | None, str], None] = {}
        self._called: Counter[tuple[nn.Module, str]] = Counter()
        self._running: list[nn.Module] = []
        self._counter = FlopCounterMode(display=False) if counting else None
        self._counts: list[int] = []
        self.attended: Counter[nn.Module] = Counter()
        self._owners = owners(model)
        self._origins: Any = WeakTensorKeyDictionary()
        self._weights: Any = WeakTensorKeyDictionary()

    def run(self, image_shape: tuple[int, int, int]) -> None:
        """Send one image of zeros ``[1, C, H, W]`` through the model in evaluation mode.

        The model is as it was afterwards, also after an exception: no hook, no changed statistics.
        """
        image = next(self.model.parameters()).new_zeros(1, *image_shape)
        self._origins[image] = IMAGE
        for tensor in (*self.model.parameters(), *self.model.buffers()):
            self._weights[tensor] = True
        with evaluating(self.model), self._hooks(), torch.no_grad(), self._counting(), self:
            self.model(image)

    def _counting(self) -> contextlib.AbstractContextManager[Any]:
        return self._counter or contextlib.nullcontext()

    def _multiply_adds(self) -> int:
        # A multiplication and an addition are two operations.
        return self._counter.get_total_flops() // 2 if self._counter else 0

    @contextlib.contextmanager
    def _hooks(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for module in self.model.modules():
                stack.callback(module.register_forward_pre_hook(self._enter).remove)
                # Also of a module whose exception the network catches.
                hook = module.register_forward_hook(self._leave, always_call=True)
                stack.callback(hook.remove)
            yield

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self._running.append(module)
        self._counts.append(self._multiply_adds())
        self._visited(module, args)
        site = self._site(module, FORWARD)
        if site:
            self._visited(site, args)

    def _visited(self, place: nn.Module | Site, args: Any) -> Visits:
        visits = self.visits.setdefault(place, Visits())
        for tensor in _tensors(args[:1]):
            visits.origin = visits.origin or self._origins.get(tensor, "")
        return visits

    def _site(self, module: nn.Module, function: str) -> Site | None:
        """The site of the next call of ``function`` by this module."""
        index = self._called[module, function]
        self._called[module, function] += 1
        return self.sites.get((module, f"{function}/{index}"))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._running.pop()
        count = self._multiply_adds() - self._counts.pop()
        visit = Visit(_shape(output), count if self._counter else None)
        self.visits[module].calls.append(visit)
        site = self.sites.get((module, f"{FORWARD}/{len(self.visits[module].calls) - 1}"))
        if site:
            self.visits[site].calls.append(visit)
        if type(module) in self.quantized:
            for tensor in _tensors(output):
                self._origins[tensor] = QUANTIZED

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        site = self._site_of(func, args, kwargs)
        # Before the call, which may be in place.
        visits = self._visited(site, args or [*kwargs.values()]) if site else None
        result = func(*args, **kwargs)
        caller = self._running[-1] if self._running else None
        self.functions[caller, func] = None
        self.attended.update(owned_products(self._owners, caller, func, args, kwargs))
        name = getattr(func, "__name__", "").strip("_")
        weights = [tensor in self._weights for tensor in _tensors([*args, *kwargs.values()])]
        if all(weights) and weights:
            for tensor in _tensors(result):
                self._weights[tensor] = True
        elif any(weights) and name in PRODUCTS:
            self.products[caller, name] = None
        origin = SPOKEN.get(name, name)
        if name in PRESERVING and args:
            sources = [self._origins.get(tensor) for tensor in _tensors(args[0])]
            mixed = [source for source in sources if source != QUANTIZED]
            origin = (mixed[0] or name) if mixed else QUANTIZED
        if visits is not None:
            visits.calls.append(Visit(_shape(result), None))
            origin = QUANTIZED
        for tensor in _tensors(result):
            self._origins[tensor] = origin
        return result

    def _site_of(
        self, func: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Site | None:
        caller = self._running[-1] if self._running else None
        if caller is None or opaque(caller):
            return None
        function = activation(func, args, kwargs)
        return self._site(caller, function) if function else None


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors of a tensor, or of a list or tuple of them, of which some may be lists again."""
    for entry in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(entry, Tensor):
            yield entry
        elif isinstance(entry, (list, tuple)):
            yield from _tensors(entry)


def _shape(value: Any) -> list[int] | None:
    return next((list(tensor.shape) for tensor in _tensors(value)), None)
