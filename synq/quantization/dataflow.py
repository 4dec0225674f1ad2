"""Where every tensor of one forward comes from, what reads it, and which of them get a grid.

The paper's scheme quantizes activations where they are called. The two wider ones need to know
more: ``inputs`` which layers read a tensor that is on no grid, and ``everything`` which tensors an
integer engine would have to write down, because something other than the next step of the same
kernel reads them. A convolution, its BatchNorm and a ReLU are one such kernel, and so are a sum and
a ReLU: what is between them stays as it is.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from synq.config.calibration import FLOAT
from synq.models.structure import attention_layers
from synq.quantization.activations import (
    CLIPPING,
    FUNCTIONS,
    GATES,
    OPERATIONS,
    PRESERVING,
    QUANTIZABLE,
    activation,
    spoken,
)
from synq.quantization.attention import owned_products, owners
from synq.quantization.quantizers import Recipe
from synq.quantization.sites import (
    FORWARD,
    Calls,
    Listing,
    Scope,
    Site,
    list_calls,
    opaque,
    site_name,
)

# What reads a tensor: a layer, whose input may get a grid of its own; a step that the kernel before
# it does at once; anything else that an integer engine computes; what is not known.
LAYER, STEP, OPERATION, OTHER = "layer", "step", "operation", "other"
LAYERS = (
    *("conv1d", "conv2d", "conv3d", "linear"),
    *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
)
CLIPS = ("relu/", "relu6/", "hardtanh/", "clamp/", "maximum/")
JOINING = ("cat", "stack")


@dataclass(eq=False)
class Value:
    """A tensor, and all that hold the same values.

    ``kind`` is image, activation, the name of an operation, or other; ``site`` is where it can be
    quantized, ``readers`` the kinds of what reads it. ``parts`` are those of a concatenation.
    ``names`` are what its quantizer is called: by the call, or by the module that is called once.
    It is made of ``sources`` at the time ``born``, and read for the last time at ``last``.
    """

    kind: str
    site: Site | None = None
    names: tuple[str, ...] = ()
    readers: list[str] = field(default_factory=list)
    parts: list["Value"] = field(default_factory=list)
    elements: int = 0
    added: bool = False
    sources: list["Value"] = field(default_factory=list)
    born: int = 0
    last: int = 0

    def bits(self, recipe: Recipe) -> int:
        """The width of its grid; 32 where it is on none."""
        if self.kind == "activation" or self.added:
            kept = next(filter(None, map(recipe.kept, self.names)), 0)
            return kept or (recipe.sum_bits if self.added else recipe.activation_bits)
        if self.parts:
            return max(part.bits(recipe) for part in self.parts)
        return FLOAT

    @property
    def written(self) -> bool:
        """Whether an integer engine would have to write it down, and it can get a grid.

        Parts that are joined have a grid each, and a layer reads codes of one.
        """
        joined = len(self.parts) > 1 and LAYER in self.readers
        return self.site is not None and (joined or OPERATION in self.readers)

    @property
    def passing(self) -> bool:
        """Whether a kernel hands it on to its own next step, and never writes it down."""
        return set(self.readers) <= {STEP}

    @property
    def begun(self) -> int:
        """When the kernel begins that writes it down."""
        steps = [source.begun for source in self.sources if source.passing]
        return min([self.born, *steps])

    def stored_bits(self, recipe: Recipe) -> int:
        """The width at which it is written down: what layers alone read has their width."""
        if set(self.readers) <= {STEP, LAYER}:
            return self.read_bits(recipe)
        return self.bits(recipe)

    def read_bits(self, recipe: Recipe, layer: str = "") -> int:
        """The width at which the layer of this name reads it: its own input's, where it has one."""
        if not self.rounded_again(recipe):
            return self.bits(recipe)
        own = recipe.sum_bits if self.kind == "image" else recipe.activation_bits
        return recipe.kept(f"{layer}.input") or own

    def rounded_again(self, recipe: Recipe) -> bool:
        """Whether a layer that reads it has a quantizer of its input."""
        alike = replace(recipe, keep=None)
        finer = self.kind == "image" or self.bits(alike) > recipe.activation_bits
        return recipe.scope != "calls" and finer


class LayerCall(NamedTuple):
    """One call of a layer: the module, what it reads, and its multiply-adds for one image."""

    module: nn.Module
    name: str
    input: Value
    multiply_adds: int


class Flow(Listing):
    """One forward with the origin of every tensor.

    ``layers`` are the calls of those outside of attentions, ``unfollowed`` those that an attention
    calls or hands to a function, of whose tensors the origin is not known, and what reads no
    image at all (the MLP of Swin V2's distances).
    """

    def __init__(self, model: nn.Module) -> None:
        # A transformer's block that makes queries and keys itself has an MLP, too, deeper inside.
        attentions = attention_layers(model)
        closed = {
            name
            for name, _ in model.named_modules()
            if name in attentions or name.rpartition(".")[0] in attentions
        }
        super().__init__(Scope(operations=True, closed=frozenset(closed)))
        self.values: dict[Value, None] = {}
        self.layers: list[LayerCall] = []
        self.unfollowed: list[LayerCall] = []
        self._owners = owners(model)
        self._names = {module: name for name, module in model.named_modules()}
        self._clock, self._newest = 0, list[Value]()
        # The tensors themselves are kept, so that no later one has the number of an earlier one.
        self._of: dict[int, tuple[Tensor, Value, bool]] = {}
        # What an operation was given to overwrite.
        self._overwritten: dict[int, Value] = {}
        self._entered: list[tuple[nn.Module, Any]] = []

    def given(self, image: Tensor) -> None:
        self._is(image, Value("image"))

    def begin(self, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        super().begin(name, module, args)
        if opaque(module):
            # In place, it changes what it was given.
            self._entered.append((module, self._read(args[:1])))

    def end(self, module: nn.Module, args: Any, output: Any) -> None:
        name = self.running[-1][0] if self.running else ""
        super().end(module, args, output)
        if not self._entered or self._entered[-1][0] is not module:
            return
        _, sources = self._entered.pop()
        self._reading(sources)  # whatever was read inside
        if any(opaque(running) for _, running in self.running) or not _feature(output):
            return
        key = f"{FORWARD}/{self.counts.get(name, {}).get(FORWARD, 1) - 1}"
        if type(module) in QUANTIZABLE:
            self._note(sources, STEP if type(module) in CLIPPING else OPERATION)
            self._is(output, Value("activation", names=(site_name(name, key), name)))
        else:
            self._note(sources, OPERATION)
            site = Site(module, key, type(module).__name__, added=True)
            kind = site if type(module) in GATES else None
            self._is(output, Value("gate", kind, (site_name(name, key),)))

    def called(self, caller: nn.Module, key: str, func: Any, args: Any, kwargs: Any) -> Any:
        self._look_for_overwritten([args, kwargs])
        path = self.running[-1][0] if self.running else ""
        names = (site_name(path, key),)
        sources = self._read([args, kwargs])
        if func in FUNCTIONS and activation(func, args, kwargs):
            before = len(self.sites)
            result = super().called(caller, key, func, args, kwargs)
            if len(self.sites) > before:
                clips = key.startswith(CLIPS)
                self._note(sources, STEP if clips else OPERATION)
                value = Value("activation", names=names)
                self._is(result, value)
                given = args[0] if args else kwargs["input"]
                if id(given) in self._given:
                    self._is(given, value)
            else:
                self._note(sources, OTHER)
                self._follow(result, Value(OTHER))
            return result
        self._look_for_given([args, kwargs])
        result = func(*args, **kwargs)
        name = OPERATIONS[spoken(func)]
        if not _feature(result):
            self._note(sources, OTHER)
            return result
        value = Value(name, Site(caller, key, name, added=True), names)
        if name in LAYERS:
            self._note(sources, LAYER)
            read = sources[0][0] if sources else Value(OTHER)
            call = LayerCall(caller, path, read, _products(caller, result, args))
            (self.layers if sources else self.unfollowed).append(call)
        elif name.endswith("_norm"):
            step = all(source.kind in LAYERS for source, _ in sources)
            self._note(sources, STEP if step and name == "batch_norm" else OPERATION)
        else:
            self._note(sources, OPERATION)
            if name in JOINING:
                value.parts = [source for source, _ in sources]
        if any(tensor is result for tensor in (*args[:1], kwargs.get("input"))):
            # Another tensor over the same values tells which of the two the network goes on with.
            self._overwritten[id(result)] = value
            self._is(result, value)
            result = result.view_as(result)
        self._is(result, value)
        return result

    def other(self, func: Any, args: Any, kwargs: Any) -> Any:
        name = spoken(func)
        if name == "get":  # the shape alone
            return super().other(func, args, kwargs)
        self._look_for_overwritten([args, kwargs])
        inside = any(opaque(module) for _, module in self.running)
        sources = [] if inside else self._read([args, kwargs])
        result = super().other(func, args, kwargs)
        caller = self.running[-1][1] if self.running else None
        for layer, products in owned_products(self._owners, caller, func, args, kwargs).items():
            self.unfollowed.append(LayerCall(layer, self._names[layer], Value(OTHER), products))
        if sources and name in PRESERVING:
            self._follow(result, sources[0][0])
        elif sources and next(_tensors(result), None) is not None:
            self._note(sources, OTHER)
            self._follow(result, Value(OTHER))
        return result

    def ended(self, output: Any) -> None:
        super().ended(output)
        self._look_for_overwritten(output)
        self._note(self._read(output), OPERATION)

    def _is(self, tensor: Any, value: Value, *, itself: bool = True) -> None:
        if isinstance(tensor, Tensor):
            if value not in self.values:
                value.born, value.sources = self._clock, self._newest
            value.elements = value.elements or tensor.numel()
            self._of[id(tensor)] = (tensor, value, itself)
            self.values[value] = None

    def _follow(self, result: Any, value: Value) -> None:
        for tensor in _tensors(result):
            self._is(tensor, value, itself=False)

    def _read(self, arguments: Any) -> list[tuple[Value, bool]]:
        """The values among arguments, and whether each is the tensor that was made itself."""
        found = (self._of.get(id(tensor)) for tensor in _tensors(arguments))
        read = [(entry[1], entry[2]) for entry in found if entry is not None]
        if read:
            self._reading(read)
        return read

    def _reading(self, sources: Iterable[tuple[Value, bool]]) -> None:
        """What is made next is made of these."""
        self._clock += 1
        self._newest = [value for value, _ in sources]
        for value in self._newest:
            value.last = self._clock

    @staticmethod
    def _note(sources: Iterable[tuple[Value, bool]], reader: str) -> None:
        for value, itself in sources:
            # A step of the same kernel stands directly behind it.
            value.readers.append(OPERATION if reader == STEP and not itself else reader)

    def _look_for_overwritten(self, values: Any) -> None:
        for tensor in _tensors(values):
            value = self._overwritten.get(id(tensor))
            if value is not None and value.site is not None:
                value.site = replace(value.site, overwriting=True)


def list_scope(model: nn.Module, image_shape: tuple[int, int, int], recipe: Recipe) -> Calls:
    """What one forward calls, and what of it the recipe's scope adds to the paper's scheme."""
    if recipe.scope == "calls":
        return list_calls(model, image_shape)
    flow = Flow(model)
    flow.run(model, image_shape)
    calls = list_calls(model, image_shape)
    if recipe.scope == "everything":
        calls = Calls([*flow.sites], flow.counts, calls.fed, flow.scope)
        for value in flow.values:
            if value.written and value.site is not None and not value.added:
                value.added = True
                calls.sites.append(value.site)
    for call in flow.layers:
        if call.input.rounded_again(recipe):
            image = call.input.kind == "image"
            calls.inputs[call.module] = calls.inputs.get(call.module, False) or image
    return calls


class Work(NamedTuple):
    """What one image costs: multiply-adds by the widths of weight and input, and activations.

    ``layers`` holds for each layer the name, its multiply-adds, and the bits of weight and input;
    ``activation_bytes`` all that is written down between the layers, and ``peak_bytes`` the most of
    it that there is at a time.
    """

    layers: list[tuple[str, int, int, int]]
    activation_bytes: int
    peak_bytes: int

    @property
    def bit_operations(self) -> int:
        """The sum of multiply-adds x bits of the weight x bits of the input."""
        return sum(products * weight * input for _, products, weight, input in self.layers)

    @property
    def reading(self) -> int:
        """How many layers read codes."""
        return sum(input < FLOAT for *_, input in self.layers)

    @property
    def share(self) -> float:
        """The share of the multiply-adds whose input is codes."""
        total = sum(products for _, products, *_ in self.layers)
        own = sum(products for _, products, _, input in self.layers if input < FLOAT)
        return own / total if total else 0.0


def work_of(
    model: nn.Module,
    image_shape: tuple[int, int, int],
    recipe: Recipe,
    weight_bits: Mapping[str, int],
    input_bits: Mapping[str, int] | None = None,
) -> Work:
    """What a student of ``model`` costs for one image, with ``weight_bits`` by the layer's name.

    ``input_bits`` are those of the layers that have a quantizer of their own input.
    """
    flow = Flow(model)
    flow.run(model, image_shape)
    everything = recipe.scope == "everything"
    for value in flow.values:
        value.added = everything and value.written
    layers: dict[str, tuple[str, int, int, int]] = {}
    for call in (*flow.layers, *flow.unfollowed):
        bits = (input_bits or {}).get(call.name) or call.input.read_bits(recipe, call.name)
        before = layers.get(call.name, (call.name, 0, 0, 0))
        weight = weight_bits.get(call.name, FLOAT)
        layers[call.name] = (
            call.name,
            before[1] + call.multiply_adds,
            weight,
            max(bits, before[3]),
        )
    stored = [value for value in flow.values if not value.passing]
    sizes = [value.elements * value.stored_bits(recipe) for value in stored]
    return Work([*layers.values()], -(-sum(sizes) // 8), -(-_peak(stored, sizes) // 8))


def _peak(values: Sequence[Value], sizes: Sequence[int]) -> int:
    """The largest sum of sizes at a time.

    A value is there from the beginning of the kernel that writes it to the end of the last one that
    reads it: inputs and output of a kernel are there at once, and none is overwritten.
    """
    changes: Counter[int] = Counter()
    for value, size in zip(values, sizes, strict=True):
        changes[value.begun] += size
        changes[value.last + 1] -= size
    return max(itertools.accumulate(changes[time] for time in sorted(changes)), default=0)


def _products(layer: nn.Module, result: Tensor, args: Any) -> int:
    """Multiply-adds of one call: each output, or input of a transposed layer, meets a kernel."""
    weight: Any = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return 0
    places = args[0] if isinstance(layer, _ConvTransposeNd) else result
    return int(places.numel() * weight[0].numel())


def _feature(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() > 1


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, Mapping):
        for value in values.values():
            yield from _tensors(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)
