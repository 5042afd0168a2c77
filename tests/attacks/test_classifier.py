"""Attacks on the classifier: what each of them reaches, and what all of them keep to."""

import sys

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from gradood.attacks import (
    Expectation,
    apgd,
    bim,
    carlini_wagner,
    deepfool,
    fgsm,
    least_likely,
    negation,
    pgd,
)
from gradood.data import embedded_classifier, embedded_images, embedded_labels
from gradood.errors import InputError, ModelError

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
EPSILON = {"linf": 6 / 255, "l2": 0.6}


@pytest.fixture(scope="module")
def model():
    return embedded_classifier()


@pytest.fixture(scope="module")
def known(model):
    """Pictures that the classifier gets right, with their labels."""
    x, labels = embedded_images("fashion-mnist")[:30], embedded_labels("fashion-mnist")[:30]
    with torch.no_grad():
        right = model(x).argmax(1) == labels
    return x[right][:16], labels[right][:16]


def loss(model, images, labels):
    with torch.no_grad():
        return cross_entropy(model(images).double(), labels, reduction="none")


def distances(images, x, norm):
    offset = (images.double() - x.double()).flatten(1)
    return offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)


@NORMS
def test_each_attack_breaks_an_undefended_classifier_within_its_ball(norm, model, known):
    x, labels = known
    epsilon = EPSILON[norm]
    found = {
        "pgd": pgd(model, x, labels=labels, epsilon=epsilon, norm=norm),
        "bim": bim(model, x, labels=labels, epsilon=epsilon, norm=norm),
        "least likely": least_likely(model, x, labels=labels, epsilon=4 * epsilon, norm=norm),
        "apgd": apgd(model, x, labels=labels, epsilon=epsilon, norm=norm, steps=10, restarts=1),
    }
    for name, result in found.items():
        reach = 4 * epsilon if name == "least likely" else epsilon
        assert bool((distances(result.images, x, norm) <= reach).all()), name
        assert result.images.min() >= 0 and result.images.max() <= 1, name
        share = 0.4 if name == "least likely" else 0.75  # it wants more than another class
        assert result.success.double().mean() >= share, name
        assert result.success_rounded.double().mean() >= share - 0.1, name
        assert result.success.equal(model(result.images).argmax(1) != labels), name


@pytest.mark.slow
@NORMS
@pytest.mark.parametrize("kind", ["cross_entropy", "margin", "probability"])
def test_apgd_reaches_at_least_the_loss_of_pgd_of_the_same_budget(norm, kind, model, known):
    x, labels = known
    epsilon = EPSILON[norm] / 3
    options = {"epsilon": epsilon, "norm": norm, "steps": 60}
    found = apgd(model, x, labels=labels, **options, restarts=1, loss=kind)
    plain = pgd(model, x, labels=labels, **options, random_start=False)
    assert found.success.sum() >= plain.success.sum()
    if kind == "cross_entropy":
        reached = loss(model, found.images, labels)
        assert reached.mean() >= loss(model, plain.images, labels).mean()


def test_bim_is_pgd_from_the_input_itself_and_climbs_past_fgsm(model, known):
    x, labels = known
    epsilon = EPSILON["linf"]
    one = bim(model, x, labels=labels, epsilon=epsilon)
    other = pgd(model, x, labels=labels, epsilon=epsilon, random_start=False)
    assert torch.equal(one.images, other.images)
    assert (
        loss(model, one.images, labels).mean()
        > loss(model, fgsm(model, x, labels=labels, epsilon=epsilon).images, labels).mean()
    )


def test_least_likely_moves_towards_the_least_likely_class(model, known):
    x, labels = known
    with torch.no_grad():
        goal = model(x).argmin(1)
    moved = least_likely(model, x, labels=labels, epsilon=0.1, steps=20).images
    assert bool((loss(model, moved, goal) < loss(model, x, goal)).all())
    with torch.no_grad():
        assert (model(moved).argmax(1) == goal).double().mean() > 0.5


def test_negation_is_the_negative(model, known):
    x, labels = known
    result = negation(model, x, labels=labels)
    torch.testing.assert_close(result.images + x, torch.ones_like(x))
    assert result.success.double().mean() > 0.5


@pytest.mark.parametrize("attack", [carlini_wagner, deepfool])
def test_minimal_attacks_find_the_border_of_a_linear_classifier(attack):
    """Two classes, border at distance ``|w x| / ‖w‖``: nothing nearer, and hardly farther."""
    model = nn.Linear(3, 2, bias=False).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[2.0, -1.0, 2.0], [0.0, 0.0, 0.0]]))
    x = torch.tensor([[0.5, 0.4, 0.3], [0.3, 0.2, 0.2], [0.2, 0.9, 0.1]])
    labels = torch.tensor([0, 0, 1])
    result = attack(model, x, labels=labels)
    assert result.success.all()
    exact = (x @ torch.tensor([2.0, -1.0, 2.0])).abs() / 3
    found = (result.images - x).norm(dim=1)
    assert bool((found >= exact * 0.999).all() and (found <= exact * 1.1 + 2e-3).all())
    assert attack(model, x[:0], labels=labels[:0]).images.shape == (0, 3)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("attack", [carlini_wagner, deepfool])
def test_minimal_attacks_break_the_embedded_classifier_by_little(attack, model, known):
    x, labels = known
    options = {"steps": 100, "search_steps": 5} if attack is carlini_wagner else {}
    result = attack(model, x, labels=labels, **options)
    assert result.success.all()
    assert result.success_rounded.sum() <= result.success.sum()
    assert distances(result.images, x, "l2").median() < 0.6
    assert result.images.min() >= 0 and result.images.max() <= 1


def test_a_missing_package_is_named(monkeypatch, known):
    monkeypatch.setitem(sys.modules, "foolbox", None)
    monkeypatch.setitem(sys.modules, "foolbox.attacks", None)
    with pytest.raises(InputError, match=r"gradood\[attacks\]"):
        deepfool(nn.Linear(3, 2).eval(), torch.ones(1, 3), labels=torch.zeros(1).long())


def test_apgd_under_noise_attacks_the_smoothed_classifier():
    """A half-space: only its border matters, whatever the noise; inputs just beyond reach stay."""

    class Hard(nn.Module):
        """Nearly a step: without noise no slope is left a little way off the border."""

        def forward(self, x):
            side = 200 * x[:, 0]
            return torch.stack([side, -side], 1)

    x = torch.tensor([[0.2, 0.0], [0.3, 0.0]])
    found = apgd(
        Hard().eval(), x, labels=torch.zeros(2).long(), epsilon=0.25, norm="l2", loss="probability",
        steps=20, restarts=1, limits=None, expectation=Expectation(0.25, 32),
    )  # fmt: skip
    torch.testing.assert_close(found.images[:, 0], x[:, 0] - 0.25, atol=5e-3, rtol=0)
    assert found.success.tolist() == [True, False]


def test_bad_input(model, known):
    x, labels = known
    for attack in (bim, least_likely, negation, apgd, carlini_wagner, deepfool):
        with pytest.raises(InputError, match=r"\[0, 1\]"):
            attack(model, x * 255, labels=labels)
        with pytest.raises(InputError, match="int64"):
            attack(model, x, labels=labels.float())
        with pytest.raises(ModelError, match="eval"):
            attack(embedded_classifier().train(), x, labels=labels)
        empty = attack(model, x[:0], labels=labels[:0])
        assert empty.images.shape == x[:0].shape and empty.success.shape == (0,)
    with pytest.raises(InputError, match="loss"):
        apgd(model, x, labels=labels, loss="dlr")
    with pytest.raises(InputError, match="norm"):
        pgd(model, x, labels=labels, norm="l1")
