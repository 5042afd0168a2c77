"""Few, lopsided and repeated normal inputs: a sound score, or an error that says what to give."""

import logging

import pytest
import torch
from torch import nn

from gradood.data import embedded_images
from gradood.detectors import (
    ConfoundingDetector,
    GradientDetector,
    GradientGMM,
    GradientKNN,
    GradientMahalanobis,
)
from gradood.detectors.features import FEWEST, Standardiser
from gradood.errors import InputError
from gradood.evaluation import evaluate

KINDS = {
    **{f"GradientDetector {p}": (GradientDetector, {"preset": p}) for p in ("fast", "adversarial")},
    "GradientKNN": (GradientKNN, {}),
    "GradientMahalanobis": (GradientMahalanobis, {}),
    "GradientGMM": (GradientGMM, {"components": 2}),
    "ConfoundingDetector": (ConfoundingDetector, {}),
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def by_class(model):
    """Training pictures by the class that the classifier predicts."""
    pictures = embedded_images("fashion-mnist-train")[:1000]
    with torch.no_grad():
        classes = model(pictures).argmax(1)
    return [pictures[classes == c] for c in range(10)]


def fit(kind, model, normal, anomalies):
    cls, options = KINDS[kind]
    logging.getLogger("gradood").setLevel(logging.ERROR)  # each fit here is on too few
    sources = [normal] + ([anomalies] if cls is ConfoundingDetector else [])
    try:
        return cls(model, **options).fit(*sources)
    finally:
        logging.getLogger("gradood").setLevel(logging.NOTSET)


@EVERY_KIND
@pytest.mark.parametrize("c", [1, pytest.param(8, marks=pytest.mark.slow)])
def test_normal_inputs_of_one_predicted_class(kind, c, model, by_class, pictures):
    normal, held = by_class[c][:60], by_class[c][60:90]
    detector = fit(kind, model, normal, pictures.anomalies)
    scores, others = detector.score(held), detector.score(pictures.anomalous[:30])
    assert scores.isfinite().all() and others.isfinite().all()
    assert scores.abs().max() < 1e4
    assert evaluate(scores, others).auroc > 0.9


SITUATIONS = {
    "two": lambda by: [by[1][:2]],
    "four of one class": lambda by: [by[1][:4]],
    "one of each class": lambda by: [group[:1] for group in by],
    "twelve of one class": lambda by: [by[1][:12]],
    "twenty": lambda by: [group[:2] for group in by],
    "one class, and one other": lambda by: [by[1][:60], by[7][:1]],
    "one class, and one of each other": lambda by: [by[1][:60], *(g[:1] for g in by[2:])],
    "one input again and again": lambda by: [by[1][:1].repeat(40, 1, 1, 1)],
    "two inputs again and again": lambda by: [by[1][:2].repeat(30, 1, 1, 1)],
    "one again and again, and others": lambda by: [by[1][:1].repeat(40, 1, 1, 1), by[3][:3]],
    "six inputs again and again": lambda by: [torch.cat([by[1][:3], by[3][:3]]).repeat(9, 1, 1, 1)],
    "blank pictures": lambda by: [torch.zeros(30, 1, 28, 28)],
    "alike up to rounding": lambda by: [by[1][:1] + 1e-7 * torch.rand(30, 1, 28, 28)],
}  # fmt: skip


@pytest.mark.parametrize("situation", SITUATIONS)
@EVERY_KIND
def test_scores_are_numbers_of_a_sane_size_or_there_is_an_error(
    kind, situation, model, by_class, pictures
):
    normal = torch.cat(SITUATIONS[situation](by_class))
    try:
        detector = fit(kind, model, normal, pictures.anomalies)
    except InputError as error:
        assert "give" in str(error) or "nothing to learn" in str(error)
        return
    for x in (normal[-10:], pictures.normal[:10], pictures.anomalous[:10]):
        scores = detector.score(x)
        assert scores.isfinite().all() and scores.abs().max() < 1e7


def test_five_inputs_that_differ_are_needed_however_often_they_repeat():
    rows = torch.randn(FEWEST, 3, generator=torch.Generator().manual_seed(0))
    assert Standardiser.fit(rows.repeat(7, 1)).kept.all()
    with pytest.raises(InputError, match=f"only {FEWEST - 1} of the 28"):
        Standardiser.fit(rows[1:].repeat(7, 1))


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_a_feature_that_varies_by_rounding_alone_is_constant(scale):
    generator = torch.Generator().manual_seed(0)
    features = scale * torch.randn(50, 3, generator=generator)
    features[:, 1] = scale * (1 + 1e-7 * torch.randn(50, generator=generator))
    assert Standardiser.fit(features).kept.tolist() == [True, False, True]


class OneClass(nn.Module):
    """Predicts class 2 whatever it sees."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 3)
        with torch.no_grad():
            self.last.bias.copy_(torch.tensor([0.0, 0.0, 100.0]))

    def forward(self, x):
        return self.last(self.first(x).relu())


@pytest.mark.parametrize("preset", ["fast", "adversarial"])
def test_a_measure_that_says_nothing_is_left_out(preset):
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(300, 8, generator=generator)
    anomalous = 8 * torch.randn(50, 8, generator=generator)
    detector = GradientDetector(OneClass().eval(), preset=preset)
    detector.fit(normal[:250])
    assert evaluate(detector.score(normal[250:]), detector.score(anomalous)).auroc > 0.95
