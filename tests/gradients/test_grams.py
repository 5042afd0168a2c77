"""Logit-Jacobian Grams against autograd in float64, and against the norms they contain."""

import copy

import pytest
import torch
from torch import nn

import gradood
from gradood.data import embedded_classifier, embedded_images
from gradood.errors import InputError
from gradood.gradients.labels import loss_gradient
from tests.gradients.edge_models import Apply
from tests.gradients.oracle import randomise, reference_norms
from tests.gradients.test_edge_cases import CASES

LABELS = ("all_hot", "zero_hot", "uniform", "predicted", "one_hot:1", "top_k_hot:2", "k_hot:2")


def reference_grams(model, x):
    """``[N, L, C, C]`` by a loop: one sample, one logit, one gradient at a time."""
    fresh = copy.deepcopy(model).double()
    parameters = [p.requires_grad_() for p in fresh.parameters()]
    grams = []
    for n in range(len(x)):
        rows = x[[n, n]].double() if x.is_floating_point() else x[[n, n]]
        out = fresh(rows)
        logits = getattr(out, "logits", out)[0]
        pulled = [
            torch.autograd.grad(z, parameters, retain_graph=True, allow_unused=True) for z in logits
        ]
        by_parameter = []
        for p, gradients in zip(parameters, zip(*pulled, strict=True), strict=True):
            parts = [torch.zeros_like(p) if g is None else g for g in gradients]
            jacobian = torch.stack(parts).reshape(len(parts), -1)
            by_parameter.append(jacobian @ jacobian.T)
        grams.append(torch.stack(by_parameter))
    return torch.stack(grams)


def assert_grams(grams, expected, tolerance=1e-9):
    assert grams.values.shape == expected.shape
    scale = expected.abs().amax((0, 2, 3)).clamp_min(1e-14 * expected.abs().max())
    error = (grams.values.double() - expected).abs() / scale[None, :, None, None]
    worst = int(error.amax((0, 2, 3)).argmax())
    assert error.max() <= tolerance, f"{grams.names[worst]}: {float(error.max()):.2e}"


@pytest.mark.parametrize("name", CASES)
def test_grams_equal_a_float64_loop(name):
    torch.manual_seed(0)
    model, x = CASES[name]()
    model = randomise(model).double().eval()
    x = x.double() if x.is_floating_point() else x
    assert_grams(gradood.gradient_grams(model, x), reference_grams(model, x))


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_what_no_rule_covers_is_polarised(method):
    model = randomise(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))).double()
    x = torch.randn(4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert_grams(gradood.gradient_grams(model, x, method=method), reference_grams(model, x))


def test_a_parameter_of_one_logit_alone_has_zeros_elsewhere():
    def forward(m, x):
        return torch.stack([m.a(x).squeeze(1), m.b(x.tanh()).squeeze(1)], 1)

    model = randomise(Apply(forward, a=nn.Linear(4, 1), b=nn.Linear(4, 1))).double()
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grams = gradood.gradient_grams(model, x)
    assert_grams(grams, reference_grams(model, x))
    assert grams.values[:, grams.names.index("a.weight"), 1].abs().max() == 0


@pytest.fixture(scope="module")
def classified():
    model, images = embedded_classifier(), embedded_images("fashion-mnist")[:6]
    return model, images, gradood.gradient_grams(model, images)


@pytest.mark.parametrize("loss", ["bce", "ce", "bce_softmax", "logit"])
@pytest.mark.parametrize("label", LABELS)
def test_grams_hold_the_norms_of_every_label_and_loss(classified, label, loss):
    model, images, grams = classified
    if (label, loss) == ("zero_hot", "ce"):
        with pytest.raises(InputError, match="positive sum"):
            grams.norms(label, loss=loss)
        return
    expected = gradood.gradient_norms(model, images, label=label, loss=loss)
    found = grams.norms(label, loss=loss)
    assert found.names == expected.names and torch.equal(found.logits, grams.logits)
    # Rounding is relative to the sum of what may cancel.
    delta = loss_gradient(grams.logits, label, loss).abs().float()
    own = grams.values.diagonal(dim1=2, dim2=3).sqrt()
    scale = torch.einsum("nc,nlc->nl", delta, own).square()
    assert ((found.values - expected.values).abs() <= 1e-5 * scale + 1e-12).all()


def test_float64_grams_give_norms_to_every_digit(classified):
    model, images = classified[0], classified[1][:3].double()
    grams = gradood.gradient_grams(copy.deepcopy(model).double(), images)
    expected = reference_norms(model, images)
    assert torch.allclose(grams.norms().values, expected, rtol=1e-9)


def test_a_list_of_labels_and_a_label_a_sample(classified):
    grams = classified[2]
    labels = ["all_hot", torch.rand(6, 10, generator=torch.Generator().manual_seed(0))]
    values = grams.norms(labels).values
    assert values.shape == (6, 2, len(grams.names))
    assert torch.equal(values[:, 1], grams.norms(labels[1]).values)


def test_micro_batches_and_selection_change_nothing(classified):
    model, images, grams = classified
    few = gradood.gradient_grams(model, images, parameters="linear.*", micro_batch=4)
    assert few.names == ("linear.weight", "linear.bias")
    assert torch.allclose(few.values, grams.values[:, -2:], rtol=1e-5)
    one = gradood.gradient_grams(model, images[:1])
    assert torch.allclose(one.values, grams.values[:1], rtol=1e-4, atol=1e-6)


def test_no_samples_and_unusable_samples(classified):
    model, images, grams = classified
    empty = gradood.gradient_grams(model, images[:0])
    assert empty.norms().values.shape == (0, len(grams.names))
    spoilt = images.clone()
    spoilt[2, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="NaN or Inf in 1 of 6 rows"):
        gradood.gradient_grams(model, spoilt)
    flagged = gradood.gradient_grams(model, spoilt, nan_policy="flag")
    assert flagged.values[2].isinf().all() and flagged.values[[0, 1, 3, 4, 5]].isfinite().all()
    norms = flagged.norms().values
    assert norms[2].isinf().all() and norms[[0, 1, 3, 4, 5]].isfinite().all()
