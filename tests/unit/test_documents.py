"""No block of code in the documents is there unseen: a test runs it, or it says that none does.

A block of commands is checked by its form here (flags, files, names), and each ``snakemake`` in it
by a plan in ``tests/workflow/test_readme.py``; a config is planned here; ``RUN`` names the tests of
the others. What nobody can run here has *not run here* and the reason in the paragraph above it.
"""

import ast
import itertools
import re
import shlex
import tomllib
from pathlib import Path

import documents
import pytest
import yaml
from documents import ROOT, Block
from snakemake.cli import get_argument_parser
from snakemake.utils import update_config

from synq.cli import COMMANDS, parser
from synq.config.reading import SECTIONS, plan
from synq.errors import ConfigError

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
README = "tests/workflow/test_readme.py"
# Page, and the block's first line or language: the test that runs it.
RUN = {
    ("README.md", "results: results/mine"): (
        f"{README}::test_the_overlay_for_an_own_network_is_complete"
    ),
    ("README.md", "import synq"): f"{README}::test_the_five_lines_of_python_run",
    ("CONTRIBUTING.md", "python"): (
        "tests/workflow/test_recipes.py::test_the_workflow_runs_with_all_that_the_recipes_add"
    ),
    ("docs/python.md", "python"): (
        "tests/workflow/test_python_page.py::test_the_cells_run_and_put_out_what_the_notebook_has"
    ),
    (
        "docs/python.md",
        "images = synq.synthesize(resnet, image_shape=(3, 224, 224), mean=mean, std=std)",
    ): "tests/unit/api/test_api.py::test_images_of_another_network_are_converted",
    ("docs/guide.md", "digits-resnet20: images of 1x16x16, 10 classes"): (
        f"{README}::test_the_inspection_shown_is_what_the_command_prints"
    ),
    ("docs/guide.md", "import json, numpy, onnxruntime"): (
        f"{README}::test_the_example_of_a_runtime_runs"
    ),
    (
        "docs/own-network.md",
        "results: results/mine # tables hold the runs of one config: give each its own folder",
    ): f"{README}::test_the_overlay_for_an_own_network_is_complete",
    (
        "docs/own-network.md",
        "source: torchvision # needs torch and torchvision of the same build",
    ): f"{README}::test_the_settings_of_other_sources_are_right",
}
# Pages whose indented blocks are drawings, and equations in plain text.
DRAWN = ("docs/architecture.md", "docs/method.md")
# Written by the reader, as the page says.
OWN_FILES = {"mine.yaml"}
# Looks like a command and is none: the first bytes of a shard.
NO_COMMANDS = {"synq sha256"}


def planned(text: str) -> bool:
    """Whether a text is a config, which ends in an error where it is a wrong one."""
    try:
        overlay = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    if not isinstance(overlay, dict) or not set(overlay) <= set(SECTIONS):
        return False
    config = yaml.safe_load((ROOT / "config.yaml").read_text("utf-8"))
    update_config(config, overlay)
    plan(config)
    return True


def check_command(command: str, overlays: set[str]) -> None:
    program, *words = shlex.split(command)
    CHECKS[program](words, overlays)


def check_synq(words: list[str], _: set[str]) -> None:
    parser().parse_args(words)  # which exits where a flag or a value is none


def check_snakemake(words: list[str], overlays: set[str]) -> None:
    args = get_argument_parser().parse_args(words)
    for path in (*(args.configfile or ()), *filter(None, [args.workflow_profile])):
        assert (ROOT / path).exists() or str(path) in overlays | OWN_FILES, path


def check_pytest(words: list[str], _: set[str]) -> None:
    markers = {
        entry.partition(":")[0] for entry in PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    }
    for flag, word in zip(["", *words], words, strict=False):
        if flag == "-m":
            assert word in markers
        elif not word.startswith("-"):
            assert (ROOT / word.partition("::")[0]).exists(), word


def check_python(words: list[str], _: set[str]) -> None:
    if words[0] == "-m":
        words, name = words[1:], words[1].replace(".", "/")
        (file,) = (
            path for path in (f"{name}.py", f"{name}/__main__.py") if (ROOT / path).is_file()
        )
    else:
        file = words[0]
    text = (ROOT / file).read_text("utf-8")
    assert not [word for word in words if word.startswith("--") and f'"{word}"' not in text]


def check_pip(words: list[str], _: set[str]) -> None:
    assert words[0] == "install"
    for flag, word in itertools.pairwise(words):
        if flag == "-e":
            extras = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)[1]
            known = PROJECT["project"]["optional-dependencies"]
            assert set((extras or "").split(",")) <= {"", *known}


def check_make(words: list[str], _: set[str]) -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    assert set(words) <= set(targets)


CHECKS = {
    "synq": check_synq,
    "snakemake": check_snakemake,
    "pytest": check_pytest,
    "python": check_python,
    "pip": check_pip,
    "make": check_make,
    "echo": lambda words, overlays: None,  # an overlay, of which the plan is made
}


def runner_of(block: Block) -> str:
    return RUN.get((block.page, block.first)) or RUN.get((block.page, block.language), "")


def check_block(block: Block) -> None:
    if runner_of(block) or block.language == "math":
        return
    if block.language == "text" or (block.page in DRAWN and not block.language):
        # A drawing, and no way round: it has no line that somebody would type.
        firsts = {line.split(" ")[0] for line in block.text.splitlines()}
        assert not firsts & set(CHECKS)
        return
    if block.commands:
        overlays = documents.written(block.commands)
        assert all(planned(text) for text in overlays.values())
        for command in block.commands:
            check_command(command, set(overlays))
        return
    if block.not_run:
        if block.language == "python":
            ast.parse(block.text)
        return
    assert planned(block.text), (
        "nobody runs this block. Name the test that does in RUN above; or say in the paragraph "
        "above it that it is not run here, and why; or, if it is a drawing, fence it as text"
    )


@pytest.mark.parametrize(
    "block", documents.everywhere(), ids=lambda block: f"{block.page}:{block.line}"
)
def test_a_block_is_run_or_checked_or_says_that_it_is_not(block: Block) -> None:
    check_block(block)


@pytest.mark.parametrize(
    "text",
    [
        "synq frobnicate --fast",
        "synq predict student.onnx cat.jpg --tops 3",
        "snakemake --cores all --configfile experiments/nothing.yaml",
        "pytest -m nothing",
        "pip install -e '.[nothing]'",
        "python -m benchmarks --nothing",
        "make nothing",
        "grid: {bits: [w9a9]}",
        "import synq",
        "what a command printed",
    ],
)
@pytest.mark.parametrize("language", ["", "python"])
def test_a_block_that_nobody_runs_is_refused(text: str, language: str) -> None:
    with pytest.raises((AssertionError, ConfigError, SystemExit)):
        check_block(Block("docs/faults.md", 1, text + "\n", language, "A new example:"))
    if text.startswith("import"):
        check_block(Block("docs/faults.md", 1, text + "\n", language, "Not run here: why."))


def test_every_test_that_is_named_is_there_and_has_its_block() -> None:
    for name in set(RUN.values()):
        path, function = name.split("::")
        tree = ast.parse((ROOT / path).read_text("utf-8"))
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    blocks = documents.everywhere()
    known = {(block.page, name) for block in blocks for name in (block.first, block.language)}
    assert set(RUN) <= known


def commands_within_lines() -> list[str]:
    """Of all code within lines, what begins as a command does: a program and a word more."""
    spans = {" ".join(span.split()) for _, span in documents.spans()} - NO_COMMANDS
    return sorted(span for span in spans if span.partition(" ")[0] in CHECKS and " " in span)


@pytest.mark.parametrize("span", commands_within_lines())
def test_a_command_within_a_line_is_one(span: str) -> None:
    for command in span.split("&&"):
        program, *words = command.split()
        if program == "synq":
            check_stage(words)
        else:
            check_command(command.strip(), set())


def check_stage(words: list[str]) -> None:
    """A command's name and flags; its files may be left out within a line."""
    stage, *flags = words
    if stage.startswith("-") or stage == "STAGE" or "..." in words:
        return
    assert stage in COMMANDS
    (stages,) = (action for action in parser()._actions if action.dest == "command")
    known = stages.choices[stage]._option_string_actions
    assert {flag for flag in flags if flag.startswith("--")} <= set(known)


@pytest.mark.parametrize(("page", "link"), sorted(set(documents.links())))
def test_every_link_leads_to_a_file_and_its_heading(page: str, link: str) -> None:
    if ":" in link:
        return  # elsewhere
    path, _, heading = link.partition("#")
    target = (ROOT / page).parent / path if path else ROOT / page
    assert target.exists()
    if heading:
        name = str(Path(target).resolve().relative_to(ROOT))
        assert heading in documents.anchors(name)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


def test_the_changelog_has_the_form_that_it_names() -> None:
    """Keep a Changelog 1.1.0: unreleased first, versions with dates, six kinds of change."""
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## (.+)$", text, re.MULTILINE)
    assert versions[0] == "[Unreleased]"
    assert all(re.fullmatch(r"\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", one) for one in versions[1:])
    kinds = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for part in re.split(r"^## .+$", text, flags=re.MULTILINE)[1:]:
        found = re.findall(r"^### (.+)$", part, re.MULTILINE)
        assert found
        assert len(found) == len(set(found))
        assert set(found) <= set(kinds)


def test_the_tests_that_the_table_of_faults_names_are_there() -> None:
    text = (ROOT / "docs/faults.md").read_text("utf-8")
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)\.\.\.`", text)
    assert named
    for file, beginning in named:
        (path,) = (ROOT / "tests").rglob(file)
        assert f"def {beginning}" in path.read_text("utf-8"), beginning


def test_every_decision_has_a_number_of_its_own_and_a_title_with_it():
    paths = sorted((ROOT / "docs/decisions").glob("*.md"))
    numbers = [path.name[:4] for path in paths]
    assert numbers == [f"{number:04d}" for number in range(1, len(paths) + 1)]
    for path, number in zip(paths, numbers, strict=True):
        assert path.read_text("utf-8").startswith(f"# {number}: ")
