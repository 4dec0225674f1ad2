"""GPUs counted without torch, from pretended drivers."""

import pytest

from synq.config import gpus
from synq.config.gpus import visible_gpus


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without any sign of a GPU; its folder of programs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "DRIVER", tmp_path / "gpus")
    return tmp_path


def test_a_machine_without_a_driver_has_none(machine):
    assert visible_gpus() == 0


@pytest.mark.parametrize(
    ("chosen", "count"),
    [("", 0), ("0", 1), ("1,3", 2), ("GPU-8a,GPU-9b", 2), ("-1", 0), ("0,-1,1", 1), ("0,,1", 1)],
)
def test_what_was_chosen_is_what_there_is(machine, monkeypatch, chosen, count):
    (machine / "gpus" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus() == count


def test_the_driver_has_a_folder_for_each(machine):
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (machine / "gpus" / name).mkdir(parents=True)
    assert visible_gpus() == 2


@pytest.mark.parametrize(("code", "count"), [(0, 2), (9, 0)])
def test_nvidia_smi_is_asked_where_the_folder_is_hidden(machine, code, count):
    program = machine / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho 'GPU 0: A'\necho 'GPU 1: B'\nexit {code}\n")
    program.chmod(0o755)
    assert visible_gpus() == count
