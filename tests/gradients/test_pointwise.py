"""Convolutions of single pixels, whose gradient of the input is one product for all samples."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gradood import gradient_norms
from gradood.gradients.rules import conv
from tests.gradients.oracle import assert_as_promised, randomise
from tests.gradients.test_standardised import Standardised

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def calls(monkeypatch):
    """How many gradients of inputs were computed here."""
    found = []
    computed = conv.ConvCall.passed_on

    def counted(self, d):
        found.append(d.shape)
        return computed(self, d)

    monkeypatch.setattr(conv.ConvCall, "passed_on", counted)
    monkeypatch.setattr(conv, "_WORTHWHILE", 1)
    return found


class Twice(nn.Module):
    """One convolution used twice, whose output is overwritten and shared between branches."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        first = self.conv(x)
        return functional.relu_(self.conv(first)) + first


def network(*middle):
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), *middle, nn.SiLU(), nn.Flatten(2), nn.Flatten(), nn.LazyLinear(4)
    )


#: The layers in the middle, and how many pixels wide the picture is.
TAKEN = {
    "bias": (lambda: [nn.Conv2d(8, 12, 1)], 6),
    "no bias, one pixel": (lambda: [nn.Conv2d(8, 5, 1, bias=False)], 3),
    "standardised": (lambda: [Standardised(8, 12, 1)], 7),
    "overwritten output": (lambda: [nn.Conv2d(8, 12, 1), nn.ReLU(inplace=True)], 5),
    "used twice": (lambda: [Twice()], 5),
    "batch norm": (lambda: [nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1)], 6),
    "one dimension": (lambda: [nn.Flatten(2), nn.Conv1d(8, 9, 1)], 6),
    "dilation": (lambda: [nn.Conv2d(8, 12, 1, dilation=3)], 6),
}
LEFT = {
    "stride": (lambda: [nn.Conv2d(8, 12, 1, stride=2)], 6),
    "padding": (lambda: [nn.Conv2d(8, 12, 1, padding=1)], 5),
    "groups": (lambda: [nn.Conv2d(8, 12, 1, groups=4)], 6),
    "taps": (lambda: [nn.Conv2d(8, 12, (1, 2))], 6),
    "transposed": (lambda: [nn.ConvTranspose2d(8, 12, 1)], 6),
    "many pixels": (lambda: [nn.Conv2d(8, 12, 1)], 9),
}


@pytest.mark.parametrize("case", TAKEN | LEFT)
def test_norms_are_those_of_a_loop(case, calls):
    torch.manual_seed(0)
    layers, width = (TAKEN | LEFT)[case]
    model, x = network(*layers()), torch.randn(5, 3, width, width)
    with torch.no_grad():
        model(x)
    model = randomise(model).eval()
    found = gradient_norms(model, x)
    assert bool(calls) == (case in TAKEN)
    assert_as_promised(found, model, x)


@pytest.mark.parametrize("kind", ["float64", "bfloat16", "autocast", "many samples", "threads"])
def test_others_are_left_to_pytorch(kind, calls):
    torch.manual_seed(0)
    model, x = network(nn.Conv2d(8, 12, 1)), torch.randn(5, 3, 6, 6)
    model(x)
    if kind in ("float64", "bfloat16"):
        model, x = model.to(getattr(torch, kind)), x.to(getattr(torch, kind))
    if kind == "many samples":
        x = x.repeat(4, 1, 1, 1)
    if kind == "threads":
        torch.set_num_threads(2)
    with torch.autocast("cpu", torch.bfloat16, kind == "autocast"):
        norms = gradient_norms(model.eval(), x)
    assert not calls and norms.values.isfinite().all()


def test_gradient_is_that_of_autograd():
    torch.manual_seed(0)
    x = torch.randn(7, 300, 2, 3, requires_grad=True)
    weight = torch.randn(200, 300, 1, 1)
    d = torch.randn(7, 3, 2, 200).permute(0, 3, 2, 1)  # channels last, and transposed
    call = conv.ConvCall.bind(torch.conv2d, x, weight)
    assert call.passes_on()
    exact = torch.einsum("npij,pf->nfij", d.double(), weight[:, :, 0, 0].double())
    found = call.passed_on(d)
    assert found.is_contiguous() and (found - exact).abs().max() < 1e-5 * exact.abs().max()


def test_every_label_has_a_pass(calls):
    torch.manual_seed(0)
    model, x = network(nn.Conv2d(8, 12, 1)), torch.randn(5, 3, 6, 6)
    model(x)
    labels = ["all_hot", "zero_hot"]
    norms = gradient_norms(model.eval(), x, label=labels).values
    assert len(calls) == 2
    for k, label in enumerate(labels):
        torch.testing.assert_close(norms[:, k], gradient_norms(model, x, label=label).values)


def test_small_products_are_left_to_pytorch():
    x, weight = torch.randn(5, 8, 4, 4, requires_grad=True), torch.randn(12, 8, 1, 1)
    assert not conv.ConvCall.bind(torch.conv2d, x, weight).passes_on()
