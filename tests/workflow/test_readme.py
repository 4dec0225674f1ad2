"""What the documents say can be typed, and what they promise is there.

``tests/unit/test_documents.py`` looks at the form of every block; here commands have a plan, and
examples run.
"""

import re
import subprocess
import sys
from collections import Counter

import documents
import pytest
import yaml
from documents import ROOT
from own_network import FEW, INPUT, Own
from running import ENVIRONMENT, SYNQ

import synq
from synq.config.reading import plan
from synq.models.digits import resnet20
from synq.reporting.inspection import inspect_model
from synq.stages.inspect import HEADERS, facts, rows, verdict

TEXTS = {
    page: (ROOT / page).read_text("utf-8")
    for page in documents.PAGES
    if page == "README.md" or page.startswith("docs/")
}
# What is no plan: the report of a finished run, and a plugin that is not installed everywhere.
NO_PLAN = ("--report", "--workflow-profile")


def dry():
    """The ``snakemake`` commands of all documents, with the overlays that their blocks write.

    Those that differ in the files alone that they ask for are one, which asks for all of them.
    """
    found = {}
    for block in documents.everywhere():
        overlays = documents.written(block.commands)
        for command in block.commands:
            if command.startswith("snakemake") and not any(word in command for word in NO_PLAN):
                settings, _, targets = command.partition(" -- ")
                key = settings, bool(targets), *sorted(overlays.items())
                found.setdefault(key, (overlays, []))[1].append(targets)
    return [
        (f"{settings} -- {' '.join(targets)}" if asked else settings, overlays)
        for (settings, asked, *_), (overlays, targets) in found.items()
    ]


def block(page, word):
    """The one block of a page that has this word."""
    (found,) = (one for one in documents.blocks(page) if word in one.text)
    return found.text


def mine(page):
    """The overlay for a network of one's own, as it would be with the hash of a file."""
    overlay = yaml.safe_load(block(page, "mine:"))
    overlay["models"]["mine"]["sha256"] = "0" * 64
    return overlay


def config():
    return yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))


def test_the_two_lines_that_do_everything_come_first():
    commands = documents.blocks("README.md")[0].commands
    assert commands == [
        "pip install -e .",
        "snakemake --cores all",
        "pip install -e '.[test]'",
        "pytest",
    ]


@pytest.mark.parametrize(("command", "overlays"), dry(), ids=lambda part: str(part)[:100])
def test_every_snakemake_command_has_a_plan(command, overlays, tmp_path):
    own = mine("docs/own-network.md")
    own["models"]["mine"]["synthesis"] = {"classes_per_shard": 500}  # a plan of a minute otherwise
    overlays = {"mine.yaml": yaml.safe_dump(own), **overlays}
    for name, text in overlays.items():
        (tmp_path / name).write_text(text, "utf-8")
    # bash knows {a,b} and quotes, as the reader's shell does.
    expanded = ["bash", "-c", f"printf '%s\\0' {command.removeprefix('snakemake')}"]
    done = subprocess.run(expanded, capture_output=True, text=True, check=True)
    words = done.stdout.removesuffix("\0").split("\0")
    configs = [ROOT / "config.yaml"]
    if "--configfile" in words:
        place = words.index("--configfile")
        files = words[place + 1 :]
        files = files[: files.index("--")] if "--" in files else files
        words[place : place + 1 + len(files)] = []
        configs += [
            (ROOT if file.startswith("experiments/") else tmp_path) / file for file in files
        ]
    (tmp_path / "config.yaml").write_text((ROOT / "config.yaml").read_text("utf-8"), "utf-8")
    run = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "Snakefile"), "--configfile"]
    run += [*map(str, configs), "--dry-run", "--directory", str(tmp_path), "--nolock", *words]
    done = subprocess.run(
        run,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "This was a dry-run" in done.stdout + done.stderr


@pytest.mark.parametrize("page", ["README.md", "docs/own-network.md"])
def test_the_overlay_for_an_own_network_is_complete(page):
    overlay, whole = mine(page), config()
    whole["models"] |= overlay["models"]
    whole["grid"] = overlay["grid"]
    assert plan(whole).models["mine"].architecture == "resnet18"


def test_the_overlay_for_a_network_of_the_zoo_is_complete():
    whole = config() | yaml.safe_load(block("docs/own-network.md", "cifar:"))
    assert plan(whole).models["cifar"].classes == 10


def test_the_overlay_for_a_network_without_batchnorm_is_complete():
    whole = plan(config() | yaml.safe_load(block("docs/guide.md", "relative:")))
    assert whole.image_rule("squeeze", "natural") == "borrow"
    assert whole.lenders() == ["resnet"]


@pytest.mark.parametrize("source", ["torchvision", "timm", "python"])
def test_the_settings_of_other_sources_are_right(source):
    parts = block("docs/own-network.md", f"source: {source}").split("\n\n")
    (text,) = (part for part in parts if f"source: {source}" in part)
    own = mine("docs/own-network.md")["models"]["mine"]
    below = {name: own[name] for name in ("sha256", "classes", "image_size", "mean", "std")}
    more = {"weights": "w.pth", **below} if source == "python" else {}
    whole = config()
    whole["models"]["other"] = more | yaml.safe_load(text)
    assert plan(whole).models["other"].source == source


def test_the_examples_in_the_comments_of_the_config_are_right():
    text = (ROOT / "config.yaml").read_text("utf-8")
    lines = [line[4:] for line in text.splitlines() if re.match(r"  # +[a-z0-9-_]+:( |$)", line)]
    examples = yaml.safe_load("\n".join(line for line in lines if "mirror:" not in line))
    examples["my-network"] = {**examples["my-resnet18"], **examples["my-network"]}
    del examples["my-network"]["architecture"]
    for example in (examples["my-resnet18"], examples["my-network"]):
        example["sha256"] = "0" * 64  # which yaml takes for a number, and nobody has
    whole = yaml.safe_load(text)
    whole["models"] |= examples
    models = plan(whole).models
    assert {models[name].source for name in examples} == {
        "file",
        "pytorchcv",
        "torchvision",
        "timm",
        "python",
    }


def test_the_inspection_shown_is_what_the_command_prints():
    text = block("docs/guide.md", "digits-resnet20: images")
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
    text = block("docs/guide.md", "onnxruntime.InferenceSession")
    (path,) = re.findall(r'"(results/\S+\.onnx)"', text)
    text = text.replace(path, str(finished.root / SYNQ / "student.onnx"))
    names = {}
    exec(text, names)
    assert names["classes"].shape == (8,)
    assert names["names"] == [str(number) for number in names["classes"]]
    assert len(text.splitlines()) <= 12  # "a dozen lines of Python"
    assert path.endswith(SYNQ.partition("runs/")[2].replace("synq", "synq-plus") + "/student.onnx")


def test_the_five_lines_of_python_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = block("README.md", "import synq")
    assert len(text.splitlines()) <= 5
    # The reader's network is a small one here, and the budget, by default hours, that of seconds.
    assert "image_shape=(3, 32, 32)" in text
    text = text.replace("(3, 32, 32)", str(INPUT["image_shape"]))
    whole = synq.quantize
    monkeypatch.setattr(
        synq, "quantize", lambda *args, **more: whole(*args, **more, **FEW), raising=False
    )
    exec(text, {"network": Own(), "mean": INPUT["mean"], "std": INPUT["std"]})
    assert {path.name for path in tmp_path.iterdir()} == {"student.safetensors", "student.onnx"}


def test_every_method_of_the_config_is_named_or_a_row_of_the_ablation():
    ablation = yaml.safe_load((ROOT / "experiments/ablation.yaml").read_text("utf-8"))
    rows = set(ablation["ablation"]["methods"])
    for method in set(config()["methods"]) - rows:
        assert f"`{method}`" in "".join(TEXTS.values())


def test_the_table_of_the_default_is_its_grid():
    text = TEXTS["docs/quickstart.md"]
    rows = re.findall(r"^\| *(\S+) *\| *(w\da\d) *\| *(\S+) *\| *(\d+) *\|", text, re.MULTILINE)
    runs = plan(config()).runs()
    seeds = Counter((run["model"], run["bits"], run["method"]) for run in runs)
    assert rows == [(*names, str(count)) for names, count in seeds.items()]
