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
    apart: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """Yield a dict that each forward fills with the modules' outputs (or inputs) by name.

    The dict holds the newest forward alone; the tensors keep their graph. With ``transform`` the
    module's output is replaced by ``transform(output)``, and that is what is recorded. With
    ``apart`` the network goes on with a copy: an activation or a sum that works in place alters
    what it is given, and the record would hold that. The hooks are removed when the block ends,
    whatever ends it.
    """
    record: dict[str, Tensor] = {}
    handles = []

    def keep(name: str) -> Callable[..., Tensor | None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if inputs:
                record[name] = args[0]
                return None
            record[name] = output if transform is None else transform(output)
            if apart:
                return record[name].clone()
            return None if transform is None else record[name]

        return hook

    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(keep(name)))
        yield record
    finally:
        for handle in handles:
            handle.remove()
