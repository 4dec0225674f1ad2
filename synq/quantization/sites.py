"""Call sites: activations that a network calls as functions, or calls several times as modules.

A site is named ``module/function/index``: the module whose own forward calls, the function, and how
many of these calls came before in the forward of the whole network. One forward under a torch
function mode lists them. The student has a quantizer for each in a submodule ``call_sites`` of that
module, and hooks of the student lead its forwards past them: nobody's code is read or rewritten.
A forward that calls otherwise than the one that was listed is a ModelError.

The first call of an activation module is quantized by its own ``quantizer``; those that follow are
sites ``module/forward/index``.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from synq.errors import ModelError
from synq.quantization.activations import (
    FUNCTIONS,
    GATES,
    OPERATIONS,
    QUANTIZABLE,
    activation,
    spoken,
)
from synq.quantization.quantizers import Quantizer, Recipe

_OPAQUE = {*QUANTIZABLE, *GATES}
CONTAINER, FORWARD = "call_sites", "forward"
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


class CallSites(nn.ModuleDict):
    """The quantizers of a module's sites; ``overwriting`` are the keys of the sites that are."""

    def __init__(self) -> None:
        super().__init__()
        self.overwriting: set[str] = set()


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


# Runs while a quantizer does.
_NOBODY = Quantizer(8)


class _Quantizing(Following):
    """Quantizes at the sites of one forward, and counts along."""

    def __init__(self, expected: Mapping[str, Mapping[str, int]], scope: Scope) -> None:
        super().__init__(scope)
        self.expected = expected
        self._paused: list[bool] = []

    def pause(self) -> None:
        """See nothing until ``resume``; or count nothing, where another mode is in between."""
        self.running.append(("", _NOBODY))
        self._paused.append(_get_current_function_mode() is self)
        if self._paused[-1]:
            self.__exit__(None, None, None)

    def resume(self) -> None:
        self.leave(_NOBODY)
        if self._paused and self._paused.pop():
            self.__enter__()

    def count(self, name: str, function: str) -> int:
        index = super().count(name, function)
        if index >= self.expected.get(name, {}).get(function, 0):
            self.check(name)
        return index

    def check(self, name: str) -> None:
        """ModelError where a module has not called what it called when it was inspected."""
        found, wanted = self.counts.get(name, {}), self.expected.get(name, {})
        for function in [*found, *wanted]:
            now, before = found.get(function, 0), wanted.get(function, 0)
            if now != before:
                what = "is called" if function == FORWARD else f"calls {function}"
                raise ModelError(
                    f"{name or 'the model'} {what} {now} times in this forward and {before} times "
                    "in the one that was inspected; a network whose activations depend on the "
                    "image cannot be quantized"
                )

    def called(
        self, caller: nn.Module, key: str, func: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        quantizers: Any = getattr(caller, CONTAINER, {})
        if key not in quantizers:
            return func(*args, **kwargs)
        quantizer = quantizers[key]
        if key not in quantizers.overwriting:
            return quantizer(func(*args, **kwargs))
        given = args[0] if args else kwargs["input"]
        # In a copy, as the gradient of the activation needs what it gave.
        if args:
            result = func(given.clone(), *args[1:], **kwargs)
        else:
            result = func(**{**kwargs, "input": given.clone()})
        return given.copy_(quantizer(result))


class _Open(threading.local):
    """The forwards that have begun and not ended, of each thread its own."""

    def __init__(self) -> None:
        self.forwards: list[_Quantizing] = []


class _Route:
    """Leads every forward of a student past its sites, by hooks of its modules.

    It holds numbers by the modules' names alone, so that a copied or unpickled student has its own.
    """

    def __init__(self, calls: Calls) -> None:
        self.expected, self.functions, self.scope = calls.counts, calls.functions, calls.scope
        self._open = _Open()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_open"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        vars(self).update(state)
        self._open = _Open()

    @property
    def is_followed(self) -> bool:
        """Whether a forward has begun in this thread and not ended."""
        return bool(self._open.forwards)

    @property
    def _forwards(self) -> list[_Quantizing]:
        return self._open.forwards

    def begin(self, root: nn.Module, args: Any) -> None:
        forward = _Quantizing(self.expected, self.scope)
        if self.functions:
            forward.__enter__()
        self._forwards.append(forward)
        forward.enter("", root)

    def end(self, root: nn.Module, args: Any, output: Any) -> None:
        if not self._forwards:
            return
        forward = self._forwards.pop()
        if self.functions:
            forward.__exit__(None, None, None)
        # Nothing is given out where an exception ended the forward, which tells more.
        if output is not None and forward.counts != self.expected:
            for name in self.expected:
                forward.check(name)

    def enter(self, name: str, module: nn.Module, args: Any) -> None:
        if self._forwards:
            self._forwards[-1].enter(name, module)
        elif hasattr(module, CONTAINER):
            raise ModelError(f"{name} is called outside of a forward of the whole student")

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._forwards:
            self._forwards[-1].leave(module)

    def pause(self, quantizer: nn.Module, args: Any) -> None:
        """A quantizer calls no site, and more functions than all else together."""
        if self._forwards:
            self._forwards[-1].pause()

    def resume(self, quantizer: nn.Module, args: Any, output: Any) -> None:
        if self._forwards:
            self._forwards[-1].resume()

    def quantized(self, name: str, module: nn.Module, args: Any, output: Tensor) -> Any:
        """The output of a module that is called several times, by the quantizer of this call."""
        index = self._forwards[-1].counts[name][FORWARD] - 1
        key, own = f"{FORWARD}/{index}", getattr(module, CONTAINER)
        # Of a module's first call, or a gate whose first call needs no grid.
        quantizer: Any = own[key] if key in own else getattr(module, "quantizer", None)
        return output if quantizer is None else quantizer(output)


class _Children(dict[str, Any]):
    """A module's children, without its ``CallSites`` while a forward of the student runs.

    Else a forward that goes through its own children, or counts them, would find one too many.
    """

    def __init__(self, children: Mapping[str, Any], route: _Route) -> None:
        super().__init__(children)
        self.route = route

    def _seen(self) -> dict[str, Any]:
        seen = dict(super().items())
        if self.route.is_followed:
            seen.pop(CONTAINER, None)
        return seen

    def __len__(self) -> int:
        return len(self._seen())

    def __iter__(self) -> Iterator[str]:
        return iter(self._seen())

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._seen())

    def keys(self) -> Any:
        return self._seen().keys()

    def values(self) -> Any:
        return self._seen().values()

    def items(self) -> Any:
        return self._seen().items()


def add_sites(student: nn.Module, calls: Calls, recipe: Recipe) -> None:
    """Give a student quantizers at its sites, and hooks that apply them; nothing without sites."""
    if not calls.sites:
        return
    names = {module: name for name, module in student.named_modules()}
    route = _Route(calls)
    for site in calls.sites:
        if not hasattr(site.module, CONTAINER):
            site.module.add_module(CONTAINER, CallSites())
            site.module._modules = _Children(site.module._modules, route)
        container: Any = getattr(site.module, CONTAINER)
        name = site_name(names[site.module], site.key)
        quantizer = recipe.of_sum(name) if site.added else recipe.of_activation(name)
        container.add_module(site.key, quantizer)
        if site.overwriting:
            container.overwriting.add(site.key)
    for name, module in student.named_modules():
        if type(module) in calls.scope.modules and hasattr(module, CONTAINER):
            module.register_forward_hook(partial(route.quantized, name))
        if isinstance(module, Quantizer) and calls.functions:
            module.register_forward_pre_hook(route.pause)
            module.register_forward_hook(route.resume, always_call=True)
        elif name and _watched(module, calls):
            module.register_forward_pre_hook(partial(route.enter, name))
            module.register_forward_hook(route.leave, always_call=True)
    student.register_forward_pre_hook(route.begin)
    student.register_forward_hook(route.end, always_call=True)


@contextlib.contextmanager
def part_of_forward(student: nn.Module) -> Iterator[None]:
    """Within this block a module of a student may be called by itself, once."""
    hooks = [*student._forward_pre_hooks.values()]
    routes = [own for hook in hooks if isinstance(own := getattr(hook, "__self__", None), _Route)]
    for route in routes:
        route.begin(student, ())
    try:
        yield
    finally:
        for route in routes:
            # No output is given out, of which the calls would be compared with all.
            route.end(student, (), None)


def _watched(module: nn.Module, calls: Calls) -> bool:
    """Whether it matters that a module runs: to its own sites, or to who calls a function."""
    if type(module) in calls.scope.modules:
        return True
    if not calls.functions or isinstance(module, CallSites):
        return False
    if calls.scope.operations:
        return True
    # torch's own layers call no activation.
    own = type(module).__module__.startswith("torch.nn.modules.")
    bare = type(module) is nn.Sequential or not any(True for _ in module.children())
    return not (own and bare) or opaque(module)
