"""The embedded default: its network, and the file of this package that holds its weights."""

from pathlib import Path

import pytest
import torch
from embedded import embedded_model, embedded_teacher

import synq
from synq.config.model import Model
from synq.config.train import Train
from synq.data.datasets import digits
from synq.io.artifacts import file_sha256
from synq.models.digits import resnet20
from synq.models.teacher import read_teacher
from synq.models.weights import load_weights, read_weights
from synq.stages.train import train

FILE = Path(synq.__file__).parent / "models" / "pretrained" / "digits-resnet20.safetensors"


@pytest.fixture(scope="module")
def settings() -> Model:
    return embedded_model()


def test_the_embedded_default_is_a_small_file_of_this_package(settings: Model) -> None:
    assert settings.weights == "package:synq/models/pretrained/digits-resnet20.safetensors"
    assert settings.sha256 == file_sha256(FILE)
    assert FILE.stat().st_size < 1 << 20


def test_its_weights_and_statistics_are_what_float16_holds() -> None:
    tensors = read_weights(FILE)
    kinds = {tensor.dtype for tensor in tensors.values()}
    assert kinds == {torch.float16, torch.int64}  # and the counter of BatchNorm
    assert all(tensor.isfinite().all() for tensor in tensors.values())


def test_it_knows_the_digits(tmp_path: Path) -> None:
    teacher = read_teacher(embedded_teacher(tmp_path), torch.device("cpu"))
    assert teacher.image_shape == (1, 16, 16)
    test = digits("test", 1, 16)
    (images, labels), *more = test.batches(len(test), teacher.mean, teacher.std)
    assert not more
    with torch.no_grad():
        right = (teacher.model(images).argmax(1) == labels).double().mean()
    assert right >= 0.98


def test_its_mean_and_deviation_are_those_of_the_training_images(settings: Model) -> None:
    train_images = digits("train", 1, 16)
    pixels = train_images.read(torch.arange(len(train_images)))
    assert settings.mean == pytest.approx([pixels.mean().item()], abs=1e-3)
    assert settings.std == pytest.approx([pixels.std().item()], abs=1e-3)


def test_the_command_that_made_it_writes_such_a_file(tmp_path: Path, capsys) -> None:
    output = tmp_path / "weights.safetensors"
    settings = Train(epochs=1, batch_size=400)
    train(settings=settings, output=output, device="cpu", threads=1)
    assert file_sha256(output) in capsys.readouterr().out
    made, shipped = read_weights(output), read_weights(FILE)
    assert {name: tensor.dtype for name, tensor in made.items()} == {
        name: tensor.dtype for name, tensor in shipped.items()
    }
    assert load_weights(resnet20(), made, "the file") == ""
