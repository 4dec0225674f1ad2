"""What one forward of a network passes through, and what of it the program cannot quantize."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from synq.errors import ModelError
from synq.models.structure import LINEAR, attention_layers, statistical
from synq.quantization.activations import GATES, QUANTIZABLE
from synq.quantization.attention import open_inputs
from synq.quantization.convert import WEIGHTED
from synq.quantization.sites import Site, list_calls, site_name
from synq.quantization.trace import QUANTIZED, Trace, Visits

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


# Called with a bare weight by a module that is no layer itself, these escape quantization, and so
# do the trace's products.
WEIGHING = (
    *(functional.conv1d, functional.conv2d, functional.conv3d, functional.linear),
    *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
    functional.bilinear,
)


# Gates where they are called as functions, by their names.
GATE_FUNCTIONS = ("sigmoid", "hardsigmoid", "softmax")


@dataclass(frozen=True)
class Part:
    """A module of the roles ``layer`` (it has a weight), ``activation`` or ``gate``, or a call.

    A call ``module/function/index`` is an activation, and so are the further calls of a module.
    ``reason`` says why it stays in full precision, and is empty where it is quantized. Shapes are
    of one image, without the batch axis. ``multiply_adds`` counts all ``calls``, and is None where
    it is not known. ``input`` is ``quantized``, or what made it a full-precision tensor.
    """

    name: str
    role: str
    kind: str
    weight: list[int] | None
    output: list[int] | None
    multiply_adds: int | None
    calls: int
    input: str
    reason: str


@dataclass(frozen=True)
class Call:
    """A function that a module's forward calls where a module could stand."""

    module: str
    function: str


@dataclass(frozen=True)
class Anatomy:
    """All that one forward shows, in the order of execution; what it does not pass comes last."""

    parts: list[Part]
    batchnorms: list[str]
    functional_activations: list[Call]
    functional_layers: list[Call]
    functional_gates: list[Call]
    other_norms: list[str]
    never_called: list[str]

    def of(self, role: str) -> list[Part]:
        return [part for part in self.parts if part.role == role]

    @property
    def repeated_activations(self) -> dict[str, int]:
        """Name -> calls of each activation module with a range for every call."""
        repeated = [part for part in self.of("activation") if part.calls > 1 and not part.reason]
        return {part.name: part.calls for part in repeated}


def examine(
    model: nn.Module, image_shape: tuple[int, int, int], *, counting: bool = True
) -> Anatomy:
    """Send one image of zeros through the model and tell what it passes; the model stays as is.

    Without ``counting`` no multiply-adds are known, which saves seconds.
    """
    calls = list_calls(model, image_shape)
    trace = Trace(model, QUANTIZABLE, calls, counting=counting)
    trace.run(image_shape)
    names = {module: name or "the model" for name, module in model.named_modules()}
    paths = {module: name for name, module in model.named_modules()}
    calling = {site.module for site in calls.sites}

    def role(module: nn.Module) -> str:
        # A kind of activation that is not known is quantized by the function that it calls.
        return "" if module in calling and type(module) not in QUANTIZABLE else _role(module)

    # The linear layers of an attention are read by its own function, not called.
    attentions = attention_layers(model).values()
    inside = {c for m in attentions for c in m.children() if type(c) in LINEAR}
    fed = {*open_inputs(model), *(m for m in attentions if isinstance(m, nn.MultiheadAttention))}
    order = [*trace.visits, *(m for m in names if m not in trace.visits)]
    called = [module for module in order if module in trace.visits]

    def loose(called: Iterable[tuple[nn.Module | None, Any]]) -> list[tuple[str, Any]]:
        """What no layer, activation, gate or attention calls on its own account."""
        return [
            (names[caller] if caller is not None else "the model", function)
            for caller, function in called
            if caller is None or not (role(caller) or caller in attentions)
        ]

    functions = loose(trace.functions)
    layer_calls = [
        Call(name, f"F.{function.__name__}") for name, function in functions if function in WEIGHING
    ]
    layer_calls += [
        Call(name, f"{function} with a weight") for name, function in loose(trace.products)
    ]
    gate_calls = [
        Call(name, function.__name__)
        for name, function in functions
        if getattr(function, "__name__", "") in GATE_FUNCTIONS
    ]
    normalising = {*statistical(model).values()}
    parts = []
    for module in order:
        visits = trace.visits.get(module, Visits())
        if isinstance(module, Site):
            parts.append(_call(site_name(paths[module.module], module.key), module, visits))
        elif role(module):
            within, open_input = module in inside, module in fed
            part = _part(names[module], module, visits, inside=within, fed=open_input)
            if module in trace.attended:
                part = replace(part, multiply_adds=trace.attended[module], calls=max(part.calls, 1))
            parts.append(part)
    return Anatomy(
        parts=parts,
        batchnorms=[names[module] for module in called if module in normalising],
        functional_activations=[
            Call(names[site.module], site.function)
            for site in calls.sites
            if type(site.module) not in QUANTIZABLE
        ],
        functional_layers=layer_calls,
        functional_gates=list(dict.fromkeys(gate_calls)),
        other_norms=[
            f"{names[module]} ({type(module).__name__})"
            for module in called
            if isinstance(module, NORMS) and module not in normalising
        ],
        never_called=[
            names[module]
            for module in names
            if module not in (*trace.visits, *inside) and not _holds_others(module)
        ],
    )


def quantized_weights(model: nn.Module, anatomy: Anatomy) -> dict[int, Tensor]:
    """Those of the layers that are quantized, each once, though several may have it in common."""
    modules = dict(model.named_modules())
    layers = [modules.get(part.name, model) for part in anatomy.of("layer") if not part.reason]
    return {id(weight): weight for weight in map(_weight, layers) if weight is not None}


def require_activations(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """ModelError where a forward passes no activation."""
    refuse(examine(model, image_shape, counting=False))


def refuse(anatomy: Anatomy) -> None:
    """ModelError where the forward passes no activation."""
    if all(part.reason for part in anatomy.of("activation")):
        kinds = ", ".join(activation.__name__ for activation in QUANTIZABLE)
        raise ModelError(
            f"no forward of the model passes an activation ({kinds}, or their functions; one that "
            "is written out, as x * sigmoid(x), is none: call nn.SiLU)"
        )


def _call(name: str, site: Site, visits: Visits) -> Part:
    outputs = [visit.output for visit in visits.calls if visit.output]
    shape = outputs[0][1:] if outputs else None
    return Part(name, "activation", site.function, None, shape, None, 1, visits.origin, "")


def _part(name: str, module: nn.Module, visits: Visits, *, inside: bool, fed: bool) -> Part:
    """``inside`` an attention no layer is called; one that is ``fed`` quantizes its own input."""
    weight = _weight(module)
    outputs = [visit.output for visit in visits.calls if visit.output]
    return Part(
        name,
        _role(module),
        type(module).__name__,
        None if weight is None else list(weight.shape),
        outputs[0][1:] if outputs else None,
        _multiply_adds(module, visits),
        len(visits.calls),
        QUANTIZED if fed else visits.origin,
        _reason(module, called=inside or bool(visits.calls)),
    )


def _multiply_adds(module: nn.Module, visits: Visits) -> int | None:
    """Those of all calls, by torch's counter; None where they are not counted or not known.

    Of nn.MultiheadAttention they are not: torch may compute it in one kernel, which its counter
    leaves out. The trace counts them by the shapes of what it is given.
    """
    if not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
        return None
    counts = [visit.multiply_adds for visit in visits.calls]
    return None if None in counts else sum(filter(None, counts))


def _weight(module: nn.Module) -> Tensor | None:
    """The module's own parameter of two or more axes, if it has one and is no norm."""
    if isinstance(module, NORMS):
        return None
    own = [parameter for parameter in module.parameters(recurse=False) if parameter.dim() > 1]
    return own[0] if own else None


def _role(module: nn.Module) -> str:
    """What a module is to quantization: a layer, an activation, a gate; empty for all else.

    One of a kind that is not known is a layer if it has a weight and no parts: what holds others
    may have a table of positions, and what it does with a weight is told by its calls.
    """
    known = isinstance(module, (*WEIGHTED, nn.MultiheadAttention, *CONVOLUTIONS, *TRANSPOSED))
    if _weight(module) is not None and (known or not any(True for _ in module.children())):
        return "layer"
    if type(module) in GATES:
        return "gate"
    of_torch = type(module).__module__ == nn.ReLU.__module__
    return "activation" if isinstance(module, QUANTIZABLE) or of_torch else ""


def _reason(module: nn.Module, *, called: bool) -> str:
    """Why a module stays in full precision; empty where it does not."""
    if not called:
        return "never called"
    known = [*WEIGHTED, *QUANTIZABLE, nn.MultiheadAttention]
    if type(module) in known:
        return ""
    if type(module) in GATES:
        return "a gate"
    base = next((base for base in known if isinstance(module, base)), None)
    return f"a subclass of {base.__name__}" if base else "type not supported"


def _holds_others(module: nn.Module) -> bool:
    """Whether a module is there for its children, which may be called without it."""
    return isinstance(module, CONTAINERS) or any(True for _ in module.children())
