"""Why jobs have failed: which lines of which logs are told."""

import os

from synq.config.reasons import reasons


def write(path, text, time=200.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text)
    os.utime(path, (time, time))


def test_the_lines_of_this_run_are_told_once_with_their_log(tmp_path):
    write(tmp_path / "fetch/a.log", b"begun\nsynq: error: one\nsynq: error: one\n")
    write(tmp_path / "fetch/b.log", b"synq: error: one\n")
    write(tmp_path / "finetune/a/b.log", b"\xff\nsynq: error: two\n", time=100.0)
    write(tmp_path / "finetune/a/old.log", b"synq: error: three\n", time=99.0)
    write(tmp_path / "finetune/a/right.log", b"it says synq: error: no\n")
    write(tmp_path / "finetune/a/notes.txt", b"synq: error: four\n")
    assert reasons(str(tmp_path), 100.0) == [
        f"{tmp_path}/fetch/a.log (and 1 more): synq: error: one",
        f"{tmp_path}/finetune/a/b.log: synq: error: two",
    ]
    assert reasons(str(tmp_path / "none"), 0.0) == []
