"""The program that trains a network whose weights have another size."""

import pytest
import torch

from benchmarks.rescaled import embedded, main, rescaled


@pytest.mark.parametrize("factor", [0.5, 0.03])
def test_the_network_with_other_weights_computes_the_same(factor):
    network = embedded()
    other = rescaled(network, factor)
    name = "features.init_block.conv.weight"
    assert torch.allclose(other.state_dict()[name], factor * network.state_dict()[name])
    images = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(other(images), network(images), rtol=1e-3, atol=1e-3)


def test_the_table_has_a_row_for_each_factor_unit_and_seed(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.rescaled.IMAGES", {"images_per_class": 2, "iterations": 1})
    monkeypatch.setattr("benchmarks.rescaled.TRAINING", {"epochs": 1, "batch_size": 20})
    main(["--factors", "1", "0.5", "--seeds", "0"])
    lines = capsys.readouterr().out.strip().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")][:3] for line in lines[2:]]
    assert cells == [
        ["size", "1", "0"],
        ["size", "0.5", "0"],
        ["one", "1", "0"],
        ["one", "0.5", "0"],
    ]
