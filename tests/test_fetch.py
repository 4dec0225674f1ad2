import hashlib
import http.server
import threading

import pytest
import torch

from synq.config import Model
from synq.errors import ArtifactError, ModelError
from synq.models import build
from synq.networks import read_teacher
from synq.stages import fetch


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "net.pth"
    model = build("resnet20_cifar10", classes=10, channels=3, image_size=32)
    torch.save(model.state_dict(), path)
    return path.read_bytes()


@pytest.fixture
def server(weights, monkeypatch):
    monkeypatch.setattr(fetch.time, "sleep", lambda _: None)
    monkeypatch.setattr(fetch, "BLOCK", 1 << 14)
    requests = []
    released = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers.get("Range")))
            if self.path == "/gone":
                self.send_error(404)
                return
            if self.path == "/hang":
                self.send_response(200)
                self.send_header("Content-Length", "9")
                self.end_headers()
                released.wait(60)
                return
            start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
            body = (b"x" * len(weights) if self.path == "/wrong" else weights)[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            cut = self.path == "/cut" and len(requests) < 3
            self.wfile.write(body[: len(body) // 3] if cut else body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", requests
        released.set()
        running.shutdown()


def bring(tmp_path, source, weights, **changes):
    settings = Model(
        **{
            "source": "file",
            "architecture": "resnet20_cifar10",
            "classes": 10,
            "image_size": 32,
            "mean": (0.5, 0.5, 0.5),
            "std": (0.2, 0.2, 0.2),
            "weights": source,
            "sha256": hashlib.sha256(weights).hexdigest(),
            **changes,
        }
    )
    output = tmp_path / "teacher.safetensors"
    fetch.fetch(name="net", settings=settings, download=tmp_path / "download", output=output)
    return read_teacher(output, torch.device("cpu"))


def test_a_download_becomes_a_teacher(tmp_path, server, weights):
    teacher = bring(tmp_path, f"{server[0]}/net.pth", weights)
    assert (tmp_path / "download").read_bytes() == weights
    assert teacher.mean == [0.5, 0.5, 0.5]
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_a_broken_connection_goes_on_where_it_broke(tmp_path, server, weights):
    address, requests = server
    bring(tmp_path, f"{address}/cut", weights)
    assert (tmp_path / "download").read_bytes() == weights
    assert requests[0] == ("/cut", None)
    assert requests[1][1] is not None


def test_a_download_that_hangs_is_tried_again_and_told(tmp_path, server, weights, monkeypatch):
    monkeypatch.setattr(fetch, "TIMEOUT", 0.2)
    with pytest.raises(ArtifactError, match="could not be downloaded in 4 attempts"):
        bring(tmp_path, f"{server[0]}/hang", weights)
    assert len(server[1]) == 4
    assert list(tmp_path.iterdir()) == []


def test_wrong_bytes_are_refused_with_both_hashes(tmp_path, server, weights):
    expected = hashlib.sha256(weights).hexdigest()
    actual = hashlib.sha256(b"x" * len(weights)).hexdigest()
    with pytest.raises(ArtifactError, match=f"{actual}, expected {expected}"):
        bring(tmp_path, f"{server[0]}/wrong", weights)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_there_is_refused_at_once(tmp_path, server, weights):
    with pytest.raises(ArtifactError, match="404"):
        bring(tmp_path, f"{server[0]}/gone", weights)
    assert len(server[1]) == 1
    with pytest.raises(ArtifactError, match="cannot be read"):
        bring(tmp_path, str(tmp_path / "none.pth"), weights)


def test_a_path_works_and_a_file_that_is_there_is_not_fetched_again(tmp_path, server, weights):
    local = tmp_path / "local.pth"
    local.write_bytes(weights)
    bring(tmp_path, str(local), weights)
    bring(tmp_path, f"{server[0]}/net.pth", weights)
    assert server[1] == []


def test_weights_of_another_architecture_name_the_keys(tmp_path, weights):
    local = tmp_path / "local.pth"
    local.write_bytes(weights)
    with pytest.raises(ModelError, match=r"lacks: features\."):
        bring(tmp_path, str(local), weights, architecture="resnet56_cifar10")
