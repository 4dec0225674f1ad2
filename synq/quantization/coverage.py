"""What one forward of a network passes through, and what of it the program cannot quantize."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional

from synq.errors import ModelError
from synq.models.structure import LINEAR, attention_layers
from synq.quantization.activations import FUNCTIONS, GATES, QUANTIZABLE
from synq.quantization.attention import open_inputs
from synq.quantization.convert import WEIGHTED
from synq.quantization.trace import QUANTIZED, Trace, Visits

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


# Called with a bare parameter by a module that is no layer itself, these escape quantization.
WEIGHING = (
    *(functional.conv1d, functional.conv2d, functional.conv3d, functional.linear),
    *(functional.conv_transpose1d, functional.conv_transpose2d, functional.conv_transpose3d),
    functional.bilinear,
)


@dataclass(frozen=True)
class Part:
    """A module of the roles ``layer`` (it has a weight), ``activation`` or ``gate``.

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
    """A function that a module's forward calls where a module should stand."""

    module: str
    function: str
    instead: str


@dataclass(frozen=True)
class Anatomy:
    """All that one forward shows, in the order of execution; what it does not pass comes last."""

    parts: list[Part]
    batchnorms: list[str]
    functional_activations: list[Call]
    functional_layers: list[Call]
    never_called: list[str]

    def of(self, role: str) -> list[Part]:
        return [part for part in self.parts if part.role == role]

    @property
    def shared_activations(self) -> dict[str, int]:
        """Name -> calls of each quantized activation that one range must do for several times."""
        shared = [part for part in self.of("activation") if part.calls > 1 and not part.reason]
        return {part.name: part.calls for part in shared}


def examine(
    model: nn.Module, image_shape: tuple[int, int, int], *, counting: bool = True
) -> Anatomy:
    """Send one image of zeros through the model and tell what it passes; the model stays as is.

    Without ``counting`` no multiply-adds are known, which saves seconds.
    """
    trace = Trace(model, QUANTIZABLE, counting=counting)
    trace.run(image_shape)
    names = {module: name or "the model" for name, module in model.named_modules()}
    # The linear layers of an attention are read by its own function, not called.
    attentions = attention_layers(model).values()
    inside = {c for m in attentions for c in m.children() if type(c) in LINEAR}
    fed = {*open_inputs(model), *(m for m in attentions if isinstance(m, nn.MultiheadAttention))}
    order = [*trace.visits, *(m for m in names if m not in trace.visits)]
    called = [module for module in order if module in trace.visits]
    activation_calls, layer_calls = [], []
    for caller, function in trace.functions:
        where = names[caller] if caller else "the model"
        if function in FUNCTIONS and type(caller) not in (*QUANTIZABLE, *GATES):
            spelling, instead = FUNCTIONS[function]
            activation_calls.append(Call(where, spelling, f"nn.{instead.__name__}"))
        elif function in WEIGHING and (
            caller is None or not (_role(caller) or caller in attentions)
        ):
            layer_calls.append(Call(where, f"F.{function.__name__}", "a layer"))
    return Anatomy(
        parts=[
            _part(
                names[module],
                module,
                trace.visits.get(module, Visits()),
                inside=module in inside,
                fed=module in fed,
            )
            for module in order
            if _role(module)
        ],
        batchnorms=[
            names[module]
            for module in called
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None
        ],
        functional_activations=activation_calls,
        functional_layers=layer_calls,
        never_called=[
            names[module]
            for module in order
            if module not in (*trace.visits, *inside) and not _holds_others(module)
        ],
    )


def require_modules(model: nn.Module, image_shape: tuple[int, int, int]) -> None:
    """ModelError where a forward calls an activation as a function, or passes none at all."""
    refuse(examine(model, image_shape, counting=False))


def refuse(anatomy: Anatomy) -> None:
    """ModelError where the forward calls an activation as a function, or passes none at all."""
    calls = anatomy.functional_activations
    if calls:
        more = f" (and {len(calls) - 1} more like it)" if len(calls) > 1 else ""
        raise ModelError(
            f"{calls[0].module} calls {calls[0].function} in its forward, which cannot be "
            f"quantized; make it an {calls[0].instead} module{more}"
        )
    if all(part.reason for part in anatomy.of("activation")):
        kinds = ", ".join(activation.__name__ for activation in QUANTIZABLE)
        raise ModelError(f"no forward of the model passes an activation module ({kinds})")


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

    Of an attention they are not: torch may compute it in one kernel, which its counter leaves out.
    """
    if type(module) not in (*CONVOLUTIONS, *TRANSPOSED, nn.Linear):
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
    """What a module is to quantization: a layer, an activation, a gate; empty for all else."""
    if _weight(module) is not None:
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
