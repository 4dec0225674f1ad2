"""A student's forwards, led past the quantizers of its call sites.

There is one for each in a submodule ``call_sites`` of the module that calls, and hooks of the
student lead its forwards past them: nobody's code is read or rewritten. A forward that calls
otherwise than the one that was listed is a ModelError.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.overrides import _get_current_function_mode

from synq.errors import ModelError
from synq.quantization.quantizers import Quantizer, Recipe
from synq.quantization.sites import FORWARD, Calls, Following, Scope, opaque, site_name

CONTAINER = "call_sites"
# Runs while a quantizer does.
_NOBODY = Quantizer(8)


class CallSites(nn.ModuleDict):
    """The quantizers of a module's sites; ``overwriting`` are the keys of the sites that are."""

    def __init__(self) -> None:
        super().__init__()
        self.overwriting: set[str] = set()


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
