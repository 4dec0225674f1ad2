"""The page of docs/demo in Chromium: a digit's class by the float, 4-bit and 2-bit files.

Skipped where there is no Chromium, no npm, or no registry that gives onnxruntime-web.
"""

import functools
import http.server
import importlib.util
import json
import re
import shutil
import subprocess
import threading
from pathlib import Path

import numpy
import onnxruntime
import pytest
from browsers import browser, playwright
from embedded import embedded_teacher
from running import ROOT

from synq.config import images, layout
from synq.config.calibration import Calibration
from synq.config.evaluation import Evaluation
from synq.config.export import Export
from synq.config.finetune import Finetune
from synq.config.synthesis import Synthesis
from synq.stages.evaluate import evaluate_run
from synq.stages.evaluate_teacher import evaluate_teacher
from synq.stages.export import export_student
from synq.stages.finetune import finetune_student
from synq.stages.synthesize import synthesize_shard

__all__ = ["browser"]  # a fixture

pytestmark = [pytest.mark.browser, pytest.mark.xdist_group("demo")]

DEMO = ROOT / "docs/demo"
HERE = {"device": "cpu", "threads": 1}
TEST = {"test": images.TestSet(dataset="digits")}
NAMES = {"model": "digits", "method": "synq", "seed": "0"}
WIDTHS = ("w4a4", "w2a2")


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    """docs/demo/make.py of a copy of its folder, into which npm has put the runtime."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm on this machine")
    folder = tmp_path_factory.mktemp("demo")
    for name in ("index.html", "demo.js", "make.py", "package.json", "package-lock.json"):
        shutil.copy(DEMO / name, folder)
    words = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefix", str(folder)]
    brought = subprocess.run(words, capture_output=True, text=True, check=False)
    if brought.returncode:
        pytest.skip(f"npm does not bring onnxruntime-web: {brought.stderr.strip()[:200]}")
    spec = importlib.util.spec_from_file_location("make", folder / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The embedded network, and students of it that were calibrated on a few images."""
    root = tmp_path_factory.mktemp("results")
    network = root / layout.TEACHER.format(model="digits")
    network.parent.mkdir(parents=True)
    embedded_teacher(network.parent)
    reference = network.parent / "metrics.json"
    evaluate_teacher(teacher=network, settings=Evaluation(), output=reference, **TEST, **HERE)
    shard = root / "shard.h5"
    settings = Synthesis(images_per_class=2, iterations=20)
    synthesize_shard(
        teacher=network, output=shard, classes=[*range(10)], seed=0, settings=settings, **HERE
    )
    seen = {"teacher": network, "shards": [shard], "shard_folder": Path()}
    for bits in WIDTHS:
        student, snapshots, onnx, packed, export, metrics = (
            root / template.format(**NAMES, bits=bits)
            for template in (
                *(layout.STUDENT, layout.SNAPSHOTS, layout.ONNX),
                *(layout.PACKED, layout.EXPORT, layout.METRICS),
            )
        )
        finetune_student(
            **seen,
            **{"bits": bits, "method": "synq", "image_set": "hard", "seed": 0},
            calibration=Calibration(),
            settings=Finetune(epochs=0, holdout=0, cam="off"),
            output=student,
            snapshots=snapshots,
            **HERE,
        )
        evaluate_run(
            **seen,
            teacher_metrics=reference,
            snapshots=snapshots,
            settings=Evaluation(),
            output=metrics,
            **TEST,
            **HERE,
        )
        export_student(
            **seen,
            student=student,
            settings=Export(least_agreement=0.0),
            output=onnx,
            packed=packed,
            record=export,
            threads=1,
            **TEST,
        )
    return root


@pytest.fixture(scope="module")
def built(maker, results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    words = [str(results), "--model", "digits", "--method", "synq", "--output", str(folder)]
    assert maker.main(words) == 0
    return folder


@pytest.fixture(scope="module")
def served(built):
    """The address of the folder on a server of this machine."""
    handler = functools.partial(Quiet, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def page(browser, built, served, request):
    """The page, from the disk unless asked otherwise, once its files are loaded.

    It asks for nothing but its own.
    """
    address = served if getattr(request, "param", "") == "served" else f"file://{built}"
    context = browser.new_context(offline=address != served)
    opened, said, asked = context.new_page(), [], []
    opened.on("console", lambda message: said.append(message.text))
    opened.on("pageerror", lambda error: said.append(str(error)))
    opened.on("request", lambda asking: asked.append(asking.url))
    opened.goto(f"{address}/index.html")
    playwright.expect(opened.locator("#state")).to_have_text("Ready.", timeout=60_000)
    yield opened
    assert said == []
    assert all(url.startswith((f"{address}/", "blob:", "data:")) for url in asked)
    context.close()


def answers(page):
    """The classes that the three files name, once all have; the page says whether they agree."""
    said = page.locator("#state")
    playwright.expect(said).to_have_text(re.compile("All name the same class|They differ"))
    found = page.locator("output").all_inner_texts()
    assert said.inner_text().startswith("All" if len(set(found)) == 1 else "They")
    return found


def shares(page, column):
    cells = page.locator(f"#classes td:nth-child({column + 2})")
    return numpy.array(
        [float(text) for text in cells.evaluate_all("c => c.map(x => x.dataset.share)")]
    )


def logits_of(path, digit, about):
    """What ONNX Runtime in Python answers to a digit of the page."""
    import torch
    from torch.nn import functional

    small = torch.tensor(digit["pixels"], dtype=torch.float32).view(1, 1, 8, 8) / 16
    size = (about["image_size"],) * 2
    image = functional.interpolate(small, size, mode="bilinear", align_corners=False)
    normalised = ((image - about["mean"][0]) / about["std"][0]).numpy()
    return onnxruntime.InferenceSession(path).run(None, {"images": normalised})[0][0]


def test_a_test_image_has_the_classes_that_the_files_have_in_python(page, built, results):
    data = json.loads((built / "data.js").read_text("utf-8").removeprefix("const DATA = ")[:-2])
    assert [model["name"] for model in data["models"]] == ["full precision", "W4A4", "W2A2"]
    paths = [results / layout.ONNX.format(**NAMES, bits=bits) for bits in WIDTHS]
    found = [[logits_of(path, digit, data["about"]) for path in paths] for digit in data["digits"]]
    ordered = [numpy.sort(logits, axis=1) for logits in found]
    margins = [float((own[:, -1] - own[:, -2]).min()) for own in ordered]
    # Where a student all but hesitates, the two may round an activation to neighbouring codes.
    for chosen in numpy.argsort(margins)[-3:].tolist():
        page.locator("#picks button").nth(chosen).click()
        label = str(data["digits"][chosen]["label"])
        wanted = [label, *(str(logits.argmax()) for logits in found[chosen])]
        assert answers(page) == wanted
        for column in range(3):
            own = shares(page, column)
            assert own.argmax() == int(wanted[column])
            assert own.sum() == pytest.approx(1)


def test_axe_finds_no_serious_fault(page):
    axe = pytest.importorskip(
        "axe_playwright_python.sync_playwright", reason="axe is not installed"
    )
    page.locator("#picks button").first.click()
    assert len(answers(page)) == 3
    found = axe.Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []


@pytest.mark.parametrize("page", ["file", "served"], indirect=True)
def test_a_stroke_is_a_one_wherever_it_is_drawn_and_however_large(page):
    place = page.locator("#pad").bounding_box()
    for left, top, bottom in [(0.5, 0.1, 0.9), (0.2, 0.5, 0.7)]:
        page.get_by_role("button", name="Clear").click()
        x = place["x"] + left * place["width"]
        page.mouse.move(x, place["y"] + top * place["height"])
        page.mouse.down()
        page.mouse.move(x, place["y"] + bottom * place["height"], steps=5)
        page.mouse.up()
        assert answers(page)[0] == "1"


@pytest.mark.parametrize("change", [{"bits": ["w7a7"]}, {"model": "none"}, {"method": "other"}])
def test_a_run_that_is_not_there_is_one_line(maker, results, tmp_path, capsys, change):
    asked = {"model": "digits", "method": "synq", "bits": [*WIDTHS]} | change
    words = [str(results), "--output", str(tmp_path), "--model", asked["model"]]
    assert maker.main([*words, "--method", asked["method"], "--bits", *asked["bits"]]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())
