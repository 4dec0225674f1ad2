"""``synq inspect``: what it prints and writes, of teachers that fit and of others."""

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from synq import cli
from synq.config.model import Model
from synq.errors import ConfigError
from synq.models import teacher as networks
from synq.models.build import build
from synq.models.teacher import write_teacher
from synq.quantization.convert import packed_bytes, quantize
from synq.quantization.quantizers import Recipe
from synq.reporting.inspection import inspect_model
from synq.stages.inspect import facts, rows, verdict


class Functional(nn.Module):
    """A block that hides its second activation in its forward."""

    def __init__(self, channels):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU()
        )

    def forward(self, images):
        return F.relu(images + self.body(images))


def own(*middle):
    """A network for 28x28 images of one channel and 7 classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 5, stride=2),
        *middle,
        *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 7)),
    ).eval()


def normal():
    return nn.BatchNorm2d(8), nn.ReLU()


SHAPE = (1, 28, 28)


@pytest.fixture
def inspected(tmp_path, monkeypatch, capsys):
    """Runs the command on a network; its exit code, its lines and its JSON file."""

    def run(model, shape, classes, *, name="own", require=None):
        path, report = tmp_path / "teacher.safetensors", tmp_path / "report.json"
        settings = Model(
            source="torchvision",
            architecture=name,
            classes=classes,
            channels=shape[0],
            image_size=shape[1],
        )
        facts = {"mean": [0.5] * shape[0], "std": [0.2] * shape[0], "origin": "random"}
        write_teacher(path, model.state_dict(), settings, name=name, **facts)
        monkeypatch.setattr(networks, "construct", lambda *_, **__: model)
        words = ["inspect", "--teacher", str(path)]
        words += ["--require", *require] if require is not None else []
        code = cli.main(words)
        printed = capsys.readouterr()
        assert cli.main([*words, "--json", str(report)]) == code
        again = capsys.readouterr()
        assert again.err == printed.err
        lines = printed.out.splitlines()
        # The file takes the place of all but the last line.
        assert again.out.splitlines() == (lines[-1:] if code == 0 else [])
        if code:
            (error,) = printed.err.splitlines()
            lines.append(error.removeprefix(f"synq: error: {name} "))
        return code, lines, json.loads(report.read_text("utf-8"))

    return run


def fact(lines, name):
    (line,) = [line for line in lines if line.startswith(f"{name}  ")]
    return line.removeprefix(name).strip()


def test_an_own_network_that_fits(inspected):
    code, lines, report = inspected(own(*normal()), SHAPE, 7)
    assert code == 0
    assert lines[0] == "own: images of 1x28x28, 7 classes"
    cells = {line.split()[0]: line.split()[1:] for line in lines[4:7]}
    assert cells == {
        "0": ["Conv2d", "8x1x5x5", "8x12x12", "28,800", "image", "yes"],
        "2": ["ReLU", "8x12x12", "batch_norm", "yes"],
        "5": ["Linear", "7x32", "7", "224", "adaptive_avg_pool2d", "yes"],
    }
    assert fact(lines, "BatchNorm layers") == "1"
    assert fact(lines, "layer of the CAM") == "0"
    assert fact(lines, "feature alignment") == "1 blocks"
    assert fact(lines, "inputs quantized") == (
        "0 of 2, 0 % of the layers' multiply-adds; the others read floats unless "
        "calibration.scope is wider than calls"
    )
    assert fact(lines, "calibration.scope: inputs") == "2 of 2, 3 grids"
    assert fact(lines, "inputs in full precision") == "1 image, 1 adaptive_avg_pool2d"
    assert fact(lines, "parameters") == f"{200 + 8 + 16 + 224 + 7}, quantized 424"
    assert fact(lines, "multiply-adds of the layers") == "29,024"
    assert lines[-1] == "fits"
    assert (report["kind"], report["fits"], report["problems"]) == ("inspection", True, [])
    assert (report["input"], report["classes"]) == ([1, 28, 28], 7)
    assert report["parts"][0]["multiply_adds"] == 28_800


def test_the_sizes_are_those_of_the_student_and_the_teacher():
    model = own(*normal())
    found = inspect_model(model, SHAPE)["bytes"]
    assert found["32"] == packed_bytes(model, 32)
    quantize(model, Recipe(8, 8))
    assert [found[bits] for bits in "8432"] == [packed_bytes(model, int(bits)) for bits in "8432"]
    assert found["8"] == 424 + 8 * 15 + 4 * (8 + 7) + 4 * 8 * 4 + 8 + 2 * 4


def test_names_and_budgets_of_a_method_are_checked(inspected):
    words = ["m:calibration.keep_bits=0=8", "m:calibration.keep_bits=2=float"]
    code, lines, report = inspected(own(*normal()), SHAPE, 7, require=words)
    assert (code, lines[-1]) == (0, "fits")
    assert report["names"] == ["0", "5", "2"]
    smallest = report["bytes"]["2"]
    words = ["m:calibration.keep_bits=conv*=8", "m:calibration.budget=700 B with widths from 8"]
    code, lines, _ = inspected(own(*normal()), SHAPE, 7, require=words)
    assert code == 2
    assert "method m has calibration.keep_bits: conv*=8, but no layer and no" in lines[-1]
    size = f"{(smallest + 424 * 6 // 8) / 1000:.1f}"
    line = f"calibration.budget: 700 B with widths from 8, but the smallest size is {size} kB"
    assert line in lines[-1]


def test_inspecting_changes_nothing():
    model = own(*normal())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    inspect_model(model, SHAPE)
    assert [type(module) for module in model[:3]] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_network_without_batchnorm_does_not_fit(inspected):
    code, lines, report = inspected(build("squeezenet_v1_1", 10, 3, 224), (3, 224, 224), 10)
    assert code == 2
    assert fact(lines, "BatchNorm layers") == "none: images cannot be synthesized"
    assert lines[-1].startswith("does not fit: the model has no BatchNorm layer with running")
    assert len(report["problems"]) == 1


def test_a_network_without_batchnorm_fits_what_synthesizes_no_image(inspected):
    model = build("squeezenet_v1_1", 10, 3, 224)
    code, lines, _ = inspected(model, (3, 224, 224), 10, require=["few-shot:finetune.cam=gradcam"])
    assert (code, lines[-1]) == (0, "fits")
    require = ["synq:synthesis.prior=auto"]
    code, lines, _ = inspected(model, (3, 224, 224), 10, require=require)
    assert code == 2
    assert lines[-1].startswith(
        "does not fit: method synq has synthesis.prior: auto, but the model"
    )
    assert "method few-shot" in lines[-1]


def test_a_functional_activation_has_a_row(inspected):
    code, lines, report = inspected(own(*normal(), Functional(8), Functional(8)), SHAPE, 7)
    assert code == 0
    assert fact(lines, "activations by functions") == "2: 3 calls F.relu, 4 calls F.relu"
    assert lines[-1] == "fits"
    (row,) = [line.split() for line in lines if line.startswith("3/relu/0 ")]
    assert row[1:] == ["F.relu", "8x12x12", "sum", "yes"]
    assert report["functional_activations"][1] == {"module": "4", "function": "F.relu"}


def test_the_share_of_the_work_on_codes_is_told():
    body = nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 8, 1)
    found = inspect_model(own(*normal(), *body), SHAPE)
    # 12 x 12 pixels; the first reads the image, the last an average.
    own_share = (32 + 32) * 144 / ((8 * 25 + 32 + 32) * 144 + 32 * 7)
    wanted = {"layers": 2, "of": 4, "multiply_adds_share": pytest.approx(own_share)}
    assert found["quantized_inputs"] == wanted


def test_every_reason_is_in_the_last_line_once(inspected):
    code, lines, report = inspected(own(nn.Tanh()), SHAPE, 7)
    assert code == 2
    assert "no BatchNorm layer" in lines[-1]
    assert "passes an activation" in lines[-1]
    assert len(report["problems"]) == 2
    assert fact(lines, "others in full precision") == "1: 1 (Tanh, type not supported)"


def test_batchnorm_that_no_forward_passes_does_not_count():
    model = own(*normal())
    model[1] = nn.ReLU()
    model[2].spare = nn.BatchNorm2d(8)
    found = inspect_model(model, SHAPE)
    assert found["problems"] == ["no forward of the model passes one of its BatchNorm layers"]
    assert found["never_called"] == ["2.spare"]


def test_a_network_without_a_spatial_map_says_what_it_needs(inspected):
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 28), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 7))
    ).eval()
    code, lines, _ = inspected(model, SHAPE, 7)
    assert code == 0
    assert fact(lines, "layer of the CAM") == "none: finetune.cam must be off"
    assert fact(lines, "feature alignment") == "no block: finetune.feature_weight must be 0"
    assert lines[-1] == "fits, with finetune.cam: off"


def test_repeated_activations_and_gates_are_told(inspected):
    relu = nn.ReLU()

    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

        def forward(self, images):
            return images * self.gate(images)

    code, lines, _ = inspected(own(nn.BatchNorm2d(8), relu, Gate(), relu), SHAPE, 7)
    assert code == 0
    assert fact(lines, "activations called again") == "1: 2 (2 calls)"
    assert fact(lines, "gates, in full precision") == "1: 3.gate.2"
    (row,) = [line.split() for line in lines if line.startswith("2/forward/1 ")]
    assert row[1:] == ["ReLU", "8x12x12", "product", "yes"]
    (row,) = [line.split(None, 1)[1] for line in lines if line.startswith("3.gate.2 ")]
    assert row.endswith("no: a gate")


def test_a_residual_network_has_blocks_and_every_row(inspected):
    model = build("seresnet20_cifar10", 10, 3, 32)
    code, lines, report = inspected(model, (3, 32, 32), 10)
    assert code == 0
    assert fact(lines, "feature alignment") == "9 blocks"
    assert fact(lines, "gates, in full precision").startswith("9: features.stage1.unit1.se.sigmoid")
    assert len(rows(report)) == len(report["parts"]) == lines.index("", 3) - 4
    assert facts(report)
    assert verdict(report) == lines[-1] == "fits"


def test_what_methods_need_is_refused_in_one_line_that_names_them(inspected):
    require = ["hast:finetune.feature_weight=1000.0", "released:finetune.feature_weight=1000.0"]
    require += ["synq:calibration.range_source=generator"]
    model = nn.Sequential(
        *(nn.Conv2d(1, 8, 28), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8, 7))
    )
    code, lines, report = inspected(model.eval(), SHAPE, 7, require=require)
    assert code == 2
    assert lines[-1].startswith(
        "does not fit: methods hast, released have finetune.feature_weight: 1000.0, but the model"
    )
    assert lines[-1].endswith("set finetune.feature_weight: 0")
    assert "synq" not in lines[-1]
    assert "feature_weight: 0" in report["refusals"]["finetune.feature_weight"]


@pytest.mark.parametrize(
    ("word", "fits"),
    [
        ("m:finetune.cam=gradcam", True),
        ("m:calibration.range_source=generator", True),
        ("m:synthesis.deep_weight=0.02", True),
        ("m:synthesis.prior=batchnorm", True),
        ("m:synthesis.prior=patches", False),
        ("m:finetune.feature_weight=1.0", True),
    ],
)
def test_every_need_has_its_check(word, fits):
    assert inspect_model(own(*normal()), SHAPE, [word])["fits"] == fits


def test_a_need_that_is_unknown_is_refused():
    with pytest.raises(ConfigError, match=r"'m:finetune\.kam=1'; write METHOD:SETTING=VALUE"):
        inspect_model(own(*normal()), SHAPE, ["m:finetune.kam=1"])
