"""The paths of the results: each of its own, read back as it was written."""

from pathlib import Path

import pytest

from synq.config import layout

NAMES = {"model": "net-1", "bits": "w4a4", "method": "synq", "image_set": "hard", "seed": "7"}
NAMES |= {"shard": "classes-0000-0004", "table": "accuracy", "suffix": "md"}
TEMPLATES = {
    name: value
    for name, value in vars(layout).items()
    if name.isupper() and isinstance(value, str) and "{" in value
}


def test_no_two_files_have_one_path():
    files = [path for path in TEMPLATES.values() if "." in path]
    assert len({path.format(**NAMES) for path in files}) == len(files)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_path_gives_its_wildcards_again(name):
    template = TEMPLATES[name]
    found = layout.wildcards(template, template.format(**NAMES))
    assert found
    assert template.format(**found) == template.format(**NAMES)
    assert found.items() <= NAMES.items()


def test_the_table_of_the_results_has_every_artifact():
    text = (Path(__file__).parents[3] / "results" / "README.md").read_text("utf-8")
    example = {"model": "M", "bits": "wXaY", "method": "METHOD", "image_set": "SET", "seed": "S"}
    example |= {"shard": "class-0003", "table": "accuracy", "suffix": "csv"}
    folders = (*layout.ARTIFACTS, "tables")
    missing = [
        path.format(**example)
        for path in TEMPLATES.values()
        if path.startswith(folders) and f"`{path.format(**example)}`" not in text
    ]
    assert missing == []


def test_what_is_there_is_found_in_order_and_nothing_else(tmp_path):
    for path in ("models/b/metrics.json", "models/a/metrics.json", "models/a/more/metrics.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    found = list(layout.found(tmp_path, layout.TEACHER_METRICS))
    assert found == [
        (tmp_path / f"models/{model}/metrics.json", {"model": model}) for model in ("a", "b")
    ]
    assert layout.wildcards(layout.SHARD, "synthetic/a/hard/zero/class-0000.h5") is None
