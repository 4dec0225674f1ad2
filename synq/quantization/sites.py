"""Call sites: activations that a network calls as functions, or calls several times as modules.

A site is named ``module/function/index``: the module whose own forward calls, the function, and how
many of these calls came before in the forward of the whole network. One forward under a torch
function mode lists them; ``routes`` leads those of a student past their quantizers.

The first call of an activation module is quantized by its own ``quantizer``; those that follow are
sites ``module/forward/index``.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from synq.quantization.activations import (
    FUNCTIONS,
    GATES,
    OPERATIONS,
    QUANTIZABLE,
    activation,
    spoken,
)
from synq.quantization.quantizers import Quantizer

_OPAQUE = {*QUANTIZABLE, *GATES}
FORWARD = "forward"
# Tensors of these are constants, whatever the image.
_ZEROS = ("zeros", "zeros_like", "new_zeros")


@dataclass(frozen=True)
class Site:
    """A call: the module that makes it, ``function/index``, and how the function is written.

    It is ``overwriting`` where it is in place and the network goes on with the tensor that it gave.
    ``added`` are the sites that are no activation's: sums and all else of ``scope: everything``.
    """

    module: nn.Module
    key: str
    function: str
    overwriting: bool = False
    added: bool = False


@dataclass(frozen=True)
class Scope:
    """Which calls are counted: activations, or with ``operations`` those of ``OPERATIONS`` too.

    Of the modules whose names are ``closed``, attentions and what is inside, the latter are not.
    """

    operations: bool = False
    closed: frozenset[str] = frozenset()

    @property
    def modules(self) -> tuple[type[nn.Module], ...]:
        """The modules whose own calls are counted."""
        return (*QUANTIZABLE, *GATES) if self.operations else QUANTIZABLE

    def function(
        self, name: str, caller: nn.Module, func: Callable[..., Any], args: Any, kwargs: Any
    ) -> str:
        """The name of a call that is counted; else nothing."""
        if opaque(caller):
            return ""
        found = activation(func, args, kwargs) if func in FUNCTIONS else ""
        if not found and self.operations and name not in self.closed:
            found = OPERATIONS.get(spoken(func), "")
        return found


@dataclass
class Calls:
    """What one forward called.

    ``counts`` are those of each module's calls by its name; ``fed`` the modules whose input is a
    function's activation, with nothing but dropout between. ``scope`` is how they were counted, and
    ``inputs`` the layers whose own input is to be quantized, with whether it is the image.
    """

    sites: list[Site] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    fed: set[nn.Module] = field(default_factory=set)
    scope: Scope = field(default_factory=Scope)
    inputs: dict[nn.Module, bool] = field(default_factory=dict)

    @property
    def functions(self) -> bool:
        """Whether any site is a function's, or may be."""
        return self.scope.operations or any(
            not site.key.startswith(f"{FORWARD}/") for site in self.sites
        )


def site_name(module: str, key: str) -> str:
    """``module/function/index``; the network itself has no name."""
    return f"{module}/{key}".removeprefix("/")


def opaque(module: nn.Module) -> bool:
    """Whether what a module's own forward calls is its own matter."""
    return type(module) in _OPAQUE or isinstance(module, Quantizer)


class Following(TorchFunctionMode):
    """One forward: which module runs, and how often each has called each activation so far."""

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self.scope = scope
        self.running: list[tuple[str, nn.Module]] = []
        self.counts: dict[str, dict[str, int]] = {}

    def enter(self, name: str, module: nn.Module) -> None:
        self.running.append((name, module))
        if type(module) in self.scope.modules:
            self.count(name, FORWARD)

    def leave(self, module: nn.Module) -> None:
        if self.running and self.running[-1][1] is module:
            self.running.pop()

    def count(self, name: str, function: str) -> int:
        """How many such calls there were before this one."""
        own = self.counts.setdefault(name, {})
        own[function] = own.get(function, 0) + 1
        return own[function] - 1

    def called(
        self, caller: nn.Module, key: str, func: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """The result of a call that is counted."""
        raise NotImplementedError

    def other(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """The result of any other call."""
        return func(*args, **kwargs)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if self.running and (self.scope.operations or func in FUNCTIONS):
            name, caller = self.running[-1]
            function = self.scope.function(name, caller, func, args, kwargs)
            if function:
                key = f"{function}/{self.count(name, function)}"
                return self.called(caller, key, func, args, kwargs)
        return self.other(func, args, kwargs)


class Listing(Following):
    """Lists the sites of one forward."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope)
        self.sites: list[Site] = []
        self.fed: set[nn.Module] = set()
        # Of the tensors themselves, so that no later one has the number of an earlier one.
        self._activations: dict[int, Tensor] = {}
        self._zeros: dict[int, Tensor] = {}
        # What was given to a site in place, or what that is a view of, and the site's number.
        self._given: dict[int, tuple[Tensor, int]] = {}

    def begin(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.enter(name, module)
        calls = self.counts.get(name, {}).get(FORWARD, 0)
        if calls > 1 and type(module) in QUANTIZABLE:
            self.sites.append(Site(module, f"{FORWARD}/{calls - 1}", type(module).__name__))
        if args and id(args[0]) in self._activations:
            self.fed.add(module)

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        self.leave(module)

    def called(
        self, caller: nn.Module, key: str, func: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        self._look_for_given([args, kwargs])
        result = func(*args, **kwargs)
        real = isinstance(result, Tensor) and result.is_floating_point() and result.dim() > 1
        if real and (not key.startswith("maximum/") or self._with_zero([*args, *kwargs.values()])):
            if any(tensor is result for tensor in (*args[:1], kwargs.get("input"))):
                for tensor in (result, result._base):
                    if tensor is not None:
                        self._given[id(tensor)] = (tensor, len(self.sites))
                # Another tensor over the same values tells which of the two the network goes on
                # with.
                result = result.view_as(result)
            self.sites.append(Site(caller, key, FUNCTIONS[func][0]))
            self._activations[id(result)] = result
        return result

    def run(self, model: nn.Module, image_shape: tuple[int, int, int]) -> None:
        """Follow one image of zeros, in evaluation mode; the model stays as it is."""
        image = next(model.parameters()).new_zeros(1, *image_shape)
        self.given(image)
        with contextlib.ExitStack() as stack:
            stack.enter_context(evaluating(model))
            for name, module in model.named_modules():
                stack.callback(module.register_forward_pre_hook(partial(self.begin, name)).remove)
                hook = module.register_forward_hook(self.end, always_call=True)
                stack.callback(hook.remove)
            stack.enter_context(torch.no_grad())
            with self:
                output = model(image)
            self.ended(output)

    def given(self, image: Tensor) -> None:
        """The image that will be followed."""

    def ended(self, output: Any) -> None:
        """What the network gives out is used, too."""
        self._look_for_given(output)

    def _look_for_given(self, values: Any) -> None:
        if isinstance(values, dict):
            values = [*values.values()]
        if isinstance(values, list | tuple):
            for value in values:
                self._look_for_given(value)
        elif id(values) in self._given:
            _, number = self._given[id(values)]
            self.sites[number] = replace(self.sites[number], overwriting=True)

    def other(self, func: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        name = getattr(func, "__name__", "")
        if name != "__get__":  # the shape alone
            self._look_for_given([args, kwargs])
        result = func(*args, **kwargs)
        if name in _ZEROS:
            self._zeros[id(result)] = result
        if name == "dropout" and args and id(args[0]) in self._activations:
            self._activations[id(result)] = result
        return result

    def _with_zero(self, tensors: list[Any]) -> bool:
        """Whether one of two is 0 whatever the image: a feature map may be, of one of zeros."""
        return any(
            id(tensor) in self._zeros or (tensor.numel() == 1 and float(tensor) == 0)
            for tensor in tensors
        )


def list_calls(model: nn.Module, image_shape: tuple[int, int, int]) -> Calls:
    """What a forward of one image of zeros calls, in evaluation mode; the model stays as it is."""
    listing = Listing(Scope())
    listing.run(model, image_shape)
    return Calls(listing.sites, listing.counts, listing.fed)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and each of its modules as it was afterwards."""
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True
