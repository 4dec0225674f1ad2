import pytest
import torch
from torch import nn

from synq.models.hooks import recorded


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


def hooks(network):
    return sum(len(module._forward_hooks) for module in network.modules())


def test_outputs_and_inputs_are_recorded_with_their_graph():
    network, x = model(), torch.randn(5, 3)
    with (
        recorded({"first": network[0]}) as outputs,
        recorded({"last": network[2]}, inputs=True) as inputs,
    ):
        network(x)
    torch.testing.assert_close(outputs["first"], network[0](x))
    torch.testing.assert_close(inputs["last"], network[:2](x))
    assert outputs["first"].requires_grad


def test_record_is_in_the_order_of_execution():
    network = model()
    with recorded({"last": network[2], "first": network[0]}) as record:
        network(torch.randn(1, 3))
    assert list(record) == ["first", "last"]


def test_transform_replaces_the_output():
    network, x = model(), torch.randn(5, 3)
    with recorded({"first": network[0]}, transform=torch.zeros_like) as record:
        output = network(x)
    torch.testing.assert_close(output, network[2].bias.expand(5, 2))
    assert not record["first"].any()


def test_a_record_that_is_apart_keeps_its_gradient_beside_an_activation_in_place():
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(inplace=True)).eval()
    x = torch.randn(4, 2, 5, 5)
    leaf = lambda output: output.detach().requires_grad_()  # noqa: E731
    with recorded({"map": network[0]}, transform=leaf, apart=True) as record:
        output = network(x)
    (gradient,) = torch.autograd.grad(output.sum(), record["map"])
    torch.testing.assert_close(record["map"], network[0](x))
    torch.testing.assert_close(gradient, (record["map"] > 0).float())


def test_hooks_are_gone_after_the_block_and_after_an_exception():
    network = model()
    with recorded({"first": network[0]}):
        assert hooks(network) == 1
    assert hooks(network) == 0
    with pytest.raises(RuntimeError), recorded({"first": network[0]}):
        network(torch.randn(5, 4))
    assert hooks(network) == 0
