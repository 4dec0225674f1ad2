"""What the README and the guide say can be typed, and what they promise is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from running import SYNQ

from synq.config.plan import plan
from synq.models.digits import resnet20
from synq.reporting.inspection import inspect_model
from synq.stages.inspect import HEADERS, facts, rows, verdict

ROOT = Path(__file__).parents[2]
PAGES = {page: (ROOT / page).read_text("utf-8") for page in ("README.md", "docs/guide.md")}
README = "\n".join(PAGES.values())
LINKS = [
    (page, link) for page, text in PAGES.items() for link in re.findall(r"\]\(([^)#:]+)\)", text)
]
BLOCKS = re.findall(r"(?:^ {4}.*\n|^\n(?= {4}))+", README, re.MULTILINE)
LINES = [line.strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
COMMANDS = [
    part.strip()
    for line in LINES
    if re.match(r"(pip|snakemake|synq|pytest|make)\b", line)
    for part in line.partition(" #")[0].split("&&")
]
# The user's own file in the README's text, and what is no plan.
DRY = [
    command
    for command in COMMANDS
    if command.startswith("snakemake")
    and not any(word in command for word in ("mine.yaml", "--report", "--workflow-profile"))
]


def overlay():
    (block,) = (block for block in BLOCKS if "models:" in block and "mine:" in block)
    text = "\n".join(line[4:] for line in block.splitlines() if "snakemake" not in line)
    return yaml.safe_load(text)


def test_the_two_lines_that_do_everything_come_first():
    assert [line.partition(" #")[0].rstrip() for line in LINES[:2]] == [
        "pip install -e . && snakemake --cores all",
        "pip install -e '.[test]' && pytest",
    ]


@pytest.mark.parametrize("command", DRY)
def test_every_snakemake_command_has_a_plan(command, tmp_path):
    words = [*shlex.split(command)[1:], "--dry-run", "--directory", str(tmp_path), "--nolock"]
    words += ["--configfile"] if "--configfile" not in words else []
    overlays = [str(ROOT / word) for word in words if word.startswith("experiments/")]
    words = [word for word in words if not word.startswith("experiments/")]
    place = words.index("--configfile") + 1
    words[place:place] = [str(ROOT / "config.yaml"), *overlays]
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text("utf-8"), "utf-8")
    run = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), *words]
    done = subprocess.run(run, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This was a dry-run" in done.stdout + done.stderr


def test_the_overlay_for_an_own_network_is_complete():
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    own = overlay()
    own["models"]["mine"]["sha256"] = "0" * 64
    config["models"] |= own["models"]
    config["grid"] = own["grid"]
    whole = plan(config)
    assert whole.models["mine"].architecture == "resnet18"
    assert whole.settings("finetune", "mine", method="synq").batch_size == 16


def test_the_overlay_for_a_network_of_the_zoo_is_complete():
    (block,) = (block for block in BLOCKS if "cifar:" in block)
    own = yaml.safe_load("\n".join(line[4:] for line in block.splitlines()))
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8")) | own
    assert plan(config).models["cifar"].classes == 10


def test_the_overlay_for_a_network_without_batchnorm_is_complete():
    (block,) = (block for block in BLOCKS if "relative:" in block)
    own = yaml.safe_load("\n".join(line[4:] for line in block.splitlines()))
    whole = plan(yaml.safe_load((ROOT / "config.yaml").read_text("utf-8")) | own)
    assert whole.image_rule("squeeze", "natural") == "borrow"
    assert whole.lenders() == ["resnet"]


@pytest.mark.parametrize("source", ["torchvision", "timm", "python"])
def test_the_settings_of_other_sources_are_right(source):
    (block,) = (block for block in BLOCKS if f"source: {source}" in block)
    text = "\n".join(line[4:] for line in block.splitlines())
    (text,) = (part for part in text.split("\n\n") if f"source: {source}" in part)
    own = overlay()["models"]["mine"] | {"sha256": "0" * 64}
    below = {name: own[name] for name in ("sha256", "classes", "image_size", "mean", "std")}
    more = {"weights": "w.pth", **below} if source == "python" else {}
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    config["models"]["other"] = more | yaml.safe_load(text)
    assert plan(config).models["other"].source == source


def test_the_examples_in_the_comments_of_the_config_are_right():
    text = (ROOT / "config.yaml").read_text("utf-8")
    lines = [line[4:] for line in text.splitlines() if re.match(r"  # +[a-z0-9-_]+:( |$)", line)]
    examples = yaml.safe_load("\n".join(line for line in lines if "mirror:" not in line))
    examples["my-network"] = {**examples["my-resnet18"], **examples["my-network"]}
    del examples["my-network"]["architecture"]
    for example in (examples["my-resnet18"], examples["my-network"]):
        example["sha256"] = "0" * 64  # which yaml takes for a number, and nobody has
    config = yaml.safe_load(text)
    config["models"] |= examples
    models = plan(config).models
    assert {models[name].source for name in examples} == {
        "file",
        "pytorchcv",
        "torchvision",
        "timm",
        "python",
    }


def test_the_inspection_shown_is_what_the_command_prints():
    (text,) = re.findall(r"^ {4}digits-resnet20: images.*?^ {4}fits$", README, re.MULTILINE | re.S)
    shown = [line.split() for line in text.splitlines() if line.strip()]
    model = resnet20()
    found = inspect_model(model, (1, 16, 16))
    lines = [" ".join(row).split() for row in (*rows(found), *facts(found))]
    # Three lines of head, a line that says how many rows are left out, and the verdict.
    (left_out,) = [line for line in shown if line[0] == "..."]
    cells = [line for line in shown[3:-1] if line[0] != "..."]
    assert all(line in lines for line in cells)
    assert int(left_out[1]) == len(lines) - len(cells)
    assert shown[1] == list(HEADERS)
    assert shown[-1] == [verdict(found)]


def test_the_example_of_a_runtime_runs(finished):
    (block,) = (block for block in BLOCKS if "onnxruntime" in block)
    text = "\n".join(line[4:] for line in block.splitlines())
    (path,) = re.findall(r'"(results/\S+\.onnx)"', text)
    text = text.replace(path, str(finished.root / SYNQ / "student.onnx"))
    names = {}
    exec(text, names)
    assert names["classes"].shape == (8,)
    assert names["names"] == [str(number) for number in names["classes"]]
    assert len(text.splitlines()) <= 10
    assert path.endswith(SYNQ.partition("runs/")[2].replace("synq", "synq-plus") + "/student.onnx")


@pytest.mark.parametrize(("page", "link"), sorted(set(LINKS)))
def test_every_link_leads_to_a_file(page, link):
    assert ((ROOT / page).parent / link).exists()


def test_every_method_of_the_config_is_named_or_a_row_of_the_ablation():
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    ablation = yaml.safe_load((ROOT / "experiments/ablation.yaml").read_text("utf-8"))
    rows = set(ablation["ablation"]["methods"])
    for method in set(config["methods"]) - rows:
        assert f"`{method}`" in README


def test_the_table_of_the_default_is_its_grid():
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    rows = re.findall(r"^\| *(\S+) *\| *(w\da\d) *\| *(\S+) *\| *(\d+) *\|", README, re.MULTILINE)
    grid = config["grid"]
    assert rows == [
        (model, bits, method, str(len(grid["seeds"])))
        for model in grid["models"]
        for bits in grid["bits"]
        for method in grid["methods"]
    ]
