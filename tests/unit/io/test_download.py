"""The store: whole files under their names, whoever asks and however badly they are served."""

import hashlib
import io
import multiprocessing
import os
import re
import signal
import time
import zipfile

import pytest
from file_server import serving

from synq.config.pytorchcv_table import File
from synq.errors import ArtifactError
from synq.io import download

NAME = "net-0123-abcdef.pth"
CONTENT = bytes(range(256)) * 2000
SHA1 = hashlib.sha1(CONTENT).hexdigest()
ARCHIVE = f"{NAME}.zip"


def zipped(name, content):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, content)
    return buffer.getvalue()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    monkeypatch.setattr(download, "BLOCK", 1 << 14)
    with serving() as running:
        running.files = {NAME: CONTENT, ARCHIVE: zipped(NAME, CONTENT)}
        yield running


def file(server, manner, *, suffix="", digest=SHA1):
    return File(NAME, f"{server.address}/{manner}/{NAME}{suffix}", "sha1", digest)


def refusal(*arguments):
    with pytest.raises(ArtifactError) as caught:
        download.stored(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left(store):
    return sorted(path.name for path in store.iterdir())


@pytest.mark.parametrize("suffix", ["", ".zip"])
@pytest.mark.parametrize("manner", ["good", "cut", "slow"])
def test_a_file_is_brought_once_whole_and_unzipped(tmp_path, server, manner, suffix):
    store = tmp_path / "a" / "store"
    path = download.stored(file(server, manner, suffix=suffix), store)
    assert path == store / NAME
    assert path.read_bytes() == CONTENT
    assert left(store) == [NAME, f"{NAME}.lock"]
    asked = len(server.requests)
    assert asked == (3 if manner == "cut" else 1)
    assert download.stored(file(server, manner, suffix=suffix), store) == path
    assert len(server.requests) == asked


def test_the_beginning_of_a_hash_is_enough(tmp_path, server):
    digest = hashlib.sha256(CONTENT).hexdigest()[:8]
    wanted = file(server, "good", digest=digest)._replace(algorithm="sha256")
    assert download.stored(wanted, tmp_path).is_file()
    assert "has SHA256 " in refusal(wanted._replace(digest="0" * 8), tmp_path)


@pytest.mark.parametrize(
    ("manner", "suffix", "reason"),
    [
        ("gone", ".zip", "answers 404"),
        ("wrong", "", "has SHA1 "),
        ("wrong", ".zip", "is no zip file with"),
        ("always-cut", ".zip", "in 4 attempts: "),
        ("stuck", ".zip", "in 4 attempts: "),
    ],
)
def test_a_failure_says_what_to_get_from_where_and_where_to_put_it(
    tmp_path, server, monkeypatch, manner, suffix, reason
):
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    wanted = file(server, manner, suffix=suffix)
    text = refusal(wanted, tmp_path)
    assert text.startswith(wanted.url)
    assert reason in text
    unzip = ", unzip it" if suffix else ""
    assert text.endswith(f"; download it elsewhere{unzip} and put {NAME} into {tmp_path}")
    assert not (tmp_path / NAME).exists()


def test_a_zip_file_without_the_weights_is_refused(tmp_path, server):
    server.files[ARCHIVE] = zipped("other.pth", CONTENT)
    assert f"no zip file with {NAME} inside" in refusal(
        file(server, "good", suffix=".zip"), tmp_path
    )
    server.files[ARCHIVE] = zipped(NAME, b"other weights")
    assert "has SHA1 " in refusal(file(server, "good", suffix=".zip"), tmp_path)
    assert left(tmp_path) == [f"{NAME}.lock"]


def test_offline_is_one_line_and_a_file_put_there_by_hand_mends_it(tmp_path):
    wanted = File(NAME, f"http://127.0.0.1:9/x/{ARCHIVE}", "sha1", SHA1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(download.time, "sleep", lambda _: None)
        assert f"put {NAME} into {tmp_path}" in refusal(wanted, tmp_path)
    (tmp_path / NAME).write_bytes(CONTENT)
    assert download.stored(wanted, tmp_path) == tmp_path / NAME


def test_a_wrong_file_in_the_store_is_refused_and_stays(tmp_path, server):
    (tmp_path / NAME).write_bytes(b"somebody's own")
    text = refusal(file(server, "good"), tmp_path)
    assert text.startswith(f"{tmp_path / NAME} has SHA1 ")
    assert "delete it" in text
    assert (tmp_path / NAME).read_bytes() == b"somebody's own"
    assert server.requests == []


def test_what_a_broken_download_left_is_gone_on_with(tmp_path, server):
    refusal(file(server, "always-cut", suffix=".zip"), tmp_path)
    (part,) = (name for name in left(tmp_path) if name.endswith(".part"))
    size = (tmp_path / part).stat().st_size
    assert download.stored(file(server, "good", suffix=".zip"), tmp_path).read_bytes() == CONTENT
    assert server.requests[-1][1] == f"bytes={size}-"


def test_a_download_that_trickles_is_given_up_and_gone_on_with(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download, "WINDOW", 0.5)
    start = time.monotonic()
    text = refusal(file(server, "trickle", suffix=".zip"), tmp_path)
    assert re.search(r"in 4 attempts: only \d+ bytes came in \d s; download it elsewhere", text)
    assert time.monotonic() - start < download.TIMEOUT
    # Each attempt went on where the last one was given up, and lost nothing of what had come.
    starts = [int((asked or "bytes=0-")[6:-1]) for _, asked in server.requests]
    assert len(starts) == download.ATTEMPTS
    assert starts == sorted(set(starts))
    assert starts[1] > len(server.files[ARCHIVE]) // 3
    assert download.stored(file(server, "good", suffix=".zip"), tmp_path).read_bytes() == CONTENT


def test_a_slow_download_that_moves_is_waited_for(tmp_path, server, monkeypatch):
    monkeypatch.setattr(download, "WINDOW", 0.1)
    assert download.stored(file(server, "slow"), tmp_path).read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_part_that_is_too_long_is_thrown_away(tmp_path, server):
    (tmp_path / f".{ARCHIVE}.part").write_bytes(b"x" * 10**6)
    assert download.stored(file(server, "good", suffix=".zip"), tmp_path).read_bytes() == CONTENT


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_is_refused(tmp_path, server):
    tmp_path.chmod(0o500)
    assert "cannot be written" in refusal(file(server, "good"), tmp_path)


def test_a_store_that_is_a_file_is_refused(tmp_path, server):
    (tmp_path / "store").write_text("no folder")
    assert "cannot be written" in refusal(file(server, "good"), tmp_path / "store")


def bring(wanted, store, gate):
    gate.wait()
    download.stored(wanted, store)


def test_several_processes_bring_a_file_once(tmp_path, server):
    spawning = multiprocessing.get_context("spawn")
    gate = spawning.Barrier(3)
    arguments = (file(server, "slow", suffix=".zip"), tmp_path, gate)
    processes = [spawning.Process(target=bring, args=arguments) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert len(server.requests) == 1
    assert (tmp_path / NAME).read_bytes() == CONTENT


def test_a_killed_process_blocks_no_other(tmp_path, server):
    spawning = multiprocessing.get_context("spawn")
    gate = spawning.Barrier(1)
    process = spawning.Process(
        target=bring, args=(file(server, "stuck", suffix=".zip"), tmp_path, gate)
    )
    process.start()
    assert server.stuck.wait(120)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not (tmp_path / NAME).exists()
    assert download.stored(file(server, "good", suffix=".zip"), tmp_path).read_bytes() == CONTENT
