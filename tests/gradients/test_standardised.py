"""Weights that are standardised on their way into a convolution: a formula, and no gradient."""

from weakref import ref

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradood import explain, gradient_norms
from gradood.gradients.standardised import StandardisedUse
from gradood.ops import cpp_backend

#: What the formula takes away cancels, and AMX has fewer digits to lose: see docs/limits.md.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12}
if cpp_backend.instruction_set() == "amx":
    TOLERANCE[torch.float32] = 1e-4


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
    assert error < TOLERANCE[dtype]


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


class Read(nn.Module):
    """Two standardised convolutions, and what reads the output of the first."""

    def __init__(self, read):
        super().__init__()
        self.conv, self.read, self.head = Standardised(3, 8, 3), read, Standardised(8, 12, 1)

    def forward(self, x):
        return self.head(self.read(self.conv(x)))


class Around(nn.Module):
    """A ReLU whose output is held is not alone: the same input goes around what reads it."""

    def __init__(self):
        super().__init__()
        self.conv = Standardised(8, 8, 1)

    def forward(self, y):
        return self.conv(functional.relu(y)) + 0.5 * y


#: What reads the output, and how many outputs are at hand: that of the last convolution, which the
#: SiLU behind it saves, always is.
READERS = {
    "saved by a group norm": (nn.GroupNorm(2, 8), 2),
    "saved by an activation": (nn.GELU(), 2),
    "overwritten by a ReLU": (nn.ReLU(inplace=True), 2),
    "a ReLU": (nn.ReLU(), 2),
    "overwritten, but copied before": (nn.SiLU(inplace=True), 2),
    "overwritten, and clamped": (nn.ReLU6(inplace=True), 2),
    "overwritten, and not copied": (nn.LeakyReLU(0.1, inplace=True), 1),
    "a ReLU that nobody holds": (lambda y: functional.relu(y) * 2, 1),
    "a ReLU and something else": (Around(), 1),
    "overwritten otherwise": (lambda y: y.mul_(2), 1),
    "freed": (lambda y: 2 * y, 1),
}


@pytest.fixture
def used(monkeypatch):
    """For every product with ŵ in a backward pass, whether it came from an output."""
    found = []
    computed = StandardisedUse._against_output

    def counted(self):
        products = computed(self)
        found.append(products is not None)
        return products

    monkeypatch.setattr(StandardisedUse, "_against_output", counted)
    return found


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_outputs_that_somebody_holds_are_read(reader, dtype, used):
    torch.manual_seed(0)
    read, count = READERS[reader]
    network, x = model(Read(read)).to(dtype), torch.randn(5, 3, 9, 11).to(dtype)
    found = gradient_norms(network, x).values
    assert sum(used) == count
    exact = gradient_norms(network.double(), x.double(), method="loop").values
    assert ((found - exact).abs() / exact).max() < TOLERANCE[dtype]


@pytest.mark.parametrize("kind", ["bias", "zero gain"])
def test_outputs_that_tell_too_little_are_not_read(kind, used):
    torch.manual_seed(0)
    network, x = model(Standardised(3, 12, 3)), 1e-3 * torch.randn(5, 3, 9, 11)
    with torch.no_grad():
        if kind == "bias":
            network[0].bias.add_(3)
        else:
            network[0].gain[4] = 0
    found = gradient_norms(network, x).values
    assert not any(used)
    exact = gradient_norms(network.double(), x.double(), method="loop").values
    assert ((found - exact).abs() / exact).max() < TOLERANCE[torch.float32]


def test_an_output_that_leads_nowhere_is_freed():
    """In its own graph, which leads back to who holds it, it would be a ring nobody collects."""
    kept = []

    class Aside(Read):
        def forward(self, x):
            kept.append(self.conv(x))
            return super().forward(x)

    network, x = model(Aside(nn.ReLU())), torch.randn(5, 3, 9, 11)
    gradient_norms(network, x)
    kept.clear()
    gradient_norms(network, x)
    (last,) = map(ref, kept)
    kept.clear()
    assert last() is None
