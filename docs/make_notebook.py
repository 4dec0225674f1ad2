"""Write python.ipynb: the text of python.md with the outputs of its blocks, run here and now.

    taskset -c 0 python docs/make_notebook.py    # one core: the sums of the workflow's jobs

Needs nbformat, which comes with Snakemake, and no Jupyter: the cells are run in this process.
"""

import ast
import base64
import contextlib
import io
import os
import re
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat
from nbformat import v4

HERE = Path(__file__).parent
PAGE, NOTEBOOK = HERE / "python.md", HERE / "python.ipynb"
BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.MULTILINE | re.DOTALL)


def cells() -> list[nbformat.NotebookNode]:
    """The page's text and blocks, in order, without outputs."""
    found = []
    for number, part in enumerate(BLOCK.split(PAGE.read_text("utf-8"))):
        make = v4.new_code_cell if number % 2 else v4.new_markdown_cell
        found.append(make(part.strip("\n"), id=f"cell-{number}"))
    return [cell for cell in found if cell.source]


def run(cells_: Iterable[nbformat.NotebookNode]) -> None:
    """Run the code cells one after the other in one namespace, and keep what each puts out."""
    names: dict[str, Any] = {"__name__": "__main__"}
    code = [cell for cell in cells_ if cell.cell_type == "code"]
    for number, cell in enumerate(code, 1):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            value = _value(cell.source, names)
        cell.execution_count = number
        if printed.getvalue():
            cell.outputs.append(v4.new_output("stream", name="stdout", text=printed.getvalue()))
        if value is not None:
            data = {"text/plain": repr(value)}
            if hasattr(value, "_repr_png_"):
                data["image/png"] = base64.b64encode(value._repr_png_()).decode()
            more = {"data": data, "execution_count": number}
            cell.outputs.append(v4.new_output("execute_result", **more))


def _value(source: str, names: dict[str, Any]) -> Any:
    """Run the source; the value of its last line where that is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)
    if last is None:
        return None
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def main() -> None:
    notebook = v4.new_notebook(cells=cells())
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python", "version": ".".join(map(str, sys.version_info[:3]))},
    }
    with tempfile.TemporaryDirectory() as folder:  # for the files that the page writes
        before = os.getcwd()
        os.chdir(folder)
        try:
            run(notebook.cells)
        finally:
            os.chdir(before)
    nbformat.validate(notebook)
    nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
