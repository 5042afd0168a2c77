"""The fused detector and its measures of novelty, against independent computations."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.neighbors import NearestNeighbors
from torch import nn

import gradood
from gradood.detectors import GradientDetector
from gradood.detectors.class_gaussians import CLASS_GAUSSIANS
from gradood.detectors.neighbours import COUNT, NEIGHBOURS
from gradood.detectors.relative import RELATIVE
from gradood.detectors.whitening import SHRINKAGE
from gradood.errors import InputError
from gradood.evaluation import evaluate


@pytest.fixture(scope="module")
def vectors():
    """Normal vectors of three classes, their classes, and others to score."""
    generator = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)
    classes = torch.arange(90) % 3
    spread = torch.randn(90, 4, generator=generator, dtype=torch.float64)
    normal = centres[classes] + spread * torch.tensor([1.0, 2.0, 0.5, 1.5])
    others = 4 * torch.randn(12, 4, generator=generator, dtype=torch.float64)
    return normal, classes, others, torch.arange(12) % 3


def shrunk(covariance, by=1e-3):
    return covariance + by * np.trace(covariance) / len(covariance) * np.eye(len(covariance))


def mahalanobis(centred, covariance):
    return np.einsum("nd,nd->n", centred, np.linalg.solve(covariance, centred.T).T)


def pooled(normal, classes):
    return np.cov(
        np.concatenate([normal[classes == c] - normal[classes == c].mean(0) for c in range(3)]).T
    )


def test_neighbours_are_whitened_within_classes(vectors):
    normal, classes, others, _ = (v.numpy() for v in vectors)
    precision = np.linalg.inv(shrunk(pooled(normal, classes)))
    root = np.linalg.cholesky(precision)
    bank = NearestNeighbors(n_neighbors=COUNT).fit(normal @ root)
    expected = bank.kneighbors(others @ root)[0][:, -1]
    scores = NEIGHBOURS.score(*vectors[2:], NEIGHBOURS.fit(*vectors[:2]))
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_gaussian_is_that_of_the_predicted_class(vectors):
    normal, classes, others, predicted = (v.numpy() for v in vectors)
    expected = []
    for vector, c in zip(others, predicted, strict=True):
        group = normal[classes == c]
        mixed = (len(group) * np.cov(group.T) + 4 * pooled(normal, classes)) / (len(group) + 4)
        covariance = shrunk(mixed, SHRINKAGE)
        centred = (vector - group.mean(0))[None]
        expected.append(mahalanobis(centred, covariance)[0] + np.linalg.slogdet(covariance)[1])
    scores = CLASS_GAUSSIANS.score(*vectors[2:], CLASS_GAUSSIANS.fit(*vectors[:2]))
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


def test_relative_distance_subtracts_that_to_all_normal_data(vectors):
    normal, classes, others, _ = (v.numpy() for v in vectors)
    within = shrunk(pooled(normal, classes))
    nearest = [mahalanobis(others - normal[classes == c].mean(0), within) for c in range(3)]
    overall = mahalanobis(others - normal.mean(0), shrunk(np.cov(normal.T)))
    scores = RELATIVE.score(*vectors[2:], RELATIVE.fit(*vectors[:2]))
    np.testing.assert_allclose(scores, np.min(nearest, 0) - overall, rtol=1e-9)


@pytest.mark.parametrize("novelty", [NEIGHBOURS, CLASS_GAUSSIANS, RELATIVE])
def test_a_class_that_was_never_predicted_is_scored_too(novelty, vectors):
    normal, classes, others, _ = vectors
    scores = novelty.score(others, torch.full((12,), 7), novelty.fit(normal, classes))
    assert scores.isfinite().all()
    near = novelty.score(normal[:12], torch.full((12,), 7), novelty.fit(normal, classes))
    assert near.mean() < scores.mean()


@pytest.mark.parametrize("novelty", [NEIGHBOURS, CLASS_GAUSSIANS, RELATIVE])
def test_too_few_normal_vectors_are_an_error(novelty, vectors):
    with pytest.raises(InputError, match="more"):
        novelty.fit(vectors[0][:3], torch.arange(3))


def test_penultimate_features_come_with_the_norms(model, pictures, norms):
    expected = model.features(pictures.normal).detach()
    torch.testing.assert_close(norms["normal"].features, expected, rtol=1e-4, atol=1e-5)
    assert gradood.gradient_norms(model, pictures.normal[:2], parameters="conv.*").features is None
    micro = gradood.gradient_norms(model, pictures.normal[:5], micro_batch=2)
    torch.testing.assert_close(micro.features, expected[:5], rtol=1e-4, atol=1e-5)


def test_a_loss_for_each_label(model, pictures):
    x = pictures.normal[:3]
    both = gradood.gradient_norms(model, x, ["all_hot", "uniform"], ["bce", "ce"]).values
    for k, pair in enumerate([("all_hot", "bce"), ("uniform", "ce")]):
        expected = gradood.gradient_norms(model, x, *pair).values
        torch.testing.assert_close(both[:, k], expected, rtol=1e-4, atol=0)
    with pytest.raises(InputError, match="1 losses for 2 labels"):
        gradood.gradient_norms(model, x, ["all_hot", "uniform"], ["bce"])


# The classifier has 29 parameters, 64 penultimate features and 10 classes.
@pytest.mark.parametrize(
    ("preset", "read"),
    [
        ("fast", [29, 64]),
        ("adversarial", [2 * 29, 2 * 29 + 64]),
        pytest.param("best", [10 * 29, 10], marks=pytest.mark.slow),
    ],
)
def test_presets_score_save_and_load(preset, read, model, pictures, tmp_path):
    detector = GradientDetector(model, preset).fit(pictures.fit)
    scores = [detector.score(images) for images in (pictures.normal, pictures.anomalous)]
    assert evaluate(*scores).auroc > 0.85
    detector.calibrate(pictures.normal, fpr=0.1).save(tmp_path / "d")
    saved = load_file(tmp_path / "d")
    assert [len(saved[f"{part}.kept"]) for part in (0, 1)] == read
    loaded = gradood.load(tmp_path / "d", model)
    assert (loaded.preset, loaded.threshold) == (preset, detector.threshold)
    assert torch.equal(loaded.score(pictures.anomalous), scores[1])


def test_scores_are_standardised_on_normal_inputs_that_were_held_back(model, norms):
    detector = GradientDetector(model).fit(norms["fit"])
    scores = detector.score(norms["fit"].select(slice(4, None, 5)))
    assert abs(float(scores.mean())) < 1e-5
    assert 0.5 < float(scores.std()) <= 1.0 + 1e-5


def test_what_a_preset_lacks_is_an_error(model, pictures):
    with pytest.raises(InputError, match="fast, adversarial, best"):
        GradientDetector(model, "slow")
    with pytest.raises(InputError, match="penultimate"):
        GradientDetector(model, parameters="stage1.*").fit(pictures.fit[:20])
    headless = nn.Sequential(nn.Conv2d(1, 3, 28), nn.Flatten()).eval()
    with pytest.raises(InputError, match="penultimate"):
        GradientDetector(headless).fit(pictures.fit[:20])


@pytest.mark.parametrize("count, said", [(199, True), (200, False)])
def test_too_few_normal_inputs_are_said(model, norms, caplog, count, said):
    GradientDetector(model).fit(norms["fit"].select(torch.arange(count) % len(norms["fit"].logits)))
    assert ("seen too little" in caplog.text) is said
