"""SynQ: quantize a pretrained image classifier without any of its data.

An independent implementation of the method of Kim, Kim and Kang, "SynQ: Accurate Zero-shot
Quantization by Synthesis-aware Fine-tuning" (ICLR 2025).
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from synq.api.result import Inspection as Inspection
    from synq.api.result import Result as Result
    from synq.api.result import Sensitivity as Sensitivity
    from synq.api.run import inspect as inspect
    from synq.api.run import load as load
    from synq.api.run import quantize as quantize
    from synq.api.run import sensitivity as sensitivity
    from synq.api.run import synthesize as synthesize
    from synq.api.settings import image_sets as image_sets
    from synq.api.settings import methods as methods
    from synq.errors import UserError as UserError
    from synq.io.shards import ImageSet as ImageSet

__version__ = "0.1.0"

# Name -> the module that has it: nothing is loaded before it is asked for.
_PUBLIC = {
    "quantize": "synq.api.run",
    "synthesize": "synq.api.run",
    "inspect": "synq.api.run",
    "sensitivity": "synq.api.run",
    "load": "synq.api.run",
    "methods": "synq.api.settings",
    "image_sets": "synq.api.settings",
    "ImageSet": "synq.io.shards",
    "Result": "synq.api.result",
    "Inspection": "synq.api.result",
    "Sensitivity": "synq.api.result",
    "UserError": "synq.errors",
}
__all__ = [*_PUBLIC, "__version__"]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'synq' has no attribute {name!r}")
    # Imported here: whoever asks for the version alone pays for nothing.
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
