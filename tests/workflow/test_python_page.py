"""docs/python.md runs as one program, and docs/python.ipynb is that page with its outputs."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

DOCS = Path(__file__).parents[2] / "docs"
NOTEBOOK = nbformat.read(DOCS / "python.ipynb", 4)
# The page's own budget takes a minute.
SMALL = {"images_per_class": 4, "iterations": 2, "epochs": 1, "passes": 1}


@pytest.fixture(scope="module")
def maker():
    spec = importlib.util.spec_from_file_location("make_notebook", DOCS / "make_notebook.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def code(cells):
    return [cell for cell in cells if cell.cell_type == "code"]


def test_the_notebook_is_the_page_with_outputs(maker):
    wanted = [(cell.cell_type, cell.source) for cell in maker.cells()]
    assert [(cell.cell_type, cell.source) for cell in NOTEBOOK.cells] == wanted
    nbformat.validate(NOTEBOOK)
    assert [cell.execution_count for cell in code(NOTEBOOK.cells)] == [
        *range(1, len(code(NOTEBOOK.cells)) + 1)
    ]
    assert not [cell for cell in code(NOTEBOOK.cells)[1:] if not cell.outputs]


def test_every_link_of_the_page_leads_to_a_file():
    links = re.findall(r"\]\(([^)#:]+)\)", (DOCS / "python.md").read_text("utf-8"))
    assert links
    assert not [link for link in links if not (DOCS / link).exists()]


def test_the_cells_run_and_put_out_what_the_notebook_has(maker, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cells = maker.cells()
    for cell in code(cells):
        for name, value in SMALL.items():
            cell.source = re.sub(rf'("{name}": )\d+', rf"\g<1>{value}", cell.source)
    maker.run(cells)
    for cell, kept in zip(code(cells), code(NOTEBOOK.cells), strict=True):
        # The same lines, with other numbers; what is remarked and warned of depends on these.
        found, wanted = (
            [
                re.sub(
                    r"[\d.,]+", "0", re.sub(r"(remark|warning): .*\n", "", output.get("text", ""))
                )
                for output in own.outputs
            ]
            for own in (cell, kept)
        )
        assert found == wanted, cell.source
    assert {path.name for path in tmp_path.iterdir()} == {
        "student.safetensors",
        "student.packed.safetensors",
        "student.onnx",
    }
