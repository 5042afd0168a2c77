"""Weights that are standardised on their way into a convolution: a formula, and no gradient."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradood import explain, gradient_norms


class Standardised(nn.Conv2d):
    """A convolution of weights that a batch norm over rows has standardised, as timm's are."""

    def __init__(self, *sizes, scaled=True, squared=False, **options):
        super().__init__(*sizes, **options)
        self.squared = squared
        self.gain = nn.Parameter(torch.rand(self.out_channels, 1, 1, 1) + 0.5) if scaled else None

    def forward(self, x):
        rows = self.weight.reshape(1, len(self.weight), -1)
        gain = None
        if self.gain is not None:
            gain = (self.gain * (self.gain if self.squared else 0.3)).view(-1)
        made = functional.batch_norm(rows, None, None, gain, training=True, momentum=0.0, eps=1e-3)
        made = made.reshape_as(self.weight)
        return functional.conv2d(
            x, made, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def model(*middle):
    return nn.Sequential(
        *middle, nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 4)
    ).eval()


CASES = {
    "unscaled": lambda: model(Standardised(3, 12, 3, padding=1, scaled=False)),
    "scaled": lambda: model(Standardised(3, 12, 3, padding=1)),
    "squared gain": lambda: model(Standardised(3, 12, 3, squared=True)),
    "pointwise, stride": lambda: model(
        Standardised(3, 8, 1, stride=(2, 1)), Standardised(8, 12, 1)
    ),
    "stride, dilation, no bias": lambda: model(
        Standardised(3, 12, 3, stride=2, padding=2, dilation=2, bias=False)
    ),
    "groups": lambda: model(Standardised(3, 8, 3), Standardised(8, 12, 3, groups=4)),
    "depthwise": lambda: model(
        Standardised(3, 12, 1), Standardised(12, 12, 3, padding=1, groups=12)
    ),
    "overwritten output": lambda: model(
        Standardised(3, 8, 3), nn.ReLU(inplace=True), Standardised(8, 12, 3)
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_are_those_of_a_loop(case, dtype):
    torch.manual_seed(0)
    network, x = CASES[case](), torch.randn(5, 3, 9, 11)
    found = gradient_norms(network.to(dtype), x.to(dtype))
    rules = {row.algorithm for row in explain(network, x.to(dtype))}
    assert "standardised" in rules and "sum" not in rules
    exact = gradient_norms(network.double(), x.double(), method="loop").values
    error = ((found.values - exact).abs() / exact).max()
    assert error < (1e-5 if dtype == torch.float32 else 1e-12)


def test_gradients_that_cancel_are_formed():
    """The gradient of every row points along the row itself, but for a thousandth."""
    torch.manual_seed(0)
    network = model(Standardised(3, 12, 3, scaled=False, bias=False))
    with torch.no_grad():
        network[-1].weight.fill_(0.01)
    # One output position, whose patch is the first row's weight.
    row = network[0].weight[0].detach()
    x = (row + 1e-3 * torch.randn_like(row))[None].repeat(3, 1, 1, 1)
    with torch.no_grad():
        network[0].weight.copy_(row[None] + 1e-3 * torch.randn_like(network[0].weight))
    found = gradient_norms(network, x)
    exact = gradient_norms(network.double(), x.double(), method="loop").values
    assert ((found.values - exact).abs() / exact).max() < 1e-4
