"""``synq page`` and ``synq verdict``: what is there, and what is missing, without a traceback."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy
import pytest
import torch
from small_results import RUN, SHARDS, TEACHER, another, evaluated, planned, tabulated

from synq import cli
from synq.config.images import TestSet
from synq.data.datasets import digits
from synq.io.artifacts import read_json, write_json
from synq.models.teacher import read_teacher
from synq.quantization.student import read_student
from synq.reporting.page import Run, render
from synq.stages.tables import write_ablation

pytestmark = pytest.mark.xdist_group("small results")  # which one process makes, once


@pytest.fixture
def results(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made, tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    tabulated(tmp_path / "results")
    planned(tmp_path / "results", RUN)
    capsys.readouterr()
    return tmp_path / "results"


class Page(HTMLParser):
    """The texts, ids, and addresses of a page, whose elements are closed in their order."""

    EMPTY = {"meta", "input", "link", "br"}  # noqa: RUF012

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.words, self.open = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        if tag not in self.EMPTY:
            self.open.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(value)
            if name in ("href", "src", "xlink:href", "action"):
                self.links.append(value)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.EMPTY:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] not in ("script", "style"):
            self.words.append(" ".join(data.split()))


def paged(results):
    assert cli.main(["page", str(results)]) == 0
    return Page((results / "index.html").read_text("utf-8"))


def missing(page):
    """What the page says is not there; nothing where it is complete."""
    if "Not complete" not in page.words:
        return ""
    first = page.words.index("Not complete")
    return "\n".join(page.words[first : page.words.index("Verdict", first)])


def test_a_whole_folder_is_one_page_that_asks_for_nothing(results):
    page = paged(results)
    assert missing(page) == ""
    assert len(page.ids) == len(set(page.ids))
    anchors = {link[1:] for link in page.links if link.startswith("#")}
    assert anchors <= set(page.ids)
    # Other addresses are the pictures, which are in the file itself.
    others = [link for link in page.links if not link.startswith("#")]
    assert all(link.startswith("data:image/png;base64,") for link in others)
    text = (results / "index.html").read_text("utf-8")
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest", text)
    assert len(text) < 5e6


def test_the_page_has_the_numbers_of_the_run_and_the_file_to_ship(results):
    page = paged(results)
    metrics = read_json(results / RUN / "metrics.json", "metrics")
    assert f"{metrics['selected']['top1']:.2f}" in page.words
    assert f"{RUN}/student.packed.safetensors" in page.words
    assert metrics["students_checksum"] in page.words
    command = f"snakemake --cores all --configfile mine.yaml -- results/{RUN}/metrics.json"
    assert command.replace("results/", f"{results}/", 1) in page.words


def test_a_size_that_was_counted_is_marked(results):
    run = results / RUN
    packed = read_json(run / "export.json", "export")["packed_bytes"]
    assert f"{packed / 1000:.1f}" in paged(results).words
    (run / "export.json").unlink()
    counted = read_json(run / "metrics.json", "metrics")["weight_bytes"]
    assert f"~{counted / 1000:.1f}" in paged(results).words


def test_of_images_without_labels_agreement_is_shown_and_judged(results, capsys):
    data = digits("test", 1, 16)
    numpy.savez("images.npz", images=data.read(torch.arange(90)).numpy())
    evaluated(results, TestSet(dataset="arrays", path="images.npz"))
    assert "net: 90 real images without labels" in capsys.readouterr().out
    metrics = read_json(results / RUN / "metrics.json", "metrics")
    network = read_teacher(results / TEACHER, torch.device("cpu"))
    student, _ = read_student(results / RUN / "student.safetensors", network)
    pixels = (data.read(torch.arange(90)) - 0.5) / 0.3
    with torch.no_grad():
        other = int((student(pixels).argmax(1) != network.model(pixels).argmax(1)).sum())
    assert metrics["teacher"]["top1"] is None
    assert metrics["selected"]["other"] == metrics["selected"]["lost"] == other
    assert metrics["selected"]["top1"] == pytest.approx(100 * (90 - other) / 90)
    for points, said in ((100, "within the 100 points that"), (0.001, "and no label says which")):
        tabulated(results, points=points)
        page = paged(results)
        assert missing(page) == ""
        text = "\n".join(page.words)
        assert "In percent: agreement with the original, on real images without labels" in text
        assert "90 real images without labels" in text
        assert said in text or other == 0


def test_figures_are_files_too_and_those_of_gone_runs_are_removed(results):
    (results / "figures").mkdir()
    (results / "figures/old.svg").touch()
    paged(results)
    names = {path.name for path in (results / "figures").iterdir()}
    assert "old.svg" not in names
    assert {"accuracy-net.svg", "images-net-hard.svg", "spectra-net-hard.svg"} <= names


def test_what_layers_cost_and_what_parts_are_worth_is_shown_where_it_was_measured(results):
    layers = [{"layer": "one", "divergence": 0.2, "weight_divergence": 0.1}]
    about = {"model": "net", "bits": "w4a4", "method": "synq", "seed": 0, "image_set": "hard"}
    place = results / "models/net/sensitivity/w4a4/synq"
    place.mkdir(parents=True)
    write_json(place / "seed0.json", "sensitivity", {**about, "images": 8, "layers": layers})
    (place / "seed1.json").write_text("?")
    run = another(results, "w2a2", top1=9.0)
    metrics = [f"{name}/metrics.json" for name in (RUN, run)]
    for name, method in ((RUN, "synq"), (run, "none")):
        path = results / name / "metrics.json"
        content = read_json(path, "metrics") | {"bits": "w4a4", "method": method}
        write_json(path, "metrics", content)
    write_ablation(
        metrics=[Path(name) for name in metrics],
        run_folder=results,
        full="synq",
        output=results / "tables/ablation.md",
    )
    page = paged(results)
    assert "sensitivity/w4a4/synq/seed1.json" in missing(page)
    names = {path.name for path in (results / "figures").iterdir()}
    assert {"sensitivity-net-w4a4-synq-seed0.svg", "ablation-net-w4a4.svg"} <= names


def test_what_was_measured_by_an_older_program_lacks_its_figures_and_nothing_else(results):
    names = {path.name for path in figures_of(results)}
    assert {"confusion-net-w4a4-synq.svg", "difficulty-net-hard.svg"} <= names
    assert {"weights-net-hard.svg", "activations-net-hard.svg"} <= names
    reference = results / "models/net/metrics.json"
    metrics = read_json(reference, "teacher metrics")
    assert "test images" in (results / "figures/spectra-net-hard.svg").read_text("utf-8")
    for key in ("confusion", "spectrum"):
        del metrics[key]
    write_json(reference, "teacher metrics", metrics)
    assert names - {path.name for path in figures_of(results)} == {"confusion-net-w4a4-synq.svg"}
    assert "test images" not in (results / "figures/spectra-net-hard.svg").read_text("utf-8")


def figures_of(results):
    assert missing(paged(results)) == ""
    return (results / "figures").iterdir()


def test_what_is_not_there_or_no_results_is_bad_usage(tmp_path, capsys):
    for path in (tmp_path / "none", tmp_path):
        for command in ("page", "verdict"):
            assert cli.main([command, str(path)]) == 2
            assert capsys.readouterr().err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_to_be_made_is_said_to_be_missing(results):
    planned(results, RUN, "runs/net/w2a2/synq/seed0")
    page = paged(results)
    assert "net w2a2 synq seed 0: not there: metrics.json" in missing(page)
    assert "not measured" in page.words


@pytest.mark.parametrize("name", ["metrics.json", "export.json"])
@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"kind": "metrics", "format": 1}'])
def test_a_damaged_file_or_one_of_another_version_is_named(results, name, content):
    (results / RUN / name).write_text(content)
    page = paged(results)
    assert f"{RUN}/{name}" in missing(page)


def test_metrics_of_an_older_program_without_counts_of_classes_are_shown(results):
    path = results / RUN / "metrics.json"
    metrics = read_json(path, "metrics")
    del metrics["per_class"]
    write_json(path, "metrics", metrics)
    assert missing(paged(results)) == ""


def test_metrics_that_lack_what_is_shown_are_no_traceback(results):
    path = results / RUN / "metrics.json"
    metrics = read_json(path, "metrics")
    del metrics["teacher"]
    write_json(path, "metrics", metrics)
    assert "metrics.json lacks" in missing(paged(results))


@pytest.mark.parametrize("name", [SHARDS[0], "tables/verdict.json", "jobs.json"])
def test_whatever_is_damaged_the_page_does_not_look_complete(results, name):
    (results / name).write_text("?")
    assert name.rpartition("/")[2] in missing(paged(results))


@pytest.mark.parametrize(
    "name", [SHARDS[0], "tables/verdict.json", "jobs.json", f"{RUN}/student.onnx"]
)
def test_whatever_is_gone_the_page_does_not_look_complete(results, name):
    (results / name).unlink()
    assert name.rpartition("/")[2] in missing(paged(results))


def test_an_empty_folder_of_runs_says_so(tmp_path, capsys):
    (tmp_path / "runs").mkdir()
    page = paged(tmp_path)
    assert "Quantization: no run yet" in page.words
    assert "verdict.json" in missing(page)


def test_the_row_of_a_run_says_that_its_verdict_is_on_all_seeds(results):
    """One seed that lost less than is allowed, and another that lost more."""
    full = read_json(results / RUN / "metrics.json", "metrics")["teacher"]["top1"]
    others = [another(results, seed=seed, top1=full - lost) for seed, lost in ((1, 0.5), (2, 9.5))]
    tabulated(results, 1.0, others)
    words = paged(results).words
    assert words.count("Not accepted (mean of 2 seeds)") == 3  # in all rows of w4a4
    assert words.count("Not accepted") == 1  # the verdict itself
    tabulated(results, 1.0, (others[0],))
    assert "Accepted" in paged(results).words


def changed(results, run, name, **values):
    path = results / run / f"{name}.json"
    write_json(path, name, read_json(path, name) | values)


def test_layers_and_maps_are_those_of_a_trained_student_where_there_is_one(results):
    """Of the fewest bits, with the network's names of classes."""
    untrained, wider = another(results, "w2a2"), another(results, "w8a8")
    metrics = read_json(results / RUN / "metrics.json", "metrics")
    for run in (RUN, wider):
        changed(results, run, "metrics", selected={**metrics["selected"], "epoch": 1})
    calibrated = {**metrics["selected"], "epoch": 0}
    changed(results, untrained, "metrics", selected=calibrated)
    names = [f"digit {number}" for number in range(10)]
    changed(results, RUN, "export", names=names)
    words = "\n".join(paged(results).words)
    assert "of the student W4A4 by synq of seed 0, before (calibrated) and after" in words
    for figure in ("images-net-hard", "attention-net-hard", "confusion-net-w4a4-synq"):
        assert "digit 5" in (results / f"figures/{figure}.svg").read_text("utf-8")
    for run in (RUN, wider):
        changed(results, run, "metrics", selected=calibrated)
    words = "\n".join(paged(results).words)
    assert "of the student W2A2 by synq of seed 0, which is shipped as it was calibrated" in words
    assert "calibrated" not in (results / "figures/weights-net-hard.svg").read_text("utf-8")


def test_a_verdict_on_other_students_is_said_and_refused(results, capsys):
    path = results / RUN / "metrics.json"
    write_json(path, "metrics", {**read_json(path, "metrics"), "students_checksum": "other"})
    assert "another state of that run" in missing(paged(results))
    capsys.readouterr()
    assert cli.main(["verdict", str(results)]) == 2
    assert f"is of other students than {RUN}/metrics.json" in capsys.readouterr().err


@pytest.mark.parametrize(("points", "code"), [(100.0, 0), (0.0, 1), (-1.0, 0)])
def test_the_exit_code_of_a_verdict_follows_it(results, capsys, points, code):
    run = another(results, "w2a2", top1=0.0)
    tabulated(results, points, (RUN, run))
    capsys.readouterr()
    assert cli.main(["verdict", str(results)]) == code
    told = capsys.readouterr().out
    assert told == (results / "tables/verdict.md").read_text("utf-8")
    assert "of 22 layers" in told


def test_the_table_ends_with_the_verdict(results):
    tabulated(results, 100.0)
    last = (results / "tables/accuracy.md").read_text("utf-8").splitlines()[-1]
    assert last.startswith("net at w4a4 by synq: accepted; ")


def test_names_and_remarks_are_text_and_no_elements(results):
    names = {"model": "<b>net", "bits": "w4a4", "method": "a</script>", "seed": "0"}
    path = results / RUN / "metrics.json"
    metrics = read_json(path, "metrics")
    metrics |= {"seconds": {}, "remark": "<img src=x>", "export": None}
    text = render("results", [], [Run(names, metrics), Run(names, None)], [], {}, ["<i>gone"])
    page = Page(text)
    assert "<img src=x>" in page.words
    assert "<i>gone" in page.words
    data = re.search(r'id="data">(.*?)</script>', text, re.DOTALL)
    assert "run-<b>net-w4a4-a</script>-seed0" in json.loads(data[1])


def test_a_network_without_maps_has_a_page_all_the_same(results, monkeypatch, capsys):
    def fail(*_):
        raise RuntimeError("element 0 of tensors does not require grad")

    monkeypatch.setattr("synq.stages.page.maps", fail)
    page = paged(results)
    assert missing(page) == ""
    assert "no maps of where net looks: element 0" in capsys.readouterr().out
    assert not list((results / "figures").glob("attention*"))
