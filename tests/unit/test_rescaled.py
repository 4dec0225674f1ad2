"""The program that trains a network whose weights have another size."""

import pytest
import torch

from benchmarks.rescaled import MEAN, STD, OfBytes, embedded, main, rescaled


@pytest.mark.parametrize(("factor", "spread"), [(0.5, 1), (0.03, 1), (1.0, 1000), (0.1, 1000)])
def test_the_network_with_other_weights_computes_the_same(factor, spread):
    network = embedded()
    other = rescaled(network, factor, spread)
    name = "features.init_block.conv.weight"
    factors = (other.state_dict()[name] / network.state_dict()[name]).flatten(1)
    assert torch.allclose(factors, factors[:, :1].expand_as(factors), rtol=1e-3)
    assert factors.max() <= factor * spread**0.5 * 1.01
    assert (factors.max() / factors.min() > 10) == (spread > 1)
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(other(images), network(images), rtol=1e-3, atol=1e-3)


def test_the_network_of_bytes_computes_the_same():
    network = embedded()
    images = torch.rand(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = OfBytes(network)(255 * images)
        torch.testing.assert_close(found, network((images - MEAN) / STD), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("pixels", ["normalised", "bytes"])
def test_the_table_has_a_row_for_each_factor_unit_and_seed(monkeypatch, capsys, pixels):
    monkeypatch.setattr("benchmarks.rescaled.IMAGES", {"images_per_class": 2, "iterations": 1})
    monkeypatch.setattr("benchmarks.rescaled.TRAINING", {"epochs": 1, "batch_size": 20})
    main(["--factors", "1", "0.5", "--seeds", "0", "--pixels", pixels])
    lines = capsys.readouterr().out.strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")][:4] for line in lines[2:]]
    assert cells == [
        ["size", "1", "1", "0"],
        ["size", "0.5", "1", "0"],
        ["one", "1", "1", "0"],
        ["one", "0.5", "1", "0"],
    ]
