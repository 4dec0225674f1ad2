import subprocess
import sys

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


STEPS = """
import sys

import torch
from synq.runtime.process import prepare

print(torch.optim.Adam.step.__code__.co_name == "_use_grad")
if sys.argv[1] == "prepared":
    prepare("cpu", 1)
for kind, more in ((torch.optim.SGD, {"momentum": 0.9, "nesterov": True}), (torch.optim.AdamW, {})):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
    optimizer = kind([weight], lr=0.1, weight_decay=0.01, **more)
    stepped = []
    optimizer.register_step_post_hook(lambda *_: stepped.append(1))
    for _ in range(3):
        optimizer.zero_grad()
        weight.exp().sum().backward()
        optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    assert weight.requires_grad and weight.grad_fn is None and len(stepped) == 3
    print(weight.tolist())
print("torch._dynamo" in sys.modules)
"""


def test_the_optimizers_of_a_job_step_the_same_and_load_no_compiler():
    printed = {}
    for how in ("plain", "prepared"):
        words = [sys.executable, "-c", STEPS, how]
        printed[how] = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    known, *plain, loads = printed["plain"].splitlines()
    _, *own, still = printed["prepared"].splitlines()
    assert len(plain) == 2
    assert plain == own
    if known == "True":  # another torch may load it in another way
        assert (loads, still) == ("True", "False")
