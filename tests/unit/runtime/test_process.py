import pytest
import torch

from synq.errors import ConfigError
from synq.runtime.process import autocast, generator_for, has_bfloat16, resolve_device
from synq.runtime.progress import progress


def test_generator_depends_on_its_key_alone():
    def draw(*key):
        return torch.rand(4, generator=generator_for(*key))

    first = draw(0, "synthesis", 3)
    torch.rand(10)
    assert torch.equal(first, draw(0, "synthesis", 3))
    for other in ((1, "synthesis", 3), (0, "finetune", 3), (0, "synthesis", 4)):
        assert not torch.equal(first, draw(*other))


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda")
    with pytest.raises(ConfigError, match="write auto"):
        resolve_device("gpu0")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused():
    with pytest.raises(ConfigError, match="no GPU here"):
        resolve_device("cuda")


def test_progress_in_a_log_is_plain_lines(capfd):
    assert list(progress(range(3), "work")) == [0, 1, 2]
    text = capfd.readouterr().err
    assert "work: 3/3" in text
    assert "\r" not in text.rstrip("\n")


@pytest.mark.parametrize("there", [True, False])
def test_bfloat16_where_there_are_kernels_for_it_else_float32_said_once(there, monkeypatch, capfd):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: there)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    has_bfloat16.cache_clear()
    images, layer = torch.randn(2, 3), torch.nn.Linear(3, 1)
    for _ in range(2):
        with autocast(images.device, "bfloat16"):
            computed = layer(images).dtype
        assert computed == (torch.bfloat16 if there else torch.float32)
    has_bfloat16.cache_clear()
    assert capfd.readouterr().err.count("precision: float32") == (not there)
