"""The shape of the package: imports point down the layers, and heavy ones stay where they are."""

import ast
import subprocess
import sys

import pytest

from synq.config import fingerprint as source

# A folder imports folders of earlier lines alone; inside one, imports never run in a circle.
FOLDERS = [
    {"errors"},
    {"config"},
    {"runtime"},
    {"io"},
    {"data", "models"},
    {"quantization"},
    {"synthesis", "finetuning"},
    {"reporting"},
    {"stages"},
    {"api"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {folder: height for height, level in enumerate(FOLDERS) for folder in level}
PACKAGES = [f"{name}.__init__" for name in sorted(HEIGHT) if (source.PACKAGE / name).is_dir()]


def modules():
    files = source.PACKAGE.rglob("*.py")
    names = [".".join(file.relative_to(source.PACKAGE).with_suffix("").parts) for file in files]
    return sorted(name for name in names if name.split(".")[-1] != "__init__")


def tree(module):
    return ast.parse(source.path(module).read_text("utf-8"))


def reached(module):
    found, rest = set(), [module]
    while rest:
        name = rest.pop()
        if name not in found:
            found.add(name)
            rest += source.imported(tree(name))
    return found


def folder(module):
    return module.split(".")[0]


def test_every_module_is_in_one_of_the_folders():
    assert {folder(module) for module in modules()} == set(HEIGHT)


@pytest.mark.parametrize("module", modules())
def test_imports_point_down_the_folders(module):
    own = folder(module)
    others = {folder(name) for name in source.imported(tree(module))} - {own}
    assert [other for other in others if HEIGHT[other] >= HEIGHT[own]] == []


@pytest.mark.parametrize("module", modules())
def test_no_import_leads_back_to_its_module(module):
    assert not any(module in reached(name) for name in source.imported(tree(module)))


@pytest.mark.parametrize("module", modules())
def test_imports_inside_the_package_are_absolute(module):
    nodes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ImportFrom)]
    assert not [node.lineno for node in nodes if node.level]


@pytest.mark.parametrize("module", PACKAGES)
def test_packages_import_nothing(module):
    nodes = ast.walk(tree(module))
    assert not [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def test_the_package_loads_what_is_asked_for_and_nothing_before():
    code = "import sys, synq; print(*sys.modules); synq.UserError; dir(synq); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = ({*line.split()} for line in done.stdout.splitlines())
    assert [name for name in before if name.startswith("synq")] == ["synq"]
    assert {name for name in after if name.startswith("synq")} == {"synq", "synq.errors"}
    assert "torch" not in after


LIGHT = [
    "cli",
    "commands",
    "errors",
    "runtime.devices",
    "stages.status",
    *(m for m in modules() if folder(m) == "config"),
]


@pytest.mark.parametrize("module", LIGHT)
def test_importing_a_light_module_loads_no_heavy_one(module):
    code = f"import sys, synq.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"synq.{module}" in loaded
    assert not loaded & {"torch", "numpy", "h5py", "pandas", "requests", "pytorchcv", "tqdm"}


@pytest.mark.parametrize("module", ["errors", *(m for m in modules() if folder(m) == "config")])
def test_what_the_snakefile_imports_uses_the_standard_library_alone(module):
    # Where config files are read, Snakemake has brought what reads YAML.
    more = {"yaml"} if module == "config.repeated" else set()
    for name in reached(module):
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots = {node.module.split(".")[0]}
            else:
                continue
            assert roots <= {*sys.stdlib_module_names, "synq", *more}


@pytest.mark.parametrize(
    "stage", ["inspect", "synthesize", "sensitivity", "finetune", "tables", "page"]
)
def test_no_real_image_is_within_reach_of_a_data_free_stage(stage):
    assert "synthesis.synthesize" in reached("stages.synthesize")
    assert "data.datasets" in reached("stages.evaluate")
    assert not reached(f"stages.{stage}") & {"data.datasets", "reporting.accuracy", "stages.train"}


def test_the_library_knows_no_stage_and_no_command():
    above = {
        name
        for name in modules()
        if folder(name) in ("stages", "api", "commands", "cli", "__main__")
    }
    below = [name for name in modules() if name not in above]
    assert not set.union(*map(reached, below)) & above


def test_no_stage_loads_torchvision_before_it_is_needed():
    stages = [name for name in modules() if folder(name) == "stages"]
    code = f"import sys, {', '.join(f'synq.{name}' for name in stages)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "synq.data.datasets" in done.stdout.split()
    assert "torchvision" not in done.stdout.split()
