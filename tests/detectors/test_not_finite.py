"""What a model makes NaN or Inf of is never normal, and fits nothing."""

import math

import pytest
import torch
from torch import nn

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
from gradood.errors import InputError, ModelError
from gradood.gradients import gradient_grams, gradient_norms

KINDS = {
    "fast": lambda m: GradientDetector(m),
    "adversarial": lambda m: GradientDetector(m, preset="adversarial"),
    "knn": GradientKNN,
    "mahalanobis": GradientMahalanobis,
    "gmm": lambda m: GradientGMM(m, components=2),
    "confounding": ConfoundingDetector,
    "max-softmax": MaxSoftmax,
    "energy": Energy,
    "gradnorm": GradNorm,
    "exgrad": ExGrad,
    "uncertainty": GradUncertainty,
}


class Breaks(nn.Module):
    """Where the first feature of an input is above 10, something on the way is not finite."""

    def __init__(self, where, value):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(6, 16), nn.Linear(16, 4)
        self.where, self.value = where, value

    def forward(self, x):
        broken = x[:, :1] > 10
        hidden = self.first(x).relu()
        if self.where == "hidden":
            hidden = hidden.masked_fill(broken, self.value)
        logits = self.last(hidden)
        if self.where == "logits":
            return logits.masked_fill(broken, self.value)
        if self.where == "one logit":
            return torch.where(broken & (torch.arange(4) == 2), self.value, logits)
        return logits


BREAKS = {
    f"{value} in {where}": (where, value)
    for where in ("hidden", "logits", "one logit")
    for value in (math.nan, math.inf, -math.inf)
}
EVERY_BREAK = pytest.mark.parametrize("broken", BREAKS)


@pytest.fixture(scope="module")
def x():
    return torch.randn(60, 6, generator=torch.Generator().manual_seed(0))


def with_broken(x):
    """Eight inputs of which the third and the seventh break the model."""
    x = x[:8].clone()
    x[[2, 6], 0] = 20.0
    return x


@pytest.mark.parametrize("broken", ["nan in hidden", "-inf in logits", "inf in one logit"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("policy", ["raise", "flag"])
def test_a_broken_input_is_anomalous_and_the_others_are_what_they_were(kind, broken, policy, x):
    model = Breaks(*BREAKS[broken]).eval()
    detector = KINDS[kind](model)
    detector.nan_policy = policy
    detector.fit(*([x, 5 * x] if kind == "confounding" else [x])).calibrate(x)
    rows = with_broken(x)
    scores = detector.score(rows)
    assert scores[[2, 6]].tolist() == [math.inf, math.inf]
    assert detector.predict(rows)[[2, 6]].all()
    rest = [0, 1, 3, 4, 5, 7]
    torch.testing.assert_close(scores[rest], detector.score(rows[rest]), rtol=1e-4, atol=1e-4)


@EVERY_BREAK
@pytest.mark.parametrize("compute", [gradient_norms, gradient_grams])
def test_norms_of_what_the_model_breaks_on_are_an_error_or_infinite(compute, broken, x):
    model = Breaks(*BREAKS[broken]).eval()
    rows = with_broken(x)
    with pytest.raises(ModelError, match=r"2 of 8 rows \(2, 6\)"):
        compute(model, rows)
    found = compute(model, rows, nan_policy="flag")
    assert found.values[[2, 6]].isposinf().all() and found.logits[[2, 6]].isnan().all()
    rest = [0, 1, 3, 4, 5, 7]
    torch.testing.assert_close(found.values[rest], compute(model, rows[rest]).values)


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_the_fallback_flags_what_the_rules_flag(method, x):
    rows = with_broken(x)
    model = Breaks("logits", math.nan).eval()
    with pytest.raises(ModelError, match=r"\(2, 6\)"):
        gradient_norms(model, rows, method=method)
    flagged = gradient_norms(model, rows, method=method, nan_policy="flag").values
    torch.testing.assert_close(flagged, gradient_norms(model, rows, nan_policy="flag").values)


def test_a_norm_that_overflows_is_an_error(x):
    model = nn.Linear(6, 2).eval()
    rows = x[:4].clone()
    rows[1] = 1e25  # the square is beyond float32, the logits are not
    with pytest.raises(ModelError, match=r"1 of 4 rows \(1\)"):
        gradient_norms(model, rows, loss="logit")
    flagged = gradient_norms(model, rows, loss="logit", nan_policy="flag").values
    assert flagged.isposinf().all(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize("kind", [k for k in KINDS if k in ("fast", "knn", "gmm", "mahalanobis")])
def test_nothing_is_fitted_on_what_the_model_breaks_on(kind, x):
    broken = x.clone()
    broken[5, 0] = 20.0
    with pytest.raises(InputError, match="not finite"):
        KINDS[kind](Breaks("logits", math.nan).eval()).fit(broken)


def test_a_threshold_is_not_calibrated_on_what_the_model_breaks_on(x):
    broken = x.clone()
    broken[:10, 0] = 20.0
    with pytest.raises(InputError, match="10 of 60 normal scores are not finite"):
        MaxSoftmax(Breaks("logits", math.nan).eval()).calibrate(broken)
