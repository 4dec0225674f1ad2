"""Names that stand twice in a section of a config file, of which YAML reads the last one alone."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

# The one in C where there is one: a job on a cluster's node reads the config again, too.
LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def repeated(paths: Iterable[str | Path]) -> str:
    """A line about the first name that is written twice; empty where none is.

    What cannot be read at all is left to whoever reads it as a config.
    """
    for path in paths:
        try:
            text = Path(path).read_text(encoding="utf-8")
            root = yaml.compose(text, Loader=LOADER)
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            continue
        for name, first, second in _twice(root, ""):
            return (
                f"{path}: {name} stands in lines {first} and {second}, and the first one is not "
                "read; write it once"
            )
    return ""


def _twice(node: yaml.Node | None, above: str) -> Iterable[tuple[str, int, int]]:
    """Name, and the two lines, of all below a node; ``above`` is the node's own name."""
    if isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _twice(value, above)
    if not isinstance(node, yaml.MappingNode):
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        name, line = f"{above}{key.value}", key.start_mark.line + 1
        if name in lines and key.value != "<<":  # several anchors may be merged
            yield name, lines[name], line
        lines[name] = line
        yield from _twice(value, f"{name}.")
