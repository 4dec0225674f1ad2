"""Logits of networks that return several things, or probabilities."""

import copy
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from synq.errors import ModelError
from synq.models.build import checked
from synq.models.outputs import told

Pair = namedtuple("Pair", "logits aux")
SHAPE = (3, 8, 8)


class Answer(dict):
    """What Hugging Face's networks return, as far as it matters here."""


class Net(nn.Module):
    """Ten classes; ``wrap`` makes something else of the logits."""

    def __init__(self, wrap=lambda logits, features: logits, last=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)
        self.output = nn.Linear(6, 10)
        self.wrap = wrap
        if last is not None:
            self.last = last

    def forward(self, images):
        features = self.conv(images).mean((2, 3))
        logits = self.output(features)
        return self.wrap(self.last(logits) if hasattr(self, "last") else logits, features)


def built(make):
    return checked(make, "net", 10, 3, 8)


def same_logits(model, plain):
    images = torch.rand(4, *SHAPE)
    assert torch.equal(model(images), plain(images))


WRAPS = {
    "entry 0 of a tuple": lambda logits, features: (logits, features),
    "entry 1 of a list": lambda logits, features: [features, logits],
    "logits of a Pair": Pair,
    "logits of a Answer": lambda logits, features: Answer(features=features, logits=logits),
    "out of a dict": lambda logits, features: {"aux": 2 * logits, "out": logits},
    "scores of a dict": lambda logits, features: {"features": features[:1], "scores": logits},
    "logits of a SimpleNamespace": lambda logits, _: SimpleNamespace(loss=None, logits=logits),
}


@pytest.mark.parametrize("text", WRAPS)
def test_the_logits_of_several_outputs_are_taken_and_told(text):
    model = built(lambda: Net(WRAPS[text]))
    assert told(model) == [text]
    assert model.state_dict().keys() == Net().state_dict().keys()
    plain = Net()
    plain.load_state_dict(model.state_dict())
    same_logits(model, plain)
    same_logits(copy.deepcopy(model), plain)


@pytest.mark.parametrize(
    ("wrap", "text"),
    [
        (lambda logits, _: (logits, 2 * logits), "entry 1"),
        (lambda logits, _: {"a": logits, "b": logits, "aux": logits}, "b"),
    ],
)
def test_of_two_that_are_alike_the_other_one_is_told_too(wrap, text):
    (said,) = told(built(lambda: Net(wrap)))
    assert f"({text} would fit as well: " in said


def test_a_network_of_logits_is_left_alone():
    model = built(Net)
    assert told(model) == []
    assert not model._forward_hooks


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Softmax(-1), nn.LogSoftmax(1), nn.Sigmoid()])
@pytest.mark.parametrize("wrap", [lambda logits, _: logits, lambda logits, _: (logits, None)])
def test_a_softmax_or_sigmoid_module_at_the_end_is_taken_off_and_told(last, wrap):
    model = built(lambda: Net(wrap, last))
    assert told(model)[-1] == f"without last, a {type(last).__name__}"
    assert model.state_dict().keys() == Net().state_dict().keys()
    plain = Net()
    plain.load_state_dict(model.state_dict())
    same_logits(model, plain)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda logits, _: logits.softmax(1),
        lambda logits, _: logits.log_softmax(1),
        lambda logits, _: (logits.softmax(1),),
        lambda logits, _: logits.sigmoid(),
        lambda logits, _: {"logits": torch.sigmoid(logits)},
    ],
)
def test_probabilities_by_a_function_are_refused_in_one_line(wrap):
    with pytest.raises(ModelError) as caught:
        built(lambda: Net(wrap))
    assert str(caught.value) == (
        "net gives probabilities, or their logarithms, and logits are needed: "
        "let its forward end before the softmax or sigmoid"
    )


def test_logits_between_0_and_1_are_logits():
    model = built(lambda: Net(lambda logits, _: 0.4 + 0.01 * logits.tanh()))
    assert told(model) == []


def test_a_network_without_a_gradient_is_left_alone():
    assert told(built(lambda: Net(lambda logits, _: logits.detach()))) == []


def test_a_softmax_that_is_not_the_end_stays():
    model = built(lambda: nn.Sequential(Net(last=nn.Softmax(1)), nn.Linear(10, 10)))
    assert told(model) == []
    assert type(model[0].last) is nn.Softmax


def test_a_softmax_that_is_called_twice_is_not_taken_off():
    softmax = nn.Softmax(1)
    with pytest.raises(ModelError, match="gives probabilities"):
        built(lambda: nn.Sequential(Net(last=softmax), softmax))


@pytest.mark.parametrize("output", [None, (), {}, "text", (1, 2), {"a": None}])
def test_outputs_without_logits_are_refused(output):
    with pytest.raises(ModelError, match=f"net gives a {type(output).__name__} for 2 images"):
        built(lambda: Net(lambda *_: output))


def drops(logits, _):
    return torch.nn.functional.dropout(logits, 0.3)  # noisy in evaluation too


def centres(logits, _):
    return logits - logits.mean(0)


@pytest.mark.parametrize(
    ("wrap", "text"),
    [
        (drops, "net gives other logits for the same images a second time"),
        (centres, "net gives other logits for an image alone than beside another one"),
    ],
)
def test_logits_that_are_not_of_the_image_alone_are_refused(wrap, text):
    with pytest.raises(ModelError, match=text):
        built(lambda: Net(wrap))


def test_an_auxiliary_output_is_the_last_that_is_taken():
    model = built(lambda: Net(lambda logits, _: {"aux": logits.flip(1), "pred": logits}))
    assert told(model) == ["pred of a dict"]
