"""Scores against independent computations in float64."""

import numpy as np
import pytest
import torch
from sklearn.covariance import EmpiricalCovariance
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from torch import nn

from gradood.detectors import (
    PARTS,
    Energy,
    GradientGMM,
    GradientKNN,
    GradientMahalanobis,
    MaxSoftmax,
)
from gradood.detectors.relative import RELATIVE, SHRINKAGE as RELATIVE_SHRINKAGE
from gradood.detectors.whitening import SHRINKAGE


def standardised(norms):
    """Fitting and scored log norms, standardised with NumPy."""
    fit = np.log(norms["fit"].values.double().numpy())
    mean, std = fit.mean(0), fit.std(0, ddof=1)
    return [
        (np.log(norms[name].values.double().numpy()) - mean) / std for name in ("fit", "normal")
    ]


def shrunk(covariance):
    eigenvalues = np.linalg.eigvalsh(covariance)
    return covariance + SHRINKAGE * eigenvalues.mean() * np.eye(len(covariance))


def test_mahalanobis_is_the_nearest_shrunk_class_gaussian(fitted, norms):
    fit, scored = standardised(norms)
    classes = norms["fit"].logits.argmax(1).numpy()
    groups = [fit[classes == c] for c in np.unique(classes)]
    assert min(map(len, groups)) >= 2
    pooled = np.cov(np.concatenate([g - g.mean(0) for g in groups]).T)
    d = fit.shape[1]
    expected = []
    for g in groups:
        covariance = shrunk((len(g) * np.cov(g.T) + d * pooled) / (len(g) + d))
        centred = scored - g.mean(0)
        distance = np.einsum("nd,nd->n", centred, np.linalg.solve(covariance, centred.T).T)
        expected.append(distance + np.linalg.slogdet(covariance)[1])
    actual = fitted(GradientMahalanobis).score(norms["normal"]).double().numpy()
    np.testing.assert_allclose(actual, np.min(expected, 0), rtol=1e-4, atol=1e-3)


def test_knn_is_the_distance_to_the_kth_whitened_neighbour(fitted, norms):
    fit, scored = standardised(norms)
    eigenvalues, vectors = np.linalg.eigh(shrunk(np.cov(fit.T)))
    whitening = vectors / np.sqrt(eigenvalues)
    neighbours = NearestNeighbors(n_neighbors=4).fit(fit @ whitening)
    expected = neighbours.kneighbors(scored @ whitening)[0][:, 3]
    actual = fitted(GradientKNN, neighbours=4).score(norms["normal"]).double().numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-3)


def test_class_energy_is_the_energy_less_that_of_its_class(norms):
    part, fit, scored = PARTS["class energy"], norms["fit"], norms["normal"]
    absent = int(fit.logits.argmax(1)[0])  # of which the fit below knows nothing
    fit = fit.select(fit.logits.argmax(1) != absent)

    def energies(one):
        return -np.log(np.exp(one.logits.double().numpy()).sum(1)), one.logits.argmax(1).numpy()

    (known, known_classes), (found, classes) = energies(fit), energies(scored)
    usual = [
        (known[known_classes == c].sum() + 10 * known.mean()) / ((known_classes == c).sum() + 10)
        for c in range(scored.logits.shape[1])
    ]
    assert usual[absent] == pytest.approx(known.mean()) and absent in classes
    actual = part.score(scored, part.fit(fit)).double().numpy()
    np.testing.assert_allclose(actual, found - np.array(usual)[classes], rtol=0, atol=1e-4)


def test_relative_distance_is_of_both_covariances():
    torch.manual_seed(0)
    classes = torch.arange(300) % 4
    vectors = torch.randn(301, 6).double() + 4 * torch.randn(5, 6).double()[[*classes, 4]]
    classes = torch.cat([classes, torch.tensor([4])])  # the only one of its class
    learned = RELATIVE.fit(vectors, classes)

    def form(differences, covariance):
        shrinkage = RELATIVE_SHRINKAGE * np.trace(covariance) / len(covariance)
        solved = np.linalg.solve(covariance + shrinkage * np.eye(len(covariance)), differences.T)
        return np.einsum("nd,dn->n", differences, solved)

    x = vectors.numpy()
    groups = [x[classes == c] for c in range(4)]
    within = np.cov(np.concatenate([g - g.mean(0) for g in groups]).T)
    nearest = np.min([form(x - g.mean(0), within) for g in groups], 0)
    expected = nearest - form(x - x.mean(0), np.cov(x.T))
    actual = RELATIVE.score(vectors, classes, learned).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-9, atol=1e-9)


def test_gmm_scores_as_scikit_learn_does(fitted, norms):
    fit, scored = standardised(norms)
    mixture = GaussianMixture(3, reg_covar=1e-3, max_iter=200, random_state=0).fit(fit)
    actual = fitted(GradientGMM).score(norms["normal"]).double().numpy()
    np.testing.assert_allclose(actual, -mixture.score_samples(scored), rtol=1e-3, atol=1e-2)


def test_one_gaussian_ranks_like_its_mahalanobis_distance(fitted, norms):
    fit, scored = standardised(norms)
    reference = EmpiricalCovariance().fit(fit).mahalanobis(scored)
    scores = fitted(GradientGMM, components=1).score(norms["normal"]).double().numpy()
    assert np.corrcoef(scores, reference)[0, 1] > 0.99


def test_max_softmax_and_energy_by_hand():
    model = nn.Identity().eval()
    logits = torch.tensor([[0.0, 0.0], [10.0, 0.0], [60.0, 0.0], [-5.0, -5.0]])
    odds = np.exp(-np.array([0.0, 10.0, 60.0, 0.0]))
    softmax = MaxSoftmax(model).score(logits).double().numpy()
    # 1 - max softmax = odds / (1 + odds); float64 inside holds it down to 1e-16.
    np.testing.assert_allclose(softmax, odds / (1 + odds), rtol=1e-6, atol=2e-16)
    energy = Energy(model).score(logits)
    expected = torch.tensor([-np.log(2), -10 - np.log1p(np.exp(-10)), -60.0, 5 - np.log(2)])
    torch.testing.assert_close(energy, expected.float())
    assert energy[3] > energy[0] > energy[1]  # lower logits, more anomalous


@pytest.mark.parametrize("detector_class", [GradientMahalanobis, GradientKNN, GradientGMM])
def test_far_away_norms_score_far_higher(detector_class, fitted, norms):
    far = norms["normal"]
    far = type(far)(far.values * 1e6, far.names, far.logits)
    detector = fitted(detector_class)
    assert detector.score(far).min() > 2 * detector.score(norms["normal"]).max()
