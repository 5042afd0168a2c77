"""A classifier with one logit decides by its sign, everywhere: class 1 where it is positive."""

import math

import pytest
import torch
from torch import nn
from torch.nn.functional import (
    binary_cross_entropy,
    binary_cross_entropy_with_logits,
    cross_entropy,
)

import gradood
from gradood import attacks
from gradood.evaluation import evaluate
from gradood.gradients import differentiable_norms, gradient_grams, gradient_norms
from gradood.integrations.openood import openood_postprocessor

N = 8


def linear():
    """One logit, positive for about half of ``images``."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1)).eval()
    with torch.no_grad():
        model[1].bias -= model(images()).mean()
    return model


def images(n=N):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def truth(model, x):
    with torch.no_grad():
        return (model(x)[:, 0] > 0).long()


class TwoLogits(nn.Module):
    """The same decision with two logits: what every score of one logit must be equal to."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        z = self.model(x)
        return torch.cat([-z / 2, z / 2], 1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)).eval()


def bce_softmax(z, y):
    p = torch.cat([-z / 2, z / 2], 1).softmax(1)
    return binary_cross_entropy(p, y, reduction="sum")


def ce(z, y):
    return cross_entropy(torch.cat([-z / 2, z / 2], 1), y / y.sum())


def bce(z, y):
    return binary_cross_entropy_with_logits(z, y, reduction="sum")


BOTH, NEITHER = [1.0, 1.0], [0.0, 0.0]
LOSSES = {
    # (label, loss) -> (loss of logits [1, 1] and a target, the target of a logit z)
    ("all_hot", "bce"): (bce, lambda z: [1.0]),
    ("zero_hot", "bce"): (bce, lambda z: [0.0]),
    ("predicted", "bce"): (bce, lambda z: [float(z > 0)]),
    ("all_hot", "bce_softmax"): (bce_softmax, lambda z: BOTH),
    ("zero_hot", "bce_softmax"): (bce_softmax, lambda z: NEITHER),
    ("predicted", "bce_softmax"): (bce_softmax, lambda z: [float(z <= 0), float(z > 0)]),
    ("uniform", "ce"): (ce, lambda z: [0.5, 0.5]),
    ("all_hot", "ce"): (ce, lambda z: BOTH),
    ("one_hot:0", "ce"): (ce, lambda z: [1.0, 0.0]),
    ("one_hot:1", "ce"): (ce, lambda z: [0.0, 1.0]),
    ("predicted", "ce"): (ce, lambda z: [float(z <= 0), float(z > 0)]),
    ("predicted", "logit"): (lambda z, y: z.sum(), lambda z: [1.0]),
    ("one_hot:0", "logit"): (lambda z, y: z.sum(), lambda z: [1.0]),
}


@pytest.mark.parametrize("label,loss", LOSSES)
def test_norms_are_those_of_a_float64_loop(label, loss):
    model, x = network(), torch.randn(N, 6, generator=torch.Generator().manual_seed(2))
    exact, target = LOSSES[label, loss]
    double = network().double()
    expected = []
    for row in x.double():
        z = double(row[None])
        y = torch.tensor([target(z)], dtype=torch.float64)
        gradients = torch.autograd.grad(exact(z, y), list(double.parameters()))
        expected.append(torch.stack([g.square().sum() for g in gradients]))
    expected = torch.stack(expected)
    for values in (
        gradient_norms(model, x, label=label, loss=loss).values,
        gradient_norms(model, x, label=label, loss=loss, method="loop").values,
        gradient_grams(model, x).norms(label, loss=loss).values,
        differentiable_norms(model, x, label=label, loss=loss).values,
    ):
        torch.testing.assert_close(values.double(), expected, rtol=1e-4, atol=1e-9)


def test_a_given_label_is_the_probability_of_class_one():
    model, x = network(), torch.randn(N, 6)
    y = torch.rand(N, 1)
    given = gradient_norms(model, x, label=y, loss="ce").values
    two = gradient_norms(TwoLogits(model), x, label=torch.cat([1 - y, y], 1), loss="ce").values
    torch.testing.assert_close(given, two)


DETECTORS = {
    "max-softmax": gradood.MaxSoftmax,
    "energy": gradood.Energy,
    "gradnorm": gradood.GradNorm,
    "exgrad": gradood.ExGrad,
    "uncertainty": gradood.GradUncertainty,
    "knn": gradood.GradientKNN,
    "mahalanobis": gradood.GradientMahalanobis,
    "fast": gradood.GradientDetector,
    "adversarial": lambda m: gradood.GradientDetector(m, preset="adversarial"),
}


@pytest.mark.parametrize("kind", DETECTORS)
def test_detectors_tell_inputs_apart(kind):
    generator = torch.Generator().manual_seed(3)
    x, far = (s * torch.randn(n, 6, generator=generator) for s, n in ((1, 300), (8, 60)))
    detector = DETECTORS[kind](network()).fit(x[:250])
    scores, others = detector.score(x[250:]), detector.score(far)
    assert scores.isfinite().all() and others.isfinite().all() and scores.std() > 0
    assert torch.cat([scores, others]).abs().max() < 1e4
    if kind not in ("max-softmax", "energy", "gradnorm", "exgrad", "uncertainty"):
        assert evaluate(scores, others).auroc > 0.7


@pytest.mark.parametrize("kind", [gradood.MaxSoftmax, gradood.Energy])
def test_scores_of_logits_are_those_of_two_logits(kind):
    model, x = network(), torch.randn(50, 6)
    torch.testing.assert_close(kind(model).score(x), kind(TwoLogits(model).eval()).score(x))


def test_certified_classes_are_true_and_radii_do_not_pass_the_border():
    model, x = linear(), images()
    smoothing = gradood.Smoothing(sigma=0.25, n=2000, progress=False)
    border = (model(x)[:, 0] / model[1].weight.norm()).abs().detach()
    for radius in (None, 0.05):
        found = gradood.certify_class(model, x, settings=smoothing, radius=radius)
        sure = ~found.abstained
        # Smoothing a linear model changes no decision.
        assert sure.any() and torch.equal(found.label[sure], truth(model, x)[sure])
        assert (found.radius <= border.double() + 1e-6).all()


ATTACKS = {
    "pgd": lambda m, x, y, e: attacks.pgd(m, x, labels=y, epsilon=e),
    "fgsm": lambda m, x, y, e: attacks.fgsm(m, x, labels=y, epsilon=e),
    "bim": lambda m, x, y, e: attacks.bim(m, x, labels=y, epsilon=4 * e, norm="l2"),
    "least likely": lambda m, x, y, e: attacks.least_likely(m, x, labels=y, epsilon=e),
    **{
        f"apgd {loss}": lambda m, x, y, e, loss=loss: attacks.apgd(
            m, x, labels=y, epsilon=e, steps=10, restarts=1, loss=loss, progress=False
        )
        for loss in ("cross_entropy", "margin", "probability")
    },
    "deepfool": lambda m, x, y, e: attacks.deepfool(m, x, labels=y),
    "carlini-wagner": lambda m, x, y, e: attacks.carlini_wagner(m, x, labels=y, steps=50),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("attack", ATTACKS)
def test_attacks_cross_the_border_and_never_without_moving(attack):
    model, x = linear(), images()
    labels = truth(model, x)
    found = ATTACKS[attack](model, x, labels, 0.5)
    assert found.success.all()
    assert torch.equal(truth(model, found.images), 1 - labels)
    if attack not in ("deepfool", "carlini-wagner"):  # which choose their own distance
        assert not ATTACKS[attack](model, x, labels, 0.0).success.any()


def test_a_label_beyond_one_is_refused():
    with pytest.raises(gradood.errors.InputError, match="0 to 1"):
        attacks.pgd(linear(), images(), labels=torch.full((N,), 2))


def test_openood_gets_the_sign():
    model, x = linear(), images(60)
    post = openood_postprocessor(gradood.MaxSoftmax)
    post.setup(model, {"train": [{"data": x}]}, {})
    prediction, confidence = post.postprocess(model, x)
    assert torch.equal(prediction, truth(model, x))
    p = model(x)[:, 0].detach().sigmoid()
    torch.testing.assert_close(-confidence, torch.minimum(p, 1 - p))


def test_a_logit_of_zero_is_class_zero():
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight), nn.init.zeros_(model.bias)
    assert not attacks.fgsm(
        model.eval(), torch.rand(3, 2), labels=torch.zeros(3).long()
    ).success.any()
    assert gradood.MaxSoftmax(model).score(torch.rand(3, 2)).tolist() == [0.5] * 3
    assert math.isclose(gradood.Energy(model).score(torch.rand(1, 2)), -math.log(2), rel_tol=1e-6)
