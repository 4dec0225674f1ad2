"""The recipes of CONTRIBUTING.md, followed to the letter: every block goes where it says.

One copy of the clone gets all of them, and one small workflow runs with all that they add.
"""

import csv
import json
import re
from pathlib import Path

import pytest
from running import ROOT, Workflow, copied, jobs
from safetensors import safe_open

BLOCK = re.compile(
    r"^```python\n# (?P<file>\S+), (?P<place>new|at the end|before|after|in place of)"
    r"(?:: (?P<line>.+))?\n(?P<code>(?:.*\n)*?)```$",
    re.MULTILINE,
)
TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
RECIPES = dict(re.findall(r"^### (.+)\n((?:(?!### ).*\n)*)", TEXT, re.MULTILINE))
OVERLAY = """
results: results/tiny
grid: {bits: [w4a4], methods: [toy], seeds: [0]}
models:
  digits-resnet20:
    source: digits
    factory: ""
    test: {dataset: stripes}
    synthesis: {classes_per_shard: 10}
image_sets: {smooth: {prior: smooth, target: labels}}
methods:
  toy:
    images: smooth
    text: what the recipes add
    calibration: {weights: symmetric}
    finetune: {logit_weight: 2.0}
"""
RUN = "results/tiny/runs/digits-resnet20/w4a4/toy/seed0"


def follow(root: Path, block: re.Match[str]) -> None:
    """Put a block into the file that it names, at the one line that begins as it says."""
    path, place, code = root / block["file"], block["place"], block["code"]
    if place == "new":
        assert not path.exists()
        path.write_text(code, "utf-8")
        return
    lines = path.read_text("utf-8").splitlines(keepends=True)
    if place == "at the end":
        lines.append(code)
    else:
        (index,) = (i for i, line in enumerate(lines) if line.strip().startswith(block["line"]))
        start, end = {"before": (0, 0), "after": (1, 1), "in place of": (0, 1)}[place]
        lines[index + start : index + end] = [code]
    path.write_text("".join(lines), "utf-8")


@pytest.mark.parametrize("title", RECIPES)
def test_a_recipe_needs_as_many_files_as_it_says(title: str) -> None:
    files = {block["file"] for block in BLOCK.finditer(RECIPES[title])}
    if files:  # a profile is no code
        (promised,) = re.findall(r": (\d) files?(?:,|$)", title)
        assert len(files) == int(promised)
    assert len(BLOCK.findall(RECIPES[title])) == RECIPES[title].count("```python")


@pytest.mark.long
def test_the_workflow_runs_with_all_that_the_recipes_add(clone: Workflow, tmp_path: Path) -> None:
    workflow = copied(clone, tmp_path / "clone", "")
    for text in RECIPES.values():
        for block in BLOCK.finditer(text):
            follow(workflow.root, block)
    ran = workflow.run(overlay=OVERLAY)
    assert ran.returncode == 0, ran.stdout
    once = ("fetch", "inspect", "evaluate_teacher", "synthesize", "finetune", "evaluate", "export")
    assert jobs(ran.stdout) == dict.fromkeys((*once, "weigh", "accuracy", "page", "all"), 1)
    metrics = json.loads(workflow.bytes(f"{RUN}/metrics.json"))
    assert metrics["epochs"][1]["logits"] > 0
    assert metrics["test_images"] == 10
    assert metrics["settings"]["finetune"]["logit_weight"] == 2.0
    with safe_open(workflow.root / RUN / "student.safetensors", "pt") as file:
        record = json.loads(file.metadata()["synq"])
    assert record["recipe"]["weights"] == "symmetric"
    assert json.loads(workflow.bytes(f"{RUN}/export.json"))["agreement"] >= 95
    assert int(workflow.bytes(f"{RUN}/bytes.txt")) == metrics["weight_bytes"]
    with open(workflow.root / "results/tiny/tables/accuracy.csv", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert row["test_images"] == "10"
