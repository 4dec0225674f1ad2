"""A network of a user's own, and what quantizing it gives."""

import pytest
import torch
from own_network import FEW, INPUT, Own

import synq


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Own()


@pytest.fixture(scope="session")
def result():
    torch.manual_seed(0)
    return synq.quantize(Own(), **INPUT, **FEW)
