"""Where and how a stage runs: device, threads, randomness, progress, versions."""

import contextlib
import functools
import hashlib
import os
import platform
import sys
from collections.abc import Callable, Iterator
from types import FunctionType
from typing import Any

import h5py
import numpy
import torch
from torch import Tensor, nn

import synq
from synq.errors import ConfigError, reason
from synq.runtime.devices import take


def resolve_device(name: str) -> torch.device:
    """``auto`` (a GPU where there is one, else the CPU), ``cpu``, ``cuda`` (a GPU) or ``cuda:n``.

    Of several GPUs it is one that no other process has, if there is one; see ``synq.devices``.
    """
    try:
        device = torch.device("cuda" if name == "auto" else name)
    except RuntimeError:
        raise ConfigError(f"device is {name!r}; write auto, cpu, cuda or cuda:0") from None
    if device.type != "cuda":
        return device
    if not torch.cuda.is_available():
        if name == "auto":
            return torch.device("cpu")
        raise ConfigError(f"device is {name!r}, but torch sees no GPU here; write auto or cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise ConfigError(f"device is {name!r}, but torch sees {count} here; the first is cuda:0")
    devices = tuple(range(count)) if device.index is None else (device.index,)
    return torch.device("cuda", take(devices)[0])


def prepare(device: str, threads: int) -> torch.device:
    """Set the process up: threads (0: torch's choice) and repeatable kernels; give the device."""
    _without_compiler()
    return _prepare(device, threads)


def _without_compiler() -> None:
    """Let the optimizers do without torch's compiler, which nothing here compiles them with.

    Their first calls load it, only to keep it out of them, and that takes as long as torch itself,
    a third to a half of a job of seconds. A torch that does so in another way stays as it is.
    """
    for function in vars(torch.optim.Optimizer).values():
        plain = getattr(function, "__wrapped__", None)
        if isinstance(plain, FunctionType):
            vars(plain).setdefault("__dynamo_disable", plain)
    for kind in (torch.optim.Adam, torch.optim.SGD):
        step: Any = kind.step
        code = getattr(step, "__code__", None)
        if code is not None and code.co_name == "_use_grad":
            kind.step = torch.no_grad()(step.__wrapped__)  # type: ignore[method-assign]


def _prepare(device: str, threads: int) -> torch.device:
    if threads:
        torch.set_num_threads(threads)
    # cuBLAS is repeatable with this workspace alone; it must be set before CUDA starts.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    return resolve_device(device)


@contextlib.contextmanager
def prepared(device: str, threads: int) -> Iterator[torch.device]:
    """The same within a block: the process is somebody else's, and gets its own state back."""
    cudnn = torch.backends.cudnn
    before = torch.get_num_threads(), cudnn.benchmark, cudnn.deterministic
    try:
        yield _prepare(device, threads)
    finally:
        if threads:
            torch.set_num_threads(before[0])
        cudnn.benchmark, cudnn.deterministic = before[1:]


def generator_for(*key: int | str) -> torch.Generator:
    """A CPU generator whose stream depends on the key alone, e.g. ``(seed, "synthesis", 3)``.

    Stages draw on the CPU and move the numbers, so that every device starts from the same ones,
    and no job's numbers depend on how many others run.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return generator


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The context in which a network's convolutions and products run in ``precision``.

    Quantizers, losses, statistics and parameters stay in float32. So does everything where
    bfloat16 would be emulated, which takes many times as long as float32; a line says so.
    """
    half = precision == "bfloat16" and has_bfloat16(device.type)
    return torch.autocast(device.type, torch.bfloat16, enabled=half)


@functools.cache  # said once
def has_bfloat16(device_type: str) -> bool:
    """Whether the kernels for this kind of device (``cpu``, ``cuda``) compute in bfloat16."""
    if device_type == "cuda":
        found = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        mkldnn = torch.backends.mkldnn.is_available()
        found = mkldnn and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if not found:
        print("precision: float32, for lack of bfloat16 here", file=sys.stderr, flush=True)
    return found


def compiled(network: nn.Module, mode: str) -> Callable[[Tensor], Tensor]:
    """``network`` by torch.compile in one of its modes, or as it is (``off``).

    Calling it raises ConfigError where torch cannot compile.
    """
    if mode == "off":
        return network
    faster = torch.compile(network, dynamic=False, mode=mode)

    def forward(images: Tensor) -> Tensor:
        try:
            logits: Tensor = faster(images)
        except RuntimeError as error:
            if not isinstance(error, torch._dynamo.exc.TorchDynamoException):
                raise
            raise ConfigError(
                f"synthesis.compile is {mode}, but torch cannot compile the network here "
                f"({reason(error)}); install a C++ compiler (for a GPU, Triton too), or write off"
            ) from error
        return logits

    return forward


def versions() -> dict[str, str]:
    """Versions of what computes the results."""
    return {
        "synq": synq.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "h5py": h5py.__version__,
    }
