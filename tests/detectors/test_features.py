import math

import pytest
import torch
from torch import nn

from gradood.detectors import ConfoundingDetector, GradientGMM, GradientKNN, GradientMahalanobis
from gradood.detectors.features import FLOOR, Standardiser, log_norms
from gradood.errors import InputError


def test_zero_and_tiny_norms_have_the_same_finite_logarithm():
    logs = log_norms(torch.tensor([[0.0, 3e-23, 1.0]]))
    assert logs.tolist()[0] == pytest.approx([math.log(FLOOR), math.log(FLOOR), 0.0])


def test_infinite_norms_stay_infinite_and_nan_stays_nan():
    logs = log_norms(torch.tensor([[math.inf], [math.nan]]))
    assert not logs.isfinite().any()


def test_several_labels_become_columns():
    assert log_norms(torch.ones(5, 3, 7)).shape == (5, 21)


def test_constant_features_are_dropped_and_the_rest_standardised():
    features = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * 700 + 3
    features[:, 1] = 2.5
    standardise = Standardiser.fit(features)
    assert standardise.kept.tolist() == [True, False, True, True]
    z = standardise(features)
    torch.testing.assert_close(z.mean(0), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(0), torch.ones(3))


@pytest.mark.parametrize("rows", [0, 1, 4])
def test_too_few_normal_inputs(rows):
    with pytest.raises(InputError, match="too few"):
        Standardiser.fit(torch.rand(rows, 3))


def test_equal_normal_inputs_teach_nothing(model):
    same = torch.rand(1, 1, 28, 28).expand(30, -1, -1, -1)
    with pytest.raises(InputError, match="nothing to learn"):
        GradientMahalanobis(model).fit(same)


class DeadLayer(nn.Module):
    """A classifier with a layer whose gradient is always exactly zero."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 16)
        self.last = nn.Linear(16, 3)
        self.dead = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).relu()) + 0 * self.dead(x)


@pytest.mark.parametrize(
    "detector_class", [ConfoundingDetector, GradientMahalanobis, GradientKNN, GradientGMM]
)
def test_zero_norms_do_not_spoil_the_score(detector_class):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(300, 8, generator=generator)
    anomalous = 8 * torch.randn(50, 8, generator=generator)
    detector = detector_class(DeadLayer().eval())
    sources = [normal] + ([anomalous] if detector_class is ConfoundingDetector else [])
    detector.fit(*sources)
    scores, others = detector.score(normal), detector.score(anomalous)
    assert scores.isfinite().all() and others.isfinite().all()
    assert others.median() > scores.quantile(0.95)


def test_few_inputs_for_many_features(model, pictures):
    # 20 inputs do not determine a 29 x 29 covariance; shrinkage must carry it.
    detector = GradientMahalanobis(model).fit(pictures.fit[:20])
    assert detector.score(pictures.normal).isfinite().all()


def test_no_class_with_two_inputs(model, pictures, norms):
    logits = norms["fit"].logits.argmax(1)
    first = [int((logits == c).nonzero()[0]) for c in logits.unique()[:6]]
    with pytest.raises(InputError, match="same class"):
        GradientMahalanobis(model).fit(pictures.fit[first])
