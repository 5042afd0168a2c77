"""The adapter against the detectors themselves, and inside scikit-learn's machinery."""

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import gradood
from gradood.data import embedded_classifier, embedded_images
from gradood.errors import InputError
from gradood.integrations.sklearn import GradientOutlier


@pytest.fixture(scope="module")
def pictures():
    normal, strange = embedded_images("fashion-mnist-train")[:300], embedded_images("mnist")[:50]
    return normal.flatten(1).numpy(), strange.flatten(1).numpy()


def adapter(**options):
    return GradientOutlier(
        embedded_classifier(), detector="gradient-knn", input_shape=(1, 28, 28), **options
    )


def test_it_is_the_detector_with_scikit_learns_signs(pictures):
    normal, strange = pictures
    found = adapter(fpr=0.1).fit(normal)
    x = torch.from_numpy(normal).reshape(-1, 1, 28, 28)
    out = torch.arange(300) % 5 == 0
    expected = gradood.GradientKNN(embedded_classifier()).fit(x[~out]).calibrate(x[out], fpr=0.1)
    probe = torch.from_numpy(strange).reshape(-1, 1, 28, 28)
    np.testing.assert_allclose(found.score_samples(strange), -expected.score(probe), rtol=1e-4)
    assert found.offset_ == pytest.approx(-expected.threshold, rel=1e-4)
    assert ((found.predict(strange) == -1) == expected.predict(probe).numpy()).all()
    assert ((found.decision_function(strange) < 0) == (found.predict(strange) == -1)).all()
    assert (found.fit_predict(normal) == -1).mean() < 0.2


def test_cloned_and_set_as_every_estimator(pictures):
    first = adapter().fit(pictures[0])
    second = clone(first)
    assert not hasattr(second, "detector_") and second.model is not first.model
    assert second.set_params(fpr=0.2, detector="energy").get_params()["fpr"] == 0.2
    second.fit(pictures[0])
    assert type(second.detector_) is gradood.Energy
    assert "GradientOutlier" in repr(first)


def test_cross_validation_and_search(pictures):
    normal, strange = pictures
    rows, truth = np.concatenate([normal[:120], strange]), np.r_[np.ones(120), -np.ones(50)]

    def auroc(estimator, x, y):
        return roc_auc_score(y, estimator.score_samples(x))

    order = np.random.default_rng(0).permutation(len(rows))
    scores = cross_val_score(adapter(fpr=0.1), rows[order], truth[order], scoring=auroc, cv=3)
    assert scores.shape == (3,) and np.isfinite(scores).all()
    predicted = cross_val_predict(adapter(fpr=0.1), normal, cv=3)
    assert set(predicted) <= {1, -1} and (predicted == -1).mean() < 0.25
    search = GridSearchCV(
        adapter(fpr=0.2), {"detector": ["energy", "gradient-knn"]}, scoring=auroc, cv=2
    )
    search.fit(rows[order], truth[order])
    assert search.best_params_["detector"] in ("energy", "gradient-knn")


def test_a_pipeline_on_a_table():
    random = np.random.default_rng(0)
    rows = random.normal(5, 3, size=(400, 6))  # float64: becomes what the model holds
    network = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).eval()
    pipeline = make_pipeline(
        StandardScaler(), GradientOutlier(network, detector="gradient-mahalanobis")
    )
    pipeline.fit(rows)
    assert (pipeline.predict(random.normal(5, 3, size=(200, 6))) == -1).mean() < 0.2
    assert (pipeline.predict(random.normal(60, 3, size=(200, 6))) == -1).mean() > 0.9


@pytest.mark.parametrize("options, said", [
    ({"detector": "confounding"}, "expected one of"), ({"detector": "magic"}, "expected one of"),
    ({"held_out": 1}, "held_out"), ({"fpr": 0.001}, "too few"),
])  # fmt: skip
def test_what_does_not_go_is_said(pictures, options, said):
    with pytest.raises(InputError, match=said):
        adapter().set_params(**options).fit(pictures[0])
    with pytest.raises(InputError, match="expected numbers"):
        adapter().fit(np.array([["a"]]))
