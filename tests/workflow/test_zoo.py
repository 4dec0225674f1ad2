"""Networks of the zoos through the whole workflow, from another folder than the clone's.

They are built by functions of the user's own with random weights, since nothing can be downloaded.
One of them has no BatchNorm layers, and borrows its images from another one.
"""

import csv
import hashlib
import json
import os
import subprocess
import sys

import h5py
import onnx
import pytest
import torch
import yaml
from running import ENVIRONMENT, PATIENCE, ROOT
from torch import nn

from synq import cli

CLASSES, SIDE = 4, 32
FACTORIES = f"""
from vision import torchvision_models

def mobilenet():
    return torchvision_models().mobilenet_v3_small(num_classes={CLASSES})

def convnext():
    import timm
    return timm.create_model("convnext_atto", num_classes={CLASSES})
"""
NETWORKS = ("mobilenet", "convnext")
# It takes other images than its relative does. An ONNX file takes three times what any other stage
# does: one network has one.
OTHERS = {
    "convnext": {
        **{"relative": "mobilenet", "image_size": 40, "mean": [0.4] * 3, "std": [0.3] * 3},
        "export": {"format": "none"},
    },
}
TINY = {
    "synthesis": {"images_per_class": 4, "iterations": 2, "classes_per_shard": CLASSES},
    "finetune": {"epochs": 1, "batch_size": 16, "holdout": 0.25},
}


def trained(network, side):
    """The state of a network whose BatchNorm layers have seen two batches."""
    for module in network.eval().modules():
        module.train(isinstance(module, nn.BatchNorm2d))
    with torch.no_grad():
        for _ in range(2):
            network(torch.randn(8, 3, side, side))
    return network.state_dict()


def config(folder):
    """Settings of all networks, whose weights are written into the folder."""
    names = {}
    exec(FACTORIES, names)
    models = {}
    for name in NETWORKS:
        torch.manual_seed(0)
        own = {"image_size": SIDE, "mean": [0.5] * 3, "std": [0.25] * 3} | OTHERS.get(name, {})
        path = folder / f"{name}.pth"
        torch.save(trained(names[name](), own["image_size"]), path)
        models[name] = own | {
            "source": "python",
            "factory": f"own_zoo:{name}",
            "classes": CLASSES,
            "weights": path.name,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    grid = {"models": [*NETWORKS], "bits": ["w4a4"], "methods": ["synq-plus"], "seeds": [0]}
    return {"results": "r", "grid": grid, "models": models, **TINY}


@pytest.mark.long
def test_networks_of_two_zoos_go_through_the_whole_workflow(tmp_path, capsys):
    pytest.importorskip("timm")
    (tmp_path / "own_zoo.py").write_text(FACTORIES, "utf-8")
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump(config(tmp_path)), "utf-8")
    words = ["-m", "snakemake", "-s", ROOT / "Snakefile", "--cores", "1", "--configfile"]
    paths = [str(tmp_path), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *map(str, words), "zoo.yaml"],
        cwd=tmp_path,
        env={**ENVIRONMENT, "PYTHONPATH": os.pathsep.join(paths)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    results = tmp_path / "r"
    with open(results / "tables/accuracy.csv", encoding="utf-8") as file:
        rows = {row["model"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {*NETWORKS}
    run = results / "runs/mobilenet/w4a4/synq-plus/seed0"
    onnx.checker.check_model(onnx.load(run / "student.onnx"))
    assert json.loads((run / "export.json").read_text("utf-8"))["agreement"] > 0
    assert (results / "index.html").is_file()
    # The borrowed images are the relative's, in the size of the network that borrows them.
    shards = [results / f"synthetic/{name}/natural/seed0" for name in NETWORKS]
    made, lent = (folder / "classes-0000-0003.h5" for folder in shards)
    with h5py.File(made) as before, h5py.File(lent) as after:
        assert after["images"].shape[1:] == (3, 40, 40)
        assert [*after["labels"]] == [*before["labels"]]
        assert after.attrs["lent_checksum"] == before.attrs["checksum"]
    assert cli.main(["verify", str(results)]) == 0
    made.unlink()
    assert cli.main(["verify", str(results)]) == 1
    gone = "made from images that are gone: there is no whole synthetic/mobilenet/natural"
    assert f"{lent} was {gone}" in capsys.readouterr().out
