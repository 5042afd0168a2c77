"""Attacks on classifier and detector at once: what they reach, and what they refuse."""

import pytest
import torch
from torch import nn

from gradood.attacks import evade, pgd
from gradood.data import embedded_classifier, embedded_images
from gradood.detectors import Energy, GradientMahalanobis
from gradood.errors import InputError, ModelError
from gradood.evaluation import evaluate


@pytest.fixture(scope="module")
def attacked():
    """Rightly classified pictures, their classes, and a detector that PGD does not evade."""
    model = embedded_classifier()
    x = embedded_images("fashion-mnist")
    detector = GradientMahalanobis(model).fit(x[:200])
    return model, detector, x[200:212], model(x[200:212]).argmax(1)


def test_an_attack_that_knows_the_detector_evades_it_and_still_fools(attacked):
    model, detector, x, labels = attacked
    found = evade(model, detector, x, labels=labels, epsilon=16 / 255, steps=15, restarts=1)
    assert found.success.float().mean() > 0.5
    assert ((found.images - x).abs().amax((1, 2, 3)) <= 16 / 255).all()
    assert found.images.min() >= 0 and found.images.max() <= 1
    assert torch.equal(found.success, model(found.images).argmax(1) != labels)
    assert torch.equal(found.success_rounded, model(found.rounded).argmax(1) != labels)
    torch.testing.assert_close(found.clean, detector.score(x).double(), rtol=1e-4, atol=1e-4)
    rounded = detector.score(found.rounded).double()
    torch.testing.assert_close(found.score_rounded, rounded, rtol=1e-4, atol=1e-4)
    plain = pgd(model, x, labels=labels, epsilon=16 / 255)
    before = evaluate(found.clean, detector.score(plain.rounded[plain.success_rounded])).auroc
    after = evaluate(found.clean, found.score_rounded[found.success_rounded]).auroc
    assert after < before - 0.2


def test_where_nothing_fools_nothing_is_claimed(attacked):
    model, detector, x, labels = attacked
    found = evade(model, detector, x[:3], labels=labels[:3], epsilon=0.0, steps=2, restarts=2)
    assert torch.equal(found.images, x[:3]) and not found.success.any()
    torch.testing.assert_close(found.score, found.clean)


def test_of_points_that_fool_the_one_with_the_lowest_score_is_kept():
    """On a line: the classifier changes at .5, the score rises from there; the border is best."""

    class Step(nn.Module):
        def forward(self, x):
            return torch.cat([0.5 - x, x - 0.5], 1) * 100

    x, labels = torch.full((1, 1), 0.2), torch.zeros(1, dtype=torch.int64)
    found = evade(Step().eval(), lambda x: x[:, 0] ** 2, x, labels=labels, epsilon=0.7, steps=60)
    assert found.success.all()
    assert 0.505 <= found.images.item() < 0.52  # a margin of one logit from .505 on


def test_no_inputs(attacked):
    model, detector, x, labels = attacked
    found = evade(model, Energy(model), x[:0], labels=labels[:0], steps=1, restarts=1)
    assert found.images.shape == x[:0].shape and found.score.shape == (0,)


def test_what_cannot_be_attacked_is_refused(attacked):
    model, detector, x, labels = attacked
    with pytest.raises(InputError, match="confidence"):
        evade(model, detector, x, labels=labels, confidence=-1.0)
    with pytest.raises(InputError, match="labels"):
        evade(model, detector, x, labels=labels + 100)
    with pytest.raises(ModelError, match=r"\[2\]"):
        evade(model, lambda x: x.mean(), x[:2], labels=labels[:2], steps=1, restarts=1)
    with pytest.raises(ModelError, match="derivative"):
        evade(
            model,
            lambda x: x.detach().sum((1, 2, 3)),
            x[:2],
            labels=labels[:2],
            steps=1,
            restarts=1,
        )


def test_a_classifier_without_a_gradient_is_refused(attacked):
    """The score alone has one: the attack would go nowhere that fools."""

    class Deaf(nn.Module):
        def forward(self, x):
            return torch.stack([x.detach().mean((1, 2, 3)), x.detach().amax((1, 2, 3))], 1)

    x = attacked[2][:2]
    with pytest.raises(ModelError, match="no gradient"):
        evade(Deaf().eval(), lambda x: x.sum((1, 2, 3)), x, labels=torch.ones(2, dtype=torch.int64))
