"""A detector is the same to rounding with one thread and with two."""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import nn

import gradood
from gradood.detectors import (
    ConfoundingDetector,
    Energy,
    ExGrad,
    GradientDetector,
    GradientGMM,
    GradientKNN,
    GradientMahalanobis,
    GradNorm,
    GradUncertainty,
    MaxSoftmax,
)
from gradood.detectors.class_gaussians import fit_gaussians, within_class_covariance

#: Enough features for the blocked algorithms of linear algebra libraries, which use threads.
WIDTH = 256

DETECTORS = {
    **{f"preset {p}": (GradientDetector, {"preset": p}) for p in ("fast", "adversarial")},
    "confounding": (ConfoundingDetector, {}),
    "mahalanobis": (GradientMahalanobis, {}),
    "knn": (GradientKNN, {}),
    "gmm": (GradientGMM, {"components": 2}),
    "max softmax": (MaxSoftmax, {}),
    "energy": (Energy, {}),
    "grad norm": (GradNorm, {}),
    "exgrad": (ExGrad, {}),
    "uncertainty": (GradUncertainty, {}),
}


@contextmanager
def threads(count):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, WIDTH), nn.Tanh())
    return nn.Sequential(*layers, nn.Linear(WIDTH, 3)).eval()


@pytest.fixture(scope="module")
def inputs():
    generator = torch.Generator().manual_seed(1)
    normal = torch.rand(240, 1, 8, 8, generator=generator)
    anomalies = torch.randn(40, 1, 8, 8, generator=generator)
    return normal, anomalies, torch.cat([normal[:20], 1.3 * anomalies[:20]])


def fit(detector_class, model, inputs, count, **options):
    normal, anomalies, _ = inputs
    with threads(count):
        examples = (anomalies,) if detector_class is ConfoundingDetector else ()
        return detector_class(model, **options).fit(normal, *examples)


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_do_not_depend_on_the_number_of_threads(name, model, inputs):
    detector_class, options = DETECTORS[name]
    scores = {}
    for fitted_with in (1, 2):
        detector = fit(detector_class, model, inputs, fitted_with, **options)
        for scored_with in (1, 2):
            with threads(scored_with):
                scores[fitted_with, scored_with] = detector.score(inputs[2]).double()
    spread = scores[1, 1].std()
    for found in scores.values():
        assert float((found - scores[1, 1]).abs().max()) <= 1e-4 * spread


@pytest.mark.parametrize("count", [1, 2])
def test_gaussians_equal_those_of_numpy(count):
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator, dtype=torch.float64)
    features = torch.randn(600, WIDTH, generator=generator, dtype=torch.float64) @ mixing
    classes = torch.arange(600) % 5
    with threads(count):
        learned = fit_gaussians(features, classes)
        pooled = within_class_covariance({c: features[classes == c] for c in range(5)}).numpy()
    for k, c in enumerate(learned["classes"].tolist()):
        group = features[classes == c].numpy()
        mixed = (len(group) * np.cov(group.T) + WIDTH * pooled) / (len(group) + WIDTH)
        shrunk = mixed + 1e-2 * np.trace(mixed) / WIDTH * np.eye(WIDTH)
        root = np.linalg.cholesky(shrunk)
        expected = 2 * np.log(np.diag(root)).sum()
        assert float(learned["log_determinants"][k]) == pytest.approx(expected, rel=1e-9)
        found = learned["whitenings"][k] @ learned["whitenings"][k].T
        np.testing.assert_allclose(found.numpy() @ shrunk, np.eye(WIDTH), atol=1e-8)


def test_norms_do_not_depend_on_the_number_of_threads(model, inputs):
    norms = []
    for count in (1, 2):
        with threads(count):
            norms.append(gradood.gradient_norms(model, inputs[0]).values)
    torch.testing.assert_close(*norms, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", DETECTORS)
def test_autocast_is_for_the_model_and_not_for_the_detector(name, model, inputs):
    """The same norms give the same detector."""
    detector_class, options = DETECTORS[name]
    if detector_class is GradientDetector:
        detector = fit(detector_class, model, inputs, 1, **options)
        mixed = detector.norms(inputs[2])
        expected = detector.score(mixed)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(detector.score(mixed), expected)
        return
    label = {"loss": "bce_softmax"} if detector_class is GradUncertainty else {}
    normal, anomalies, mixed = (gradood.gradient_norms(model, x, **label) for x in inputs)
    examples = (anomalies,) if detector_class is ConfoundingDetector else ()
    expected = detector_class(model, **options).fit(normal, *examples).score(mixed)
    with torch.autocast("cpu", torch.bfloat16):
        found = detector_class(model, **options).fit(normal, *examples).score(mixed)
    assert torch.equal(found, expected)
