"""The digest of a stage's code: what counts as a change and what does not."""

import re
import shutil

import pytest

from synq.config import fingerprint as source


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A copy of the package, which the digests are of."""
    copy = tmp_path / "synq"
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(source.PACKAGE, copy, ignore=ignored)
    monkeypatch.setattr(source, "PACKAGE", copy)
    return copy


def edited(file, old, new):
    text = file.read_text("utf-8")
    assert old in text
    file.write_text(text.replace(old, new, 1), "utf-8")


def test_the_digest_is_16_hexadecimal_digits_and_repeatable():
    digest = source.digest("stages.synthesize")
    assert re.fullmatch("[0-9a-f]{16}", digest)
    assert source.digest("stages.synthesize") == digest


def test_stages_have_different_digests():
    assert source.digest("stages.synthesize") != source.digest("stages.finetune")


@pytest.mark.parametrize(
    "module",
    [
        "stages/synthesize.py",
        "synthesis/synthesize.py",  # which it imports
        "data/augment.py",  # which that imports
    ],
)
def test_code_that_the_stage_reaches_changes_the_digest(package, module):
    before = source.digest("stages.synthesize")
    with open(package / module, "a", encoding="utf-8") as file:
        file.write("\nADDED = 1\n")
    assert source.digest("stages.synthesize") != before


def test_a_changed_constant_inside_a_function_changes_the_digest(package):
    before = source.digest("stages.synthesize")
    edited(package / "synthesis/canvas.py", '["lr"] * 0.1', '["lr"] * 0.2')
    assert source.digest("stages.synthesize") != before


@pytest.mark.parametrize(
    "module",
    ["finetuning/training.py", "data/datasets.py", "stages/evaluate.py", "cli.py", "errors.py"],
)
def test_code_that_the_stage_does_not_reach_leaves_the_digest(package, module):
    before = source.digest("stages.synthesize")
    with open(package / module, "a", encoding="utf-8") as file:
        file.write("\nADDED = 1\n")
    assert source.digest("stages.synthesize") == before


@pytest.mark.parametrize(
    "where", ["stages/synthesize.py", "synthesis/synthesize.py", "models/build.py"]
)
def test_comments_docstrings_and_formatting_leave_the_digest(package, where):
    before = source.digest("stages.synthesize")
    file = package / where
    edited(file, '"""', '"""Rewritten. ')
    edited(file, "\n\n\n", "\n\n# A comment.\n\n\n\n")
    assert source.digest("stages.synthesize") == before


def test_a_docstring_of_a_function_or_class_leaves_the_digest(package):
    before = source.digest("stages.synthesize")
    edited(package / "synthesis/batchnorm.py", '"""A copy of a teacher that', '"""Rewritten')
    edited(package / "synthesis/synthesize.py", '"""Adam on the pixels of', '"""Rewritten')
    assert source.digest("stages.synthesize") == before


def test_a_text_that_is_no_docstring_changes_the_digest(package):
    before = source.digest("stages.synthesize")
    edited(package / "synthesis/synthesize.py", '"none"', '"nothing"')
    assert source.digest("stages.synthesize") != before


def test_a_new_module_counts_once_it_is_imported(package):
    (package / "extra.py").write_text("VALUE = 1\n", "utf-8")
    before = source.stage_digest("tables")
    with open(package / "reporting/tables.py", "a", encoding="utf-8") as file:
        file.write("\n\ndef late():\n    from synq import extra\n\n    return extra\n")
    imported = source.stage_digest("tables")
    (package / "extra.py").write_text("VALUE = 2\n", "utf-8")
    assert len({before, imported, source.stage_digest("tables")}) == 3


def test_modules_that_import_each_other_have_a_digest(package):
    (package / "one.py").write_text("import synq.two\n", "utf-8")
    (package / "two.py").write_text("from synq.one import x\n", "utf-8")
    assert source.digest("one") == source.digest("one") != source.digest("two", "errors")


def test_the_text_of_a_raised_error_leaves_the_digest_and_its_condition_does_not(package):
    before = source.digest("stages.synthesize")
    edited(package / "synthesis/synthesize.py", "is not finite", "is infinite")
    assert source.digest("stages.synthesize") == before
    edited(package / "models/teacher.py", "0 <= number", "1 <= number")
    assert source.digest("stages.synthesize") != before


def test_data_counts_by_its_bytes(package):
    before = source.stage_digest("tables")
    edited(package / "config/published.csv", "93.89", "93.88")
    assert source.stage_digest("tables") != before


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A package of the user's, in the folder of the job, that says when it is imported."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ownpackage").mkdir()
    (tmp_path / "ownpackage" / "__init__.py").write_text("raise SystemExit('imported')\n")
    file = tmp_path / "ownpackage" / "models.py"
    file.write_text("def build():\n    return 1\n")
    return file


def test_the_file_of_a_factory_counts_without_being_imported(own):
    before = source.factory_digest("ownpackage.models:build")
    assert re.fullmatch("[0-9a-f]{16}", before)
    edited(own, "def build", "# A comment.\n\ndef build")
    assert source.factory_digest("ownpackage.models:build") == before
    edited(own, "return 1", "return 2")
    assert source.factory_digest("ownpackage.models:build") != before


@pytest.mark.parametrize(
    ("line", "place"),
    [
        ("from blocks import D", "blocks.py"),
        ("import blocks", "blocks.py"),
        ("from ownpackage.parts import blocks", "ownpackage/parts/blocks.py"),
        ("from .blocks import D", "ownpackage/blocks.py"),
        ("from . import blocks", "ownpackage/blocks.py"),
        ("from .parts.blocks import D", "ownpackage/parts/blocks.py"),
        ("def late():\n    from beside.blocks import D", "beside/blocks.py"),
        ("import middle", "blocks.py"),
    ],
)
def test_what_the_file_of_a_factory_imports_counts_too(own, line, place):
    root = own.parent.parent
    (root / "middle.py").write_text("import blocks\nimport middle\nimport torch\n")
    file = root / place
    file.parent.mkdir(exist_ok=True)
    file.write_text("D = 1\n")
    own.write_text(f"{line}\n{own.read_text()}")
    before = source.factory_digest("ownpackage.models:build")
    edited(file, "D = 1", "D = 1  # a comment")
    assert source.factory_digest("ownpackage.models:build") == before
    edited(file, "D = 1", "D = 2")
    assert source.factory_digest("ownpackage.models:build") != before


def test_what_a_package_imports_of_itself_counts_from_its_own_files(own):
    package = own.parent
    (package / "deep").mkdir()
    (package / "deep" / "__init__.py").write_text("from .net import build\n")
    (package / "deep" / "net.py").write_text("def build():\n    return 1\n")
    before = source.factory_digest("ownpackage.deep:build")
    edited(package / "deep" / "net.py", "return 1", "return 2")
    assert source.factory_digest("ownpackage.deep:build") != before


def test_a_library_is_not_read_through(monkeypatch):
    read = []
    tree = source._tree
    monkeypatch.setattr(source, "_tree", lambda text: read.append(text) or tree(text))
    assert source.factory_digest("pytorchcv.models.resnet:resnet18")
    assert len(read) == 1


def test_the_file_of_a_factory_may_be_a_module_a_package_or_installed(own):
    (own.parent / "more").mkdir()
    (own.parent / "more" / "__init__.py").write_text("")
    (own.parent.parent / "single.py").write_text("")
    assert source.factory_file("ownpackage") == own.parent / "__init__.py"
    assert source.factory_file("ownpackage.more") == own.parent / "more" / "__init__.py"
    assert source.factory_file("single") == own.parent.parent / "single.py"
    assert source.factory_file("pytorchcv.models.resnet").name == "resnet.py"


def test_a_factory_in_folders_without_init_is_found(own):
    folder = own.parent.parent / "plain" / "inner"
    folder.mkdir(parents=True)
    (folder / "nets.py").write_text("")
    assert source.factory_file("plain.inner.nets") == folder / "nets.py"


def test_a_factory_that_is_nowhere_has_no_digest(own):
    names = ["", "nowhere:build", "ownpackage.none:build", "sys:exit"]
    assert [source.factory_digest(name) for name in names] == [""] * 4


def test_a_factory_that_python_cannot_read_counts_by_its_bytes(own):
    own.write_text("def (")
    before = source.factory_digest("ownpackage.models:build")
    own.write_text("def ((")
    assert source.factory_digest("ownpackage.models:build") != before != ""
