"""Networks of users' own through every stage: their code and what they return."""

import hashlib
import json
import sys
from pathlib import Path

import numpy
import pytest
import torch

from synq import cli
from synq.config.calibration import Calibration
from synq.config.evaluation import Evaluation
from synq.config.export import Export
from synq.config.finetune import Finetune
from synq.config.images import TestSet
from synq.config.model import Model
from synq.config.synthesis import Synthesis
from synq.errors import ArtifactError, DataError
from synq.io.artifacts import read_checkpoint, read_json
from synq.models.teacher import read_teacher
from synq.stages import evaluate
from synq.stages.evaluate import evaluate_run
from synq.stages.evaluate_teacher import evaluate_teacher, predictions
from synq.stages.export import export_student
from synq.stages.fetch import fetch
from synq.stages.finetune import finetune_student
from synq.stages.synthesize import synthesize_shard

HERE = {"device": "cpu", "threads": 1}
OWN = """
from torch import nn
from torch.nn import functional as F

class Viewing(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.relu2 = nn.ReLU()
        self.output = nn.Linear(8 * 16, 3)

    def forward(self, x):
        x = F.max_pool2d(self.relu1(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(self.relu2(self.bn2(self.conv2(x))), 2)
        return self.output(x.view(x.size(0), -1))

class Calling(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.output = nn.Linear(8 * 16, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.bn2(self.conv2(x)), inplace=True), 2)
        return self.output(x.view(x.size(0), -1))

class Shortcut(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)

# Of a CIFAR ResNet as they are published: no shortcut has parameters (option A).
class Block(nn.Module):
    def __init__(self, inner, outer, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.shortcut = nn.Sequential()
        if inner != outer:
            more = (outer - inner) // 2
            self.shortcut = Shortcut(
                lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more), "constant", 0)
            )

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.shortcut(x)
        return F.relu(y)

class Published(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.layer1 = nn.Sequential(Block(4, 4, 1), Block(4, 4, 1))
        self.layer2 = nn.Sequential(Block(4, 8, 2))
        self.linear = nn.Linear(8, 3)

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.layer2(self.layer1(y))
        y = F.avg_pool2d(y, y.size()[3])
        return self.linear(y.view(y.size(0), -1))

class Answering(Viewing):
    def forward(self, x):
        return {"hidden": None, "logits": super().forward(x)}

class Probable(Viewing):
    def __init__(self):
        super().__init__()
        self.softmax = nn.Softmax(dim=1)

    def forward(self, x):
        return self.softmax(super().forward(x)), "more"
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "own_stages.py").write_text(OWN)
    yield tmp_path
    sys.modules.pop("own_stages", None)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("Viewing", []),
        ("Calling", []),
        ("Published", []),
        ("Answering", ["logits of a dict"]),
        ("Probable", ["entry 0 of a tuple", "without softmax, a Softmax"]),
    ],
)
def test_an_own_network_goes_through_every_stage(folder, monkeypatch, capsys, name, told):
    sys.path.insert(0, str(folder))
    torch.manual_seed(0)
    state = getattr(__import__("own_stages"), name)().state_dict()
    weights = "weights.pth"
    if name == "Published":  # as its training wrote it, of several GPUs
        weights = "resnet.th"
        state = {"state_dict": {f"module.{key}": value for key, value in state.items()}}
        state["best_prec1"] = 91.7
    torch.save(state, weights)
    teacher = Path("teacher.safetensors")
    settings = Model(
        source="python",
        factory=f"own_stages:{name}",
        classes=3,
        channels=3,
        image_size=16,
        mean=(0.5,) * 3,
        std=(0.25,) * 3,
        weights=weights,
        sha256=hashlib.sha256(Path(weights).read_bytes()).hexdigest(),
    )
    fetch(name="own", settings=settings, download=Path("download"), output=teacher)
    assert ("the logits are" in capsys.readouterr().out) == bool(told)
    record = read_checkpoint(teacher, "teacher")[1]
    layout = "channels_last" if name == "Published" else "contiguous"
    assert (record["memory_format"], record["output"]) == (layout, told)

    assert cli.main(["inspect", "--teacher", str(teacher), "--json", "report.json"]) == 0
    assert json.loads(Path("report.json").read_text())["output"] == told
    capsys.readouterr()
    assert cli.main(["inspect", "--teacher", str(teacher)]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in told[:1])

    shard = Path("shard.h5")
    made = Synthesis(images_per_class=4, iterations=2)
    synthesize_shard(
        teacher=teacher, output=shard, classes=[0, 1, 2], seed=0, settings=made, **HERE
    )
    finetune_student(
        teacher=teacher,
        shards=[shard],
        shard_folder=Path(),
        bits="w4a4",
        method="synq",
        image_set="hard",
        seed=0,
        calibration=Calibration(),
        settings=Finetune(epochs=1, batch_size=4, feature_weight=0, cam="gradcam"),
        output=Path("student.safetensors"),
        snapshots=Path("students.safetensors"),
        **HERE,
    )
    # A batch of rows of pixels, as image libraries have them, has its channels last.
    pixels = numpy.random.default_rng(0).integers(0, 256, (9, 16, 16, 3), "uint8")
    numpy.savez("test.npz", images=pixels, labels=numpy.arange(9) % 3)
    test = TestSet(dataset="arrays", path="test.npz")
    common = {"teacher": teacher, "test": test, "settings": Evaluation(), **HERE}
    evaluate_teacher(output=Path("teacher.json"), **common)
    evaluate_run(
        teacher_metrics=Path("teacher.json"),
        snapshots=Path("students.safetensors"),
        shards=[],
        shard_folder=Path(),
        output=Path("metrics.json"),
        **common,
    )
    metrics = read_json(Path("metrics.json"), "metrics")
    assert metrics["test_images"] == 9
    # Another test set is no excuse to compare students with what was measured before.
    numpy.savez("test.npz", images=pixels[::-1], labels=numpy.arange(9) % 3)
    with pytest.raises(DataError, match="was measured on other test images") as caught:
        evaluate_run(
            teacher_metrics=Path("teacher.json"),
            snapshots=Path("students.safetensors"),
            shards=[],
            shard_folder=Path(),
            output=Path("other.json"),
            **common,
        )
    assert "\n" not in str(caught.value)
    assert not Path("other.json").exists()
    numpy.savez("test.npz", images=pixels, labels=numpy.arange(9) % 3)
    monkeypatch.setattr(evaluate, "TOGETHER", 1)  # as where students are large: one at a time
    asked = []

    def counted(models, *others):
        asked.append(len(models))
        return predictions(models, *others)

    monkeypatch.setattr(evaluate, "predictions", counted)
    evaluate_run(
        teacher_metrics=Path("teacher.json"),
        snapshots=Path("students.safetensors"),
        shards=[],
        shard_folder=Path(),
        output=Path("again.json"),
        **common,
    )
    assert read_json(Path("again.json"), "metrics") == metrics
    assert asked == [2, 1]  # the network beside the first student, and not again
    export_student(
        teacher=teacher,
        student=Path("student.safetensors"),
        shards=[shard],
        shard_folder=Path(),
        settings=Export(),
        test=test,
        output=Path("student.onnx"),
        packed=Path("student.packed.safetensors"),
        record=Path("export.json"),
        threads=1,
    )
    assert read_json(Path("export.json"), "export")["agreement"] == 100
    sites = [
        name for name in read_checkpoint(Path("student.safetensors"), "student")[0] if "/" in name
    ]
    called = {"Calling": 2, "Published": 7}
    assert len({site.rpartition(".")[0] for site in sites}) == called.get(name, 0)
    # The code has changed, and the file's weights still fit it.
    module = sys.modules["own_stages"]
    wanted = getattr(module, name).forward
    with monkeypatch.context() as changed:
        changed.setattr(getattr(module, name), "forward", lambda self, x: wanted(self, x.square()))
        with pytest.raises(ArtifactError, match="its code has changed: delete that file"):
            read_teacher(teacher, torch.device("cpu"))
    with torch.no_grad():
        logits = read_teacher(teacher, torch.device("cpu")).model(torch.rand(5, 3, 16, 16))
    assert not torch.allclose(logits.sum(1), torch.ones(5))
