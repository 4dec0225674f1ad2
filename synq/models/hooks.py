"""Reading a network's intermediate tensors, by hooks that never outlive their block."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from torch import Tensor, nn


@contextlib.contextmanager
def recorded(
    modules: Mapping[str, nn.Module],
    *,
    inputs: bool = False,
    transform: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that each forward fills with the modules' outputs (or inputs) by name.

    The dict holds the newest forward alone; the tensors keep their graph. With ``transform`` the
    module's output is replaced by ``transform(output)``, and that is what is recorded. The hooks
    are removed when the block ends, whatever ends it.
    """
    record: dict[str, Tensor] = {}
    handles = []

    def keep(name: str) -> Callable[..., Tensor | None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if inputs:
                record[name] = args[0]
                return None
            if transform is None:
                record[name] = output
                return None
            record[name] = transform(output)
            return record[name]

        return hook

    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(keep(name)))
        yield record
    finally:
        for handle in handles:
            handle.remove()
