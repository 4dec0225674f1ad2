"""pytorchcv's table of files: what is known of a network before it is fetched."""

import subprocess
import sys

import pytest

from synq.config import pytorchcv_table as zoo
from synq.errors import ConfigError


def refusal(call, *arguments):
    with pytest.raises(ConfigError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_table_is_read_without_importing_pytorchcv():
    code = (
        "import sys; from synq.config import pytorchcv_table as zoo; "
        "zoo.known('resnet18'); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "synq.config.pytorchcv_table" in done.stdout.split()
    assert not {"pytorchcv", "torch", "numpy"} & set(done.stdout.split())


@pytest.mark.parametrize(
    ("architecture", "classes", "size"),
    [
        ("resnet20_cifar10", 10, 32),
        ("resnet20_cifar100", 100, 32),
        ("resnet20_svhn", 10, 32),
        ("resnet18", 1000, 224),
        ("inceptionv3", 1000, 299),
        ("resneta10", 1000, 224),  # whose size the table leaves out
    ],
)
def test_classes_and_size_follow_from_the_name(architecture, classes, size):
    known = zoo.known(architecture)
    assert (known["classes"], known["image_size"]) == (classes, size)
    assert known["weights"].startswith(f"{architecture}-")


def test_normalisation_is_that_of_the_zoos_training():
    assert zoo.known("resnet20_svhn")["std"] == (0.2023, 0.1994, 0.2010)
    assert zoo.known("resnet20_cifar100")["mean"] == (0.4914, 0.4822, 0.4465)
    assert zoo.known("mobilenetv2_w1")["mean"] == (0.485, 0.456, 0.406)


def test_the_classes_of_an_unknown_dataset_are_not_guessed():
    assert zoo.known("resnet10_cub").keys() == {"weights"}


def test_a_name_that_the_zoo_does_not_have_is_refused_with_the_nearest():
    assert "did you mean resnet20_cifar10?" in refusal(zoo.known, "resnet20_cifar11")
    assert "not in pytorchcv's zoo" in refusal(zoo.known, "qqqqqq")


def test_a_network_without_weights_is_refused():
    assert "no pretrained weights" in refusal(zoo.known, "bam_resnet18")


def test_the_file_is_named_after_its_error_and_hash():
    sha1 = zoo.table()["resnet20_cifar10"]["checksum"]
    file = zoo.file("resnet20_cifar10", zoo.known("resnet20_cifar10")["weights"])
    assert (file.algorithm, file.digest, len(sha1)) == ("sha1", sha1, 40)
    assert file.name == f"resnet20_cifar10-0597-{sha1[:8]}.pth"
    tag = "https://github.com/osmr/imgclsmob/releases/download/v0.0.163"
    assert file.url == f"{tag}/{file.name}.zip"


def test_the_resnet18_of_the_papers_is_a_file_of_its_own():
    former = "resnet18-0982-0126861b"
    assert zoo.known("resnet18")["weights"] != former
    assert zoo.known("resnet18", former)["weights"] == former
    file = zoo.file("resnet18", former, "http://mirror/zoo/")
    assert file.digest == "0126861b4cd7f7b14196b1e01827da688f8bab6d"
    assert file.url == f"http://mirror/zoo/releases/download/v0.0.153/{former}.pth.zip"


@pytest.mark.parametrize("weights", ["resnet18-0982", "resnet34-0000-00000000"])
def test_weights_that_are_no_file_of_the_network_are_refused_with_what_there_is(weights):
    text = refusal(zoo.known, "resnet18", weights)
    assert text.startswith(f"weights is {weights!r}")
    assert text.endswith(f"there is {', '.join(zoo.releases('resnet18'))}")
    assert len(zoo.releases("resnet18")) == 2


def test_without_pytorchcv_the_remedy_is_named(monkeypatch):
    zoo.table.cache_clear()
    monkeypatch.setattr(zoo.importlib.util, "find_spec", lambda _: None)
    assert "pip install" in refusal(zoo.table)
