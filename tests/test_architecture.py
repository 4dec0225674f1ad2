"""The shape of the package: imports point down the layers, and heavy ones stay where they are."""

import ast
import subprocess
import sys

import pytest

from synq import source

# A module imports modules of earlier lines alone, never one of its own.
LAYERS = [
    {"errors", "published", "source"},
    {"settings", "zoo"},
    {"config"},
    {"plan"},
    {"activations", "arrays", "devices"},
    {"attention"},
    {"artifacts", "augment", "datasets", "disk", "evaluation", "hooks", "losses"}
    | {"lowpass", "models", "parallel", "quantization", "runtime", "tables", "tracing"},
    {"hdf5"},
    {"anatomy", "calibration", "download", "factories", "patches", "saliency", "shards"}
    | {"snapshots", "statistician"},
    {"batches", "generator", "objective", "synthesis"},
    {"exporting", "networks", "training"},
    {"inspection", "work"},
    {"stages.collect", "stages.evaluate", "stages.export", "stages.fetch", "stages.finetune"}
    | {"stages.inspect", "stages.synthesize", "stages.tables", "stages.train"}
    | {"stages.verify"},
    {"cli"},
    {"__main__"},
]
HEIGHT = {module: height for height, layer in enumerate(LAYERS) for module in layer}
LIGHT = ["devices", "errors", "published", "source", "settings", "zoo", "config", "plan", "cli"]


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


def test_every_module_has_one_layer():
    assert modules() == sorted(module for layer in LAYERS for module in layer)


@pytest.mark.parametrize("module", modules())
def test_imports_point_down_the_layers(module):
    upward = [name for name in source.imported(tree(module)) if HEIGHT[name] >= HEIGHT[module]]
    assert not upward


@pytest.mark.parametrize("module", modules())
def test_imports_inside_the_package_are_absolute(module):
    nodes = [node for node in ast.walk(tree(module)) if isinstance(node, ast.ImportFrom)]
    assert not [node.lineno for node in nodes if node.level]


@pytest.mark.parametrize("module", ["__init__", "stages.__init__"])
def test_packages_import_nothing(module):
    nodes = ast.walk(tree(module))
    assert not [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


@pytest.mark.parametrize("module", LIGHT)
def test_importing_a_light_module_loads_no_heavy_one(module):
    code = f"import sys, synq.{module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert f"synq.{module}" in loaded
    assert not loaded & {"torch", "numpy", "h5py", "pandas", "requests", "pytorchcv", "tqdm"}


@pytest.mark.parametrize("module", ["config", "errors", "plan", "published", "source", "zoo"])
def test_what_the_snakefile_imports_uses_the_standard_library_alone(module):
    for name in reached(module):
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.Import):
                roots = {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                roots = {node.module.split(".")[0]}
            else:
                continue
            assert roots <= {*sys.stdlib_module_names, "synq"}


@pytest.mark.parametrize("stage", ["inspect", "synthesize", "finetune"])
def test_no_real_image_is_within_reach_of_a_data_free_stage(stage):
    assert "synthesis" in reached("stages.synthesize")
    assert "datasets" in reached("stages.evaluate")
    assert not reached(f"stages.{stage}") & {"datasets", "evaluation", "stages.train"}


def test_the_library_knows_no_stage_and_no_command():
    above = {name for name in HEIGHT if name.startswith("stages.")} | {"cli", "__main__"}
    below = [name for name in HEIGHT if name not in above]
    assert not set.union(*map(reached, below)) & above
