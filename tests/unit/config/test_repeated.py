"""Config files in which a name stands twice."""

import pytest

from synq.config.repeated import repeated

ONCE = """
finetune: &own {epochs: 3}
models:
  a: {classes: 2, finetune: {<<: *own, passes: 2}}
  b: {classes: 2, finetune: {<<: *own, passes: 2}}
methods: [{epochs: 1}, {epochs: 1}]
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("", ""),
        ("finetune: {epochs: 4}\n", "finetune stands in lines 2 and 7, and the first one"),
        ("real: {path: a,\n  path: b}\n", "real.path stands in lines 7 and 8"),
        ("test:\n  x: {y: {z: 1, z: 1}}\n", "test.x.y.z stands in lines 8 and 8"),
        ("test: [{z: 1, z: 1}]\n", "test.z stands in lines 7 and 7"),
        ("test: {", ""),  # no YAML: Snakemake says so
    ],
)
def test_a_name_that_stands_twice_is_one_line(tmp_path, more, said):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text(ONCE, "utf-8")
    second.write_text(ONCE + more, "utf-8")
    line = repeated([first, tmp_path / "none.yaml", second])
    assert line.startswith(f"{second}: {said}" if said else "")
    assert bool(line) == bool(said)
    assert repeated([first, first]) == ""


def test_a_json_file_is_read_too(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"grid": {"seeds": [0],\n "seeds": [1]}}', "utf-8")
    assert "grid.seeds stands in lines 1 and 2" in repeated([file])
