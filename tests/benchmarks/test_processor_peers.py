"""What the comparison with other packages calls right."""

import pytest
import torch
from torch import nn

import gradood
from benchmarks import processor_peers
from benchmarks.processors import Case


@pytest.fixture
def network():
    torch.manual_seed(0)
    parts = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten()
    return nn.Sequential(*parts, nn.Linear(144, 5)).eval()


def test_right_and_wrong(network):
    x = torch.randn(4, 3, 8, 8)
    truth = processor_peers.exact(network, x)
    norms = gradood.gradient_norms(network, x)
    found = dict(zip(norms.names, norms.values.unbind(1), strict=True))
    assert processor_peers.wrong(found, truth) is None
    found["1.bias"] = found["1.bias"] * torch.tensor([1, 1.01, 1, 1])
    assert processor_peers.wrong(found, truth) == "1.bias"
    found["1.bias"] = found["1.bias"] * torch.nan
    assert processor_peers.wrong(found, truth) == "1.bias"


@pytest.mark.filterwarnings("ignore:Full backward hook:UserWarning")
def test_packages_that_fail_are_named():
    pytest.importorskip("backpack")
    case = Case(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), (4, 3, 2, 2))
    found = processor_peers.row("linear", case, "BackPACK", 1)
    assert (found.outcome, found.given, found.parameters) == ("right", 2, 2)
    assert found.over_ours > 0

    class Unknown(nn.Module):
        def forward(self, x):
            raise ValueError("such a model")

    broken = Case(lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 3), Unknown()), (4, 3, 2, 2))
    with pytest.raises(ValueError, match="such a model"):
        processor_peers.row("broken", broken, "BackPACK", 1)
