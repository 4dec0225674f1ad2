"""Digest of the code that a stage runs, so that a change to it counts as a reason to rerun."""

import ast
import functools
import hashlib
import importlib.machinery
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TypeGuard

PACKAGE = Path(__file__).parents[1]

# Modules, and folders of them, that change no number of the stages that import them. A stage whose
# result they are names them in PRODUCTS.
UNCOUNTED = {
    "errors": "what a refusal says",
    "config": "settings count by value, in recorded.py",
    "runtime.devices": "which of several equal GPUs a process takes",
    "runtime.progress": "bars and lines in a log",
    "io.disk": "how a full disk is survived",
    "io.download": "every file is checked by its hash",
    "quantization.coverage": "refuses networks, and alters none",
    "quantization.trace": "what coverage looks with",
    "reporting.inspection": "tells of networks, and alters none",
}

# What else is in a stage's result: modules, and files by their name.
PRODUCTS = {
    "inspect": ("quantization.coverage", "quantization.trace", "reporting.inspection"),
    "sensitivity": ("quantization.coverage", "quantization.trace"),
    "tables": (
        *("config.published", "config/published.csv"),
        *("reporting/page.css", "reporting/sort.js", "reporting/table.html"),
    ),
    "page": tuple(
        f"reporting/{name}"
        for name in ("figures.mplstyle", "page.css", "page.html", "page.js", "sort.js")
    ),
}


def stage_digest(stage: str) -> str:
    """Digest of a stage's code, e.g. of ``synthesize``, and of what else its result is made of."""
    return digest(f"stages.{stage}", *PRODUCTS.get(stage, ()))


def digest(*roots: str) -> str:
    """16 hexadecimal digits over ``roots`` and every module of the package that they import.

    Roots are dotted names below the package, e.g. ``stages.synthesize``, or names of files with
    data. Of modules the digest is of the syntax trees without docstrings and the texts of errors:
    comments, documentation, formatting and refusals do not count, nor do imports of UNCOUNTED.
    """
    seen: dict[str, str] = {}
    for root in roots:
        if "/" in root:
            seen[root] = hashlib.sha256((PACKAGE / root).read_bytes()).hexdigest()
        else:
            _collect(root, seen)
    text = "\n".join(f"{name} {seen[name]}" for name in sorted(seen))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def counted(module: str) -> bool:
    """Whether a module that a stage imports changes its numbers."""
    return not any(module == name or module.startswith(f"{name}.") for name in UNCOUNTED)


def factory_digest(factory: str) -> str:
    """16 hexadecimal digits over the file of a ``package.module:function`` of the user's own.

    And over those that it imports, of its own package or of this folder. No module is imported:
    that would run its code, and wait for torch. Empty where there is no factory or its file is not
    found; the stage that calls it says so.
    """
    first = factory.partition(":")[0]
    seen: dict[str, str] = {}
    waiting = [first]
    while waiting:
        module = waiting.pop()
        file = None if module in seen else factory_file(module)
        if file is None:
            continue
        try:
            tree = _tree(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            seen[module] = file.read_bytes().hex()
            continue
        seen[module] = ast.dump(tree)
        package = file.name == "__init__.py"
        # A library is what its version says.
        near = not {"site-packages", "dist-packages"} & {*file.parts}
        top = module.partition(".")[0] if near else ""
        named = _named(tree, module, package=package)
        waiting += [name for name in named if _own(name, top)]
    if first not in seen:
        return ""
    text = "\n".join(seen[module] for module in sorted(seen))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _named(tree: ast.AST, module: str, *, package: bool) -> set[str]:
    """The modules that ``module``, a package's own or not, may import; of some there is no file."""
    names: set[str] = set()
    for node in _statements(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: None if package else -1]
            above = above[: len(above) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return names - {""}


def _own(module: str, package: str) -> bool:
    """Whether it is of this package or of this folder, and so the user's own."""
    top = module.partition(".")[0]
    if top in ("", PACKAGE.name):
        return False
    here = importlib.machinery.PathFinder.find_spec(top, [os.getcwd()])
    return here is not None or top == package


def file_digest(path: str) -> str:
    """16 hexadecimal digits over a file's content; empty where it cannot be read."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16]
    except OSError:
        return ""


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
    for node in _statements(tree):
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
    seen[module], imports = _read(file.read_text(encoding="utf-8"))
    for name in filter(counted, imports):
        _collect(name, seen)


@functools.cache
def _read(text: str) -> tuple[str, frozenset[str]]:
    """The SHA-256 of a module's tree, and what it imports."""
    tree = _tree(text)
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), frozenset(imported(tree))


def _tree(text: str) -> ast.Module:
    """The syntax tree of a module without docstrings and without the texts of raised errors."""
    tree = ast.parse(text)
    for node in _statements(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and _is_docstring(body[0]):
            body[0] = ast.Expr(ast.Constant(None))
        if isinstance(node, ast.Raise) and _is_error(node.exc):
            node.exc.args, node.exc.keywords = [], []
    return tree


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All statements below a node, itself included: a tenth of the nodes that ``ast.walk`` gives.

    Handlers of exceptions and cases of a match are among them, for they have statements.
    """
    waiting = [tree]
    while waiting:
        yield (node := waiting.pop())
        for name in ("body", "handlers", "orelse", "finalbody", "cases"):
            waiting += getattr(node, name, ())


def _is_error(node: ast.expr | None) -> TypeGuard[ast.Call]:
    """A call of a class that is named as an error, the text of which changes no number."""
    name = getattr(node.func, "id", "") if isinstance(node, ast.Call) else ""
    return name.endswith("Error")


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
