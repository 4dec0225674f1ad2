"""A synthesis that is interrupted between batches gives the images of one that was not."""

from dataclasses import replace

import pytest
import torch
from reference_values import teacher
from small_results import TEACHER
from small_results import teacher as write_network

from synq.config.synthesis import Synthesis
from synq.runtime.process import generator_for
from synq.stages import synthesize as stage
from synq.synthesis.resume import Batches
from synq.synthesis.synthesize import synthesize

SHAPE = (3, 32, 32)
LABELS = torch.tensor([0, 3, 3, 9, 1, 2])
SHORT = Synthesis(iterations=3, batch_size=2)
KINDS = [
    {},
    {"parameters": "generator", "swing": 2},
    {"parameters": "fourier", "begin": "leaves", "augment": 0.5},
]


class Ending(Batches):
    """Ends the work when so many batches are kept."""

    def __init__(self, *args, after):
        super().__init__(*args)
        self.after = after

    def save(self, number, *args):
        super().save(number, *args)
        if number + 1 == self.after:
            raise KeyboardInterrupt


def made(settings, kept=None, seed=0):
    return synthesize(teacher(), LABELS, SHAPE, settings, generator_for(seed), kept=kept)


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("changes", KINDS)
def test_what_goes_on_makes_the_images_of_what_was_not_interrupted(
    changes, after, tmp_path, capsys
):
    settings, output = replace(SHORT, **changes), tmp_path / "shard.h5"
    with pytest.raises(KeyboardInterrupt):
        made(settings, Ending(output, {"seed": 0}, after=after))
    again = made(settings, Batches(output, {"seed": 0}))
    assert f"going on after {after} of 3 batches" in capsys.readouterr().out
    for own, whole in zip(again, made(settings), strict=True):
        assert torch.equal(own, whole)


def test_batches_of_another_record_or_damaged_ones_are_not_taken(tmp_path, capsys):
    output = tmp_path / "shard.h5"
    with pytest.raises(KeyboardInterrupt):
        made(SHORT, Ending(output, {"code": "a"}, after=2))
    assert torch.equal(made(SHORT, Batches(output, {"code": "b"})).images, made(SHORT).images)
    first, second, _ = sorted((tmp_path / "shard.work").iterdir())
    second.write_bytes(second.read_bytes()[:-9])
    capsys.readouterr()
    assert torch.equal(made(SHORT, Batches(output, {"code": "b"})).images, made(SHORT).images)
    assert "going on after 1 of 3 batches" in capsys.readouterr().out
    first.unlink()
    assert Batches(output, {"code": "b"}).resume(generator_for(0)) == []


def test_a_single_batch_and_those_of_one_generator_are_not_kept(tmp_path):
    kept = Batches(tmp_path / "shard.h5", {})
    made(replace(SHORT, batch_size=6), kept)
    made(replace(SHORT, parameters="conditional", target="labels"), kept)
    assert not kept.folder.exists()


def test_a_shard_goes_on_where_it_was_ended_and_clears_its_work(tmp_path, monkeypatch, capsys):
    write_network(tmp_path / TEACHER, 0)
    settings = Synthesis(images_per_class=2, iterations=2, batch_size=2)

    def shard(name, **changes):
        stage.synthesize_shard(
            teacher=tmp_path / TEACHER,
            output=tmp_path / name / "shard.h5",
            classes=[0, 1, 2],
            seed=0,
            settings=replace(settings, **changes),
            device="cpu",
            threads=1,
        )
        return (tmp_path / name / "shard.h5").read_bytes()

    whole = shard("whole")
    assert "going on" not in capsys.readouterr().out
    with monkeypatch.context() as patched:
        patched.setattr(stage, "Batches", lambda *args: Ending(*args, after=2))
        with pytest.raises(KeyboardInterrupt):
            shard("parts")
    work = tmp_path / "parts" / "shard.work"
    assert len([*work.iterdir()]) == 2
    # Other settings make other images, which these are no part of.
    shard("parts", bn_weight=0.5)
    assert "going on" not in capsys.readouterr().out
    assert not work.exists()
    with monkeypatch.context() as patched:
        patched.setattr(stage, "Batches", lambda *args: Ending(*args, after=2))
        with pytest.raises(KeyboardInterrupt):
            shard("parts")
    assert shard("parts") == whole
    assert "going on after 2 of 3 batches" in capsys.readouterr().out
    assert not work.exists()
