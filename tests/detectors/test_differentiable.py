"""Scores with a derivative: the same numbers, and slopes that differences confirm."""

import pytest
import torch
from torch import nn

from gradood.detectors import (
    ConfoundingDetector,
    Detector,
    Energy,
    GradientGMM,
    GradientKNN,
    GradientMahalanobis,
    MaxSoftmax,
)
from gradood.errors import ModelError, NotFittedError

ALL = (ConfoundingDetector, GradientGMM, GradientKNN, GradientMahalanobis, MaxSoftmax, Energy)


def test_scores_are_those_of_score(detector, pictures):
    x = pictures.anomalous[:6].clone().requires_grad_()
    found = detector.differentiable_score(x)
    assert found.requires_grad
    expected = detector.score(x.detach())
    torch.testing.assert_close(found.detach().float(), expected, rtol=1e-3, atol=1e-3)


@pytest.fixture(scope="module")
def smooth():
    """Where a ReLU switches, gradient norms jump: here none does."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 5, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(256, 5)
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("detector_class", ALL, ids=lambda cls: cls.__name__)
def test_slopes_are_those_of_finite_differences(detector_class, smooth, pictures):
    """In float32, along each picture's own gradient; neighbours and ReLU of detectors switch."""
    anomalies = [pictures.anomalies] if detector_class is ConfoundingDetector else []
    options = {"components": 2} if detector_class is GradientGMM else {}
    detector = detector_class(smooth, **options).fit(pictures.fit, *anomalies)
    x = pictures.anomalous[:8].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(detector.differentiable_score(x).sum(), x)
    steepness = gradient.flatten(1).norm(dim=1)
    step = 0.003 * gradient / steepness.view(-1, 1, 1, 1)
    ahead, behind = (detector.score(x.detach() + sign * step) for sign in (1, -1))
    error = ((ahead - behind) / 0.006 - steepness).abs() / steepness
    assert error.median() < 0.02


def test_detectors_that_cannot_say_so(model, pictures):
    class Constant(Detector):
        def fit(self, normal):
            return self

        def score_batch(self, batch):
            return batch.flatten(1).sum(1)

        def score_norms(self, norms):
            return norms.values.sum(1)

    with pytest.raises(ModelError, match="Constant cannot be differentiated"):
        Constant(model).differentiable_score(pictures.normal[:2])
    with pytest.raises(NotFittedError):
        GradientKNN(model).differentiable_score(pictures.normal[:2])
