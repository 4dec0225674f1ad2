"""The students of a run on disk."""

import h5py
import numpy
import pytest
import torch

from synq.errors import ArtifactError
from synq.io.hdf5 import seal
from synq.io.snapshots import Snapshots, write_snapshots

RECORD = {"model": "m", "history": [{"epoch": 0, "held_out": 1.5}]}
STATES = {
    epoch: {
        "conv.weight": torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(epoch)),
        "bn.num_batches_tracked": torch.tensor(epoch),
    }
    for epoch in (0, 2)
}


@pytest.fixture
def path(tmp_path):
    write_snapshots(tmp_path / "snapshots.h5", RECORD, STATES.items())
    return tmp_path / "snapshots.h5"


def refusal(path):
    with pytest.raises(ArtifactError) as caught:
        Snapshots(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_was_written_is_read(path):
    with Snapshots(path) as students:
        assert students.record == RECORD
        assert students.epochs == [0, 2]
        for epoch, state in STATES.items():
            found = students.student(epoch)
            assert found.keys() == state.keys()
            assert all(torch.equal(found[name], state[name]) for name in state)


def test_a_record_may_be_longer_than_hdf5_attributes_usually_are(tmp_path):
    record = {"shard_checksums": ["f" * 64] * 5000}
    write_snapshots(tmp_path / "long.h5", record, STATES.items())
    with Snapshots(tmp_path / "long.h5") as students:
        assert students.record == record


def test_the_same_students_have_the_same_bytes(tmp_path, path):
    write_snapshots(tmp_path / "again.h5", RECORD, STATES.items())
    assert (tmp_path / "again.h5").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.99])
def test_a_truncated_file_or_a_flipped_bit_is_refused(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert "is truncated or " in refusal(path)
    content = bytearray(whole)
    content[int(share * len(whole))] ^= 1
    path.write_bytes(content)
    assert "is truncated or " in refusal(path)


def test_what_is_not_there_or_no_file_of_students_is_refused(tmp_path, path):
    assert "does not exist" in refusal(tmp_path / "none.h5")
    assert "does not exist" in refusal(tmp_path)
    with h5py.File(path, "r+") as file:
        file.attrs["kind"] = "shard"
    seal(path)
    assert "it holds no snapshots" in refusal(path)


def _other_value(file):
    file["epoch-0002/conv.weight"][0, 0, 0, 0] = 7


def _link(file):
    del file["epoch-0000"]
    file["epoch-0000"] = h5py.ExternalLink("elsewhere.h5", "/epoch-0000")


def _absurd(file):
    del file["epoch-0000/conv.weight"]
    file["epoch-0000"].create_dataset("conv.weight", (1 << 40, 9), "f4")


def _absurd_group(file):
    del file["epoch-0000"]
    file.create_dataset("epoch-0000", (4, 1 << 40), "f4", chunks=(1, 1))


def _nested(file):
    file["epoch-0000"].create_group("conv")


def _empty(file):
    for name in list(file):
        del file[name]


def _other_name(file):
    file["last"] = numpy.zeros(3)


@pytest.mark.parametrize(
    "change", [_other_value, _link, _absurd, _absurd_group, _nested, _empty, _other_name]
)
def test_changed_content_is_refused_under_a_right_seal_too(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    seal(path)
    assert "is damaged" in refusal(path)
