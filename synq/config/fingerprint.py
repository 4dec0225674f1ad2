"""Digest of the code that a stage runs, so that a change to it counts as a reason to rerun."""

import ast
import hashlib
import importlib.machinery
import importlib.util
import os
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def digest(module: str) -> str:
    """16 hexadecimal digits over ``module`` and every module of the package that it imports.

    ``module`` is a dotted name below the package, e.g. ``stages.synthesize``. The digest is of the
    syntax trees without docstrings: comments, documentation and formatting do not count.
    """
    seen: dict[str, str] = {}
    _collect(module, seen)
    text = "\n".join(f"{name} {seen[name]}" for name in sorted(seen))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def factory_digest(factory: str) -> str:
    """16 hexadecimal digits over the file of a ``package.module:function`` of the user's own.

    The module is not imported: that would run its code, and wait for torch. Empty where there is
    no factory or its file is not found; the stage that calls it says so.
    """
    file = factory_file(factory.partition(":")[0])
    if file is None:
        return ""
    try:
        text = ast.dump(_tree(file))
    except (SyntaxError, UnicodeDecodeError):
        text = file.read_bytes().hex()
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def factory_file(module: str) -> Path | None:
    """The file of a module that the user's own function is in, found from this folder."""
    top, *rest = module.split(".")
    if not top:
        return None
    # To find a submodule imports its packages; to find the first package imports nothing.
    spec = importlib.machinery.PathFinder.find_spec(top, [os.getcwd()])
    try:
        spec = spec or importlib.util.find_spec(top)
    except ValueError:  # it is loaded, and does not know from where
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.has_location and spec.origin else None
    for folder in spec.submodule_search_locations or ():
        base = Path(folder, *rest)
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def imported(tree: ast.AST) -> set[str]:
    """Names below the package that a syntax tree imports, e.g. ``{"losses", "stages.train"}``."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                a.name.removeprefix("synq.") for a in node.names if a.name.startswith("synq.")
            }
        elif isinstance(node, ast.ImportFrom) and node.module == "synq":
            names |= {alias.name for alias in node.names if path(alias.name)}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("synq."):
            base = str(node.module).removeprefix("synq.")
            below = {f"{base}.{alias.name}" for alias in node.names}
            names |= {name for name in below if path(name)} or {base}
    return names


def path(module: str) -> Path | None:
    """File of a module below the package; None where there is none."""
    base = PACKAGE.joinpath(*module.split("."))
    for candidate in (base.with_suffix(".py"), base / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


def _collect(module: str, seen: dict[str, str]) -> None:
    file = path(module)
    if module in seen or file is None:
        return
    tree = _tree(file)
    seen[module] = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
    for name in imported(tree):
        _collect(name, seen)


def _tree(file: Path) -> ast.Module:
    """The syntax tree of a file without docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[0] = ast.Expr(ast.Constant(None))
    return tree


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
