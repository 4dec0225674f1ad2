"""``synq.quantize`` and its like: what they give, what they leave alone, and what they refuse."""

import copy
import io
import sys
from dataclasses import replace
from functools import partial
from importlib import resources

import numpy
import onnx
import pytest
import torch
from embedded import ROOT
from own_network import FEW, INPUT, Own
from PIL import Image
from torch import nn
from torch.nn.utils import prune
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import synq
from synq.api.given import Given, checked
from synq.config.images import Data
from synq.data.datasets import folder
from synq.errors import ModelError
from synq.io.artifacts import read_checkpoint
from synq.quantization.packed import unpack
from synq.reporting.changes import Changes


def states_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def refusal(call, *arguments, **more):
    with pytest.raises(synq.UserError) as caught:
        call(*arguments, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_student_is_a_module_that_gives_logits_at_its_bits(result):
    images = torch.rand(5, 3, 8, 8)
    logits = result.student(images)
    assert logits.shape == (5, 3)
    assert not logits.requires_grad
    assert not result.student.training
    assert len(result.record["history"]) == 3
    for name in ("conv1", "conv2", "output"):
        layer = result.student.get_submodule(name)
        for channel in layer.weight_quantizer.rounded(layer.weight):
            assert len(channel.unique()) <= 16


def test_the_same_call_gives_the_same_student_and_another_seed_another(result):
    torch.manual_seed(0)
    network = Own()
    again = synq.quantize(network, **INPUT, **FEW)
    assert states_equal(again.student.state_dict(), result.student.state_dict())
    other = synq.quantize(network, **INPUT, **FEW, seed=1)
    assert not states_equal(other.student.state_dict(), result.student.state_dict())


def test_the_network_and_the_process_stay_as_they_were(network):
    network.train()
    before = copy.deepcopy(network.state_dict())
    threads, deterministic = torch.get_num_threads(), torch.backends.cudnn.deterministic
    state = torch.random.get_rng_state()
    synq.quantize(network, **INPUT, **{**FEW, "threads": threads + 1})
    assert states_equal(network.state_dict(), before)
    assert network.training
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not network._forward_hooks
    assert torch.get_num_threads() == threads
    assert torch.backends.cudnn.deterministic == deterministic
    assert torch.equal(torch.random.get_rng_state(), state)


def test_images_that_were_made_before_give_the_same_student(network, result):
    few = {key: value for key, value in FEW.items() if key != "finetune"}
    images = synq.synthesize(network, **INPUT, **few)
    assert torch.equal(images.pixels, result.images.pixels)
    assert repr(images) == "<24 images of 3x8x8, 3 classes>"
    few = {key: value for key, value in FEW.items() if key != "synthesis"}
    again = synq.quantize(network, **INPUT, **few, images=images)
    assert states_equal(again.student.state_dict(), result.student.state_dict())
    assert again.record["image_set"] == "given"


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 16, 16), (2, 50, 50)])
def test_a_notebook_shows_some_images_of_each_class(shape):
    images = synq.ImageSet(torch.randn(30, *shape), torch.arange(30) % 3)
    picture = Image.open(io.BytesIO(images._repr_png_()))
    side = shape[1] * max(1, 48 // shape[1])
    assert picture.size == (3 * side, 4 * side)
    assert len({*picture.convert("L").tobytes()}) > 100


FEW_IMAGES = {key: value for key, value in FEW.items() if key != "finetune"}


def test_own_images_need_no_batchnorm():
    torch.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.GroupNorm(2, 4), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )
    few = {key: value for key, value in FEW.items() if key != "synthesis"}
    text = refusal(synq.quantize, network, **INPUT, **few)
    assert "no BatchNorm layer" in text
    assert "method few-shot" in text
    assert "images=synq.synthesize(OTHER, ...)" in text
    images = synq.ImageSet(torch.rand(24, 3, 8, 8), torch.arange(24) % 3)
    found = synq.quantize(network, **INPUT, **few, images=images, method="few-shot")
    assert found.student(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_images_of_another_network_are_converted():
    """ConvNeXt and its like: BatchNorm of a relative says what images look like."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1)
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(4, 3))
    images = synq.synthesize(Own().eval(), **INPUT, **FEW_IMAGES)
    assert (images.mean, images.std) == (INPUT["mean"], INPUT["std"])
    few = {key: value for key, value in FEW.items() if key != "synthesis"}
    other = {"image_shape": (3, 12, 12), "mean": [0.0] * 3, "std": [1.0] * 3}
    found = synq.quantize(network, **other, **few, images=images)
    assert found.images.image_shape == (3, 12, 12)
    assert found.images.labels.tolist() == images.labels.tolist()
    # Resizing keeps an image's mean, about; that of pixels in [0, 1], which this network takes.
    pixels = images.images(torch.arange(24)) * 0.25 + 0.5
    made = found.images.images(torch.arange(24))
    assert (made.mean((2, 3)) - pixels.mean((2, 3))).abs().max() < 0.2
    # Where nobody said what they were normalised by, they are taken as they are, or refused.
    plain = synq.synthesize(Own().eval(), image_shape=INPUT["image_shape"], **FEW_IMAGES)
    assert plain.mean is None
    text = refusal(synq.quantize, network, **other, **few, images=plain)
    assert "give mean and std, to synthesize or to ImageSet" in text


def test_pixels_are_clamped_where_it_is_known_what_black_and_white_are(network):
    few = {key: value for key, value in FEW.items() if key != "finetune"}
    known = synq.synthesize(network, **INPUT, **few)
    pixels = known.pixels * torch.tensor(INPUT["std"])[:, None, None]
    pixels += torch.tensor(INPUT["mean"])[:, None, None]
    assert pixels.min() >= -1e-2
    assert pixels.max() <= 1 + 1e-2
    unknown = synq.synthesize(network, image_shape=INPUT["image_shape"], **few).pixels
    black, white = ((end - 0.45) / 0.25 for end in (0.0, 1.0))
    assert ((unknown < black) | (unknown > white)).any()


def test_classes_are_made_alone_where_they_are_named(network):
    few = {key: value for key, value in FEW.items() if key != "finetune"}
    images = synq.synthesize(network, image_shape=(3, 8, 8), **few, of_classes=[2])
    assert images.labels.tolist() == [2] * 8
    text = refusal(synq.synthesize, network, image_shape=(3, 8, 8), **few, of_classes=[])
    assert text == "of_classes is empty; name classes, or leave it out for all"


def test_the_selected_epoch_is_that_of_the_smallest_held_out_loss(network):
    rough = {"learning_rate": 3.0, "rates": "fixed", "epochs": 3, "schedule": "steps"}
    few = {**FEW, "finetune": {**FEW["finetune"], **rough, "select": "held_out"}}
    found = synq.quantize(network, **INPUT, **few)
    losses = [entry["held_out"] for entry in found.record["history"]]
    best = losses.index(min(losses))
    assert found.record["selected"] == best < 3
    # Without a schedule an epoch does not know how many follow.
    few["finetune"] |= {"epochs": best, "select": "last"}
    again = synq.quantize(network, **INPUT, **few)
    assert states_equal(again.student.state_dict(), found.student.state_dict())


def test_a_saved_student_is_loaded_with_the_network_it_was_made_from(network, result, tmp_path):
    result.save(tmp_path / "student.safetensors")
    student = synq.load(tmp_path / "student.safetensors", network)
    assert states_equal(student.state_dict(), result.student.state_dict())
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(student(images), result.student(images))
    with torch.no_grad():
        network.conv1.weight += 1
    assert "was made from another model" in refusal(
        synq.load, tmp_path / "student.safetensors", network
    )
    assert "does not exist" in refusal(synq.load, tmp_path / "none", network)


def test_the_packed_file_and_the_onnx_file_are_of_this_student(result, tmp_path):
    result.save_packed(tmp_path / "packed")
    tensors, record = read_checkpoint(tmp_path / "packed", "packed")
    student = copy.deepcopy(result.student)
    student.load_state_dict({**student.state_dict(), **unpack(tensors, record)})
    images = torch.rand(4, 3, 8, 8)
    assert torch.equal(student(images), result.student(images))
    found = result.to_onnx(tmp_path / "student.onnx")
    assert found["agreement"] == 100
    assert found["student_sha256"] == record["student_sha256"]
    onnx.checker.check_model(tmp_path / "student.onnx")


def test_names_order_the_folders_and_go_into_the_file(network, tmp_path):
    names = ["pear", "apple", "fig"]
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8), (9, 9, 9)).save(tmp_path / name / "1.png")
    for test in (str(tmp_path), [(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))]):
        result = synq.quantize(network, **INPUT, **FEW, names=names, test=test)
        assert result.run.test.names == tuple(names)
        found = result.to_onnx(tmp_path / "student.onnx")
        assert found["names"] == names


def test_the_report_says_what_was_quantized_and_how_it_was_measured(result, tmp_path):
    lines = result.report().splitlines()
    assert lines[0] == "Own at w4a4 by synq-plus, seed 0"
    assert lines[1].startswith("quantized: the weights of 3 of 3 layers, the inputs of 2 of 3, ")
    assert "24 (natural)" in lines[2]
    assert lines[3].startswith("agreement with the network on 6 held-out synthetic images: ")
    result.save_packed(tmp_path / "packed")
    size = (tmp_path / "packed").stat().st_size
    assert lines[4].startswith(f"size: {size / 1000:.1f} kB packed, ")
    assert result.report() in repr(result)


def test_the_size_is_counted_where_no_packed_file_can_be_written(result, monkeypatch):
    def refuse(student):
        raise ModelError("cannot be packed")

    monkeypatch.setattr("synq.api.result.pack", refuse)
    counted = f"size: ~{result.record['weight_bytes'] / 1000:.1f} kB packed, as counted, "
    assert replace(result).report().splitlines()[4].startswith(counted)


def test_the_report_remarks_a_training_that_gained_nothing_and_how_surely(result):
    def remarks(student, lost):
        trained = Changes(other=lost, lost=lost, gained=0)
        measured = replace(
            result.measured, calibrated=80.0, student=student, images=1000, trained=trained
        )
        lines = replace(result, measured=measured).report().splitlines()
        return [line for line in lines if line.startswith("remark: the training gained nothing")]

    assert remarks(80.0, 0) == []
    (sure,) = remarks(78.0, 20)
    assert "finetune={'epochs': 0} gives the calibrated student" in sure
    # One image, which is as likely as not another one with other images.
    (unsure,) = remarks(79.9, 1)
    assert "gained nothing that 1,000 held-out synthetic images could show" in unsure
    assert "known to ± 0.14 points" in unsure
    assert "epochs" not in unsure


@pytest.mark.parametrize(("restarts", "share"), [(1, "a tenth"), (2, "a hundredth")])
def test_the_report_warns_of_a_training_that_diverged(result, restarts, share):
    first, *rest = result.record["history"]
    history = [{**first, "restarts": restarts}, *rest]
    lines = replace(result, record={**result.record, "history": history}).report().splitlines()
    assert lines[:-1] == result.report().splitlines()
    assert "diverged at finetune.learning_rate" in lines[-1]
    assert f"began anew at {share} of it" in lines[-1]


@pytest.mark.parametrize("epochs", [0, 1])
def test_accuracy_is_measured_on_batches_of_the_callers(network, epochs):
    images, labels = torch.rand(10, 3, 8, 8), torch.arange(10) % 3
    few = {**FEW, "finetune": {"epochs": epochs, "holdout": 0.0, "batch_size": 8}}
    loader = DataLoader(TensorDataset(images, labels), 4)
    found = synq.quantize(network, **INPUT, **few, test=loader)
    with torch.no_grad():
        right = (found.student(images).argmax(1) == labels).sum()
    assert found.measured.student == pytest.approx(10 * int(right))
    assert "top-1 on 10 test images: full precision" in found.report()


def batches_of(count, size=4):
    """Random images with the labels 0 to 2, of which each read gives the same."""
    generator = torch.Generator().manual_seed(3)
    images, labels = torch.rand((count, 3, 8, 8), generator=generator), torch.arange(count) % 3
    return DataLoader(TensorDataset(images, labels), size)


@pytest.mark.parametrize("kind", [iter, list, lambda batches: batches])
def test_the_onnx_file_is_compared_on_the_batches_that_were_measured_on(network, tmp_path, kind):
    loader = batches_of(10)
    few = {**FEW, "export": {"test_images": 700}}
    found = synq.quantize(network, **INPUT, **few, test=kind(loader))
    record = found.to_onnx(tmp_path / "student.onnx")
    assert record["test_images"] == found.measured.images == 10
    assert record["torch_top1"] == pytest.approx(found.measured.student)
    assert 0 <= record["runtime_top1"] <= 100


def test_the_onnx_file_is_compared_on_a_folder_of_test_images(network, tmp_path):
    for number, name in enumerate("abc"):
        (tmp_path / "test" / name).mkdir(parents=True)
        for place in range(2):
            picture = Image.new("RGB", (8, 8), (80 * number, 40 * place, 90))
            picture.save(tmp_path / "test" / name / f"{place}.png")
    few = {**FEW, "export": {"test_images": 4}}
    found = synq.quantize(network, **INPUT, **few, test=tmp_path / "test")
    assert found.measured.images == 6
    assert found.to_onnx(tmp_path / "student.onnx")["test_images"] == 4


def test_of_images_without_labels_agreement_is_measured(network, tmp_path):
    (tmp_path / "own").mkdir()
    for number in range(6):
        picture = Image.new("RGB", (8, 8), (40 * number, 90, 10 * number))
        picture.save(tmp_path / "own" / f"{number}.png")
    found = synq.quantize(network, **INPUT, **FEW, test=tmp_path / "own")
    images = folder(Data(path=str(tmp_path / "own")), 3, 8)
    ((pixels, _),) = images.batches(6, INPUT["mean"], INPUT["std"])
    with torch.no_grad():
        same = (found.student(pixels).argmax(1) == network.eval()(pixels).argmax(1)).sum()
    assert found.measured.student == pytest.approx(100 * int(same) / 6)
    assert not found.measured.real
    assert "agreement with the network on 6 real images without labels: calib" in found.report()


@pytest.mark.parametrize(
    "kind",
    [
        lambda images: images,
        lambda images: iter(images.split(4)),
        lambda images: DataLoader(TensorDataset(images), 4),
    ],
    ids=["one tensor", "an iterator of tensors", "a loader of lists of one"],
)
def test_of_batches_without_labels_agreement_is_measured(network, tmp_path, kind):
    images = batches_of(10).dataset.tensors[0]
    few = {**FEW, "export": {"test_images": 8}}
    found = synq.quantize(network, **INPUT, **few, test=kind(images))
    with torch.no_grad():
        same = (found.student(images).argmax(1) == network.eval()(images).argmax(1)).sum()
    assert found.measured.student == pytest.approx(10 * int(same))
    assert "agreement with the network on 10 real images without labels: calib" in found.report()
    record = found.to_onnx(tmp_path / "student.onnx")
    assert record["test_images"] == 8
    assert record["test_agreement"] == 100.0
    assert record["runtime_top1"] is None


def test_one_batch_of_images_and_labels_is_no_two_batches(network):
    images, labels = batches_of(10).dataset.tensors
    found = synq.quantize(network, **INPUT, **FEW, test=(images, labels))
    assert found.measured.real
    assert found.measured.images == 10


def test_batches_with_labels_and_without_are_not_mixed(network):
    image, label = torch.rand(2, 3, 8, 8), torch.tensor([0, 1])
    whole = synq.inspect(network, image_shape=(3, 8, 8)).network
    assert "with labels and without" in refusal(list, checked([(image, label), image], whole))


def test_of_many_test_images_some_are_compared_evenly_spread(network):
    loader = batches_of(10)
    given = Given(loader, synq.inspect(network, image_shape=(3, 8, 8)).network, 10)
    batches = list(given.batches(4, 1))
    assert [len(images) for images, _ in batches] == [1] * 4
    images = torch.cat([images for images, _ in batches])
    assert torch.equal(images, loader.dataset.tensors[0][[0, 3, 6, 9]])
    assert torch.cat([labels for _, labels in batches]).tolist() == [0, 0, 0, 0]
    gone = Given([], given.network, 10)
    assert "0 when it was read again" in refusal(list, gone.batches(4, 1))


def test_an_inspection_shows_what_the_command_shows(network):
    found = synq.inspect(network, image_shape=(3, 8, 8), method="synq")
    assert found.fits
    text = str(found)
    assert text.startswith("Own: images of 3x8x8, 3 classes\n")
    assert "conv1/" not in text
    assert text.endswith("\nfits")
    without = synq.inspect(nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), image_shape=(3, 8, 8))
    assert not without.fits
    assert str(without).splitlines()[-1].startswith("does not fit: the model has no BatchNorm")


class Answering(Own):
    def forward(self, x):
        return {"hidden": x, "logits": super().forward(x)}


class Failing(Own):
    def forward(self, x):
        return super().forward(x).no_such_thing


def test_the_classes_are_counted_in_the_logits(network):
    assert synq.inspect(Answering(), image_shape=(3, 8, 8)).network.classes == 3
    maps = nn.Sequential(nn.Conv2d(3, 4, 3))
    assert "gives no logits" in refusal(synq.inspect, maps, image_shape=(3, 8, 8))
    one = nn.Sequential(nn.Flatten(), nn.Linear(192, 1))
    for function in (synq.inspect, partial(synq.quantize, mean=[0] * 3, std=[1] * 3)):
        assert "Sequential gives one number an image" in refusal(
            function, one, image_shape=(3, 8, 8)
        )
    assert "Failing fails for images of 3x8x8" in refusal(
        synq.inspect, Failing(), image_shape=(3, 8, 8)
    )


class Spare(Own):
    """With a head for its training, activations and layers of its own, that no answer calls."""

    def __init__(self):
        super().__init__()
        self.spare, self.head = nn.ReLU(), nn.Sequential(nn.Linear(4, 4), nn.ReLU())


@pytest.mark.parametrize("method", ["synq-plus", "integers", "synq"])
def test_activations_that_no_answer_calls_are_no_matter(method):
    torch.manual_seed(0)
    made = synq.quantize(Spare(), **INPUT, **FEW, method=method)
    assert made.student(torch.rand(2, 3, 8, 8)).shape == (2, 3)


class Several(Own):
    def forward(self, x):
        return x.flatten(1)[:, :5], super().forward(x)


def test_of_outputs_of_several_widths_the_caller_says_which_are_the_logits():
    torch.manual_seed(0)
    told = refusal(synq.quantize, Several(), **INPUT, **FEW)
    assert "gives several outputs, of 5 and 3 numbers an image" in told
    made = synq.quantize(Several(), **INPUT, **FEW, classes=3)
    assert "logits: entry 1 of a tuple" in made.report()


@pytest.mark.parametrize("change", [torch.no_grad(), torch.inference_mode()])
def test_logits_without_a_gradient_are_refused_before_any_image(network, change):
    network.forward = change(network.eval().forward)
    wrapped = nn.Sequential(network)
    assert "no gradient to the image" in refusal(synq.quantize, wrapped, **INPUT, **FEW)
    (problem,) = synq.inspect(wrapped, image_shape=(3, 8, 8), method="synq-plus").problems
    assert "no gradient to the image" in problem


class Overwriting(Own):
    def forward(self, x):
        x = x.exp()
        x += x.relu()
        return super().forward(x)


def test_a_gradient_that_the_forward_spoils_is_one_line():
    (problem,) = synq.inspect(Overwriting(), image_shape=(3, 8, 8), method="synq-plus").problems
    assert problem.startswith("its logits give no gradient to the image (")
    assert problem.endswith("as x = x + y")


def test_a_network_of_synchronised_batchnorm_is_one_of_batchnorm(network, result):
    other = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    made = synq.quantize(other, **INPUT, **FEW)
    assert states_equal(made.student.state_dict(), result.student.state_dict())
    assert type(other.bn1) is nn.SyncBatchNorm


def remembering(network):
    network.last = network(torch.rand(1, 3, 8, 8))
    return network


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (remembering, "cannot be copied"),
        (lambda network: network.to("meta"), "no values in conv1.weight, on the meta device"),
        (lambda network: nn.Sequential(network, nn.LazyLinear(3)), "no size of 1.weight yet"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_cannot_be_copied_or_has_no_values_is_one_line(network, change, text):
    for classes in ({}, {"classes": 3}):
        assert text in refusal(synq.quantize, change(network), **INPUT, **FEW, **classes)


def with_images(images=None, labels=None):
    images = torch.rand(2, 3, 8, 8) if images is None else images
    return {"test": [(images, torch.tensor([0, 1]) if labels is None else labels)]}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (with_images(torch.zeros(2, 3, 8, 8).byte()), "images of uint8; write finite floats"),
        (with_images(torch.full((2, 3, 8, 8), torch.nan)), "images of float32 (NaN or infinite)"),
        (with_images(labels=torch.tensor([0.0, 0.9])), "labels of float32; write the numbers"),
        (with_images(labels=torch.tensor([True, False])), "labels of bool; write the numbers"),
        (with_images(labels=torch.eye(3)[:2]), "labels of [2, 3], not of [2]"),
        (with_images(numpy.zeros((2, 3, 8, 8), "float32")), "nor pairs of tensors"),
        ({"names": ["a", "b"]}, "names has 2 names of classes, the network 3"),
        ({"names": "no/such/file"}, "no/such/file cannot be read"),
    ],
)
def test_what_is_measured_on_is_looked_at_before_the_work(network, changes, text, monkeypatch):
    monkeypatch.setattr("synq.api.run.image_set_of", None)  # calling it would fail
    assert text in refusal(synq.quantize, network, **INPUT, **FEW, **changes)


class Stream(IterableDataset):
    """As many have it, without a length."""

    def __iter__(self):
        return iter([(torch.rand(3, 8, 8), number % 3) for number in range(5)])


def test_batches_need_no_length(network):
    loader = DataLoader(Stream(), 2)
    assert synq.quantize(network, **INPUT, **FEW, test=loader).measured.images == 5


def test_an_empty_batch_is_no_matter(network):
    test = [*with_images()["test"], (torch.rand(0, 3, 8, 8), torch.zeros(0).long())]
    assert synq.quantize(network, **INPUT, **FEW, test=test).measured.images == 2


def test_a_shape_may_be_of_numpys_numbers(network):
    shape = tuple(numpy.array([3, 8, 8]))
    assert synq.inspect(network, image_shape=shape).network.image_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"calibration": {"ends_bits": 1}}, "ends_bits is 1; write 2 to 8, or 0"),
        ({"bits": "w1a4"}, "bits is 'w1a4'; weights of 1 bits are not among 2 to 8"),
        ({"method": "synq-pluss"}, "method is 'synq-pluss'; did you mean synq-plus?"),
        ({"seed": -1}, "seed is -1; write a whole number from 0 on"),
        ({"mean": ()}, "mean is missing"),
        ({"image_shape": (224, 224)}, "image_shape is (224, 224); write (channels, height, width)"),
        ({"image_shape": (3, 8, 16)}, "image_shape is (3, 8, 16)"),
        ({"mean": [0.5]}, "mean has 1 values, but the images have 3 channels"),
        ({"std": [0.5, 0.5, 0.0]}, "std[2] is 0.0"),
        ({"classes": 10}, "gives [2, 3] for 2 images of 8 px, not [2, 10]"),
        ({"finetune": {"epochz": 3}}, "finetune.epochz is not a setting; did you mean epochs?"),
        ({"finetune": 3}, "finetune is 3, not a mapping"),
        ({"finetune": {"processes": 2, "holdout": 0.25}}, "finetune.processes is 2"),
        ({"synthesis": {"iterations": 0}}, "synthesis.iterations is 0"),
        ({"synthesis": {"images_per_class": 2}}, "holds out no image of network"),
        ({"synthesis": {"images_per_class": 10**9}}, "over half of this machine's memory"),
        ({"method": "few-shot"}, "method few-shot trains on real images, and none are named"),
        ({"device": "cuda:99"}, "device is 'cuda:99'"),
        ({"test": "no/such/folder"}, "no/such/folder is not a folder"),
        ({"test": {"dataset": "digitz"}}, "test.dataset is 'digitz'; did you mean digits?"),
        ({"test": 3}, "test is a int"),
        ({"test": []}, "test gives no images"),
        ({"test": [{"image": torch.rand(2, 3, 8, 8)}]}, "nor pairs of tensors, images and labels"),
        ({"test": [[]]}, "nor pairs of tensors, images and labels"),
        ({"test": [torch.rand(3, 8, 8)]}, "images of [3, 8, 8], not of [n, 3, 8, 8]"),
        ({"test": [(torch.rand(2, 3, 9, 9), torch.tensor([0, 1]))]}, "images of [2, 3, 9, 9]"),
        ({"test": [(torch.rand(2, 3, 8, 8), torch.tensor([0]))]}, "labels of [1], not of [2]"),
        ({"test": torch.zeros(2, 3, 8, 8).byte()}, "images of uint8; write finite floats"),
        ({"test": [(torch.rand(2, 3, 8, 8), torch.tensor([0, 7]))]}, "the label 7"),
        (
            {"images": synq.ImageSet(torch.rand(9, 3, 9, 9), torch.zeros(9).long())},
            "images are given, and settings of how to make them too",
        ),
        (
            {
                "images": synq.ImageSet(torch.rand(9, 3, 9, 9), torch.zeros(9).long()),
                "synthesis": None,
            },
            "the images are (3, 9, 9)",
        ),
    ],
)
def test_what_the_caller_can_mend_is_one_line(network, changes, text):
    few = {**INPUT, **FEW, "finetune": {"epochs": 0, "holdout": 0.25}, **changes}
    assert text in refusal(synq.quantize, network, **few)


def test_real_images_come_by_settings_and_need_mean_and_std(network, tmp_path):
    pixels = numpy.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), "uint8")
    numpy.savez(tmp_path / "real.npz", images=pixels, labels=numpy.arange(30) % 3)
    real = {"dataset": "arrays", "path": str(tmp_path / "real.npz"), "images_per_class": 6}
    few = {"device": "cpu", "threads": 1, "progress": False, "real": real}
    images = synq.synthesize(network, **INPUT, **few, image_set="few-shot")
    made = (images.images(torch.arange(18)) * 0.25 + 0.5) * 255
    shown = {tuple(image.round().int().flatten().tolist()) for image in made.permute(0, 2, 3, 1)}
    assert shown <= {tuple(image.flatten().tolist()) for image in pixels}
    training = FEW["finetune"]
    found = synq.quantize(network, **INPUT, **few, method="few-shot", finetune=training)
    assert torch.equal(found.images.pixels, images.pixels)
    text = refusal(synq.synthesize, network, image_shape=(3, 8, 8), **few, image_set="few-shot")
    assert "give their mean and std" in text


def test_mean_and_std_may_be_tensors_or_arrays(network, result):
    given = {"mean": torch.tensor([0.5] * 3), "std": numpy.array([0.25] * 3)}
    again = synq.quantize(network, **{**INPUT, **given}, **FEW)
    assert again.record["input"] == result.record["input"]


def test_what_is_no_network_is_refused():
    assert "model is a str, not a torch.nn.Module" in refusal(synq.quantize, "resnet", **INPUT)


def pruned(network):
    prune.l1_unstructured(_first(network), "weight", 0.5)
    return network


def normed(network):
    nn.utils.weight_norm(_first(network))
    return network


def parametrized(network):
    nn.utils.parametrizations.weight_norm(_first(network))
    return network


def _first(network):
    return next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))


def test_without_training_every_activation_may_stay_in_full_precision(network):
    changes = {
        "calibration": {"keep_bits": {"relu/*": "float"}},
        "finetune": {"epochs": 0, "holdout": 0.25},
    }
    made = synq.quantize(network, **INPUT, **{**FEW, **changes})
    assert made.student(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_the_report_remarks_what_the_table_would(result):
    first, *rest = result.record["history"]
    worse = [first | {"held_out": 0.1}, *(entry | {"held_out": 1.0} for entry in rest)]
    other = replace(result, record={**result.record, "history": worse})
    assert "the held-out loss was 0.1 after epoch 0 and 1 after the last" in other.report()
    assert (
        "the held-out loss was"
        not in replace(
            result,
            record={**result.record, "history": [entry | {"held_out": 1.0} for entry in worse]},
        ).report()
    )


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (pruned, "makes its weight before each forward"),
        (normed, "makes its weight before each forward"),
        (parametrized, "makes its weight before each forward"),
        (torch.compile, "is what torch.compile gave"),
        (lambda model: nn.Sequential(torch.compile(model)), "0 of Sequential is what torch.comp"),
        (partial(torch.jit.trace, example_inputs=torch.zeros(1, 3, 8, 8)), "TorchScript"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_has_no_layers_to_replace_is_refused(network, change, text):
    other = change(copy.deepcopy(network).eval())
    for call in (synq.inspect, synq.quantize):
        given = {"image_shape": INPUT["image_shape"]} if call is synq.inspect else INPUT
        for classes in ({}, {"classes": 3}):
            assert text in refusal(call, other, **given, **classes)


@pytest.mark.parametrize(
    ("pixels", "labels", "text"),
    [
        (torch.rand(3, 8, 8), torch.arange(3), "not [N, C, H, W]"),
        (torch.rand(3, 3, 8, 8), torch.arange(2), "3 images need as many"),
        (torch.rand(3, 3, 8, 8), torch.rand(3), "whole numbers"),
        (torch.full((3, 3, 8, 8), torch.nan), torch.arange(3), "not finite"),
    ],
)
def test_images_that_are_none_are_refused(pixels, labels, text):
    assert text in refusal(synq.ImageSet, pixels, labels)


def test_progress_is_shown_unless_it_is_not_wanted(network, capsys):
    few = {key: value for key, value in FEW.items() if key != "finetune"}
    synq.synthesize(network, image_shape=(3, 8, 8), **few)
    assert capsys.readouterr().err == ""
    synq.synthesize(network, image_shape=(3, 8, 8), **{**few, "progress": True})
    assert "synthesis" in capsys.readouterr().err


def test_an_interruption_ends_it_and_leaves_nothing(network, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    before, threads = copy.deepcopy(network.state_dict()), torch.get_num_threads()
    monkeypatch.setattr("synq.api.run.calibrate_student", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synq.quantize(network, **INPUT, **{**FEW, "threads": threads + 1})
    assert torch.get_num_threads() == threads
    assert states_equal(network.state_dict(), before)


def test_methods_and_image_sets_are_those_of_the_config():
    assert "synq-plus" in synq.methods()
    assert "natural" in synq.image_sets()
    packaged = resources.files("synq.config").joinpath("config.yaml").read_text("utf-8")
    assert packaged == (ROOT / "config.yaml").read_text("utf-8")
    assert {"quantize", "UserError"} <= {*dir(synq)}
    assert issubclass(ModelError, synq.UserError)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        _ = synq.quantise
    assert "synq.api.run" in sys.modules
