"""Class certificates against half-spaces, whose probabilities are known, and a real network."""

import math

import numpy as np
import pytest
import torch
from scipy.special import ndtr, ndtri
from torch import nn

import gradood
from gradood.errors import CheckpointError, InputError, ModelError
from gradood.smoothing.bounds import binomial


def test_radius_is_that_of_cohens_theorem(half_space, points):
    x = points(0.5, -0.8, 0.0)
    smoothing = gradood.Smoothing(sigma=0.5, n=2000, alpha=0.01)
    found = gradood.certify_class(half_space, x, settings=smoothing)
    assert found.label[:2].tolist() == [1, 0]
    assert found.samples.tolist() == [2064] * 3
    for i in range(3):
        counts = found.evidence.rows[i]["counts"]
        hits = counts[found.label[i]]
        assert sum(counts) == 2000 and counts[2] == 0
        lower = float(binomial.lower(hits, 2000, 0.005))
        upper = min(1 - lower, float(binomial.upper(2000 - hits, 2000, 0.005)))
        expected = 0.25 * (ndtri(lower) - ndtri(upper))
        assert found.radius[i] == pytest.approx(max(expected, 0))
        assert bool(found.abstained[i]) == (expected <= 0)
    # The truth is the distance; the bound is below it, and not far.
    assert 0.4 < found.radius[0] <= 0.5 and 0.65 < found.radius[1] <= 0.8


def test_two_bounds_beat_one_where_other_classes_share_the_rest():
    """Three runners-up: the usual one-sided bound would abstain."""
    weights = torch.eye(4)

    def model(x):
        return x @ weights

    x = torch.tensor([[0.35, 0.0, 0.0, 0.0]])
    smoothing = gradood.Smoothing(sigma=0.5, n=4000)
    found = gradood.certify_class(model, x, settings=smoothing)
    assert found.label[0] == 0
    hits = found.evidence.rows[0]["counts"][0]
    assert binomial.lower(hits, 4000, 1e-3) < 0.5, "not the case that was meant"
    assert found.radius[0] > 0.1
    # Wherever the point moves within the radius, the smoothed class must stay: towards each rival.
    move = found.radius[0] / math.sqrt(2)
    worst = x + move * torch.tensor([[-1.0, 1.0, 0.0, 0.0]])
    again = gradood.certify_class(model, worst.float(), settings=smoothing)
    assert again.evidence.rows[0]["counts"][0] > again.evidence.rows[0]["counts"][1]


def test_a_target_radius_takes_few_samples_where_it_is_clear(half_space, points):
    x = points(2.0, 0.1, -1.5)
    smoothing = gradood.Smoothing(sigma=0.5, n=100_000)
    found = gradood.certify_class(half_space, x, settings=smoothing, radius=0.5)
    assert found.abstained.tolist() == [False, True, False]
    assert found.radius.tolist() == [0.5, 0.0, 0.5]
    assert found.label[[0, 2]].tolist() == [1, 0]
    assert (found.samples < 400).all()
    assert found.lower[0] == pytest.approx(ndtr(1.0)) and found.upper[0] == pytest.approx(ndtr(-1))


def test_open_cases_get_the_exact_bounds_at_the_end(half_space, points):
    """A radius just within reach of n samples, too near for the sequential test."""
    smoothing = gradood.Smoothing(sigma=0.5, n=20_000, futility=0.0)
    x = points(0.505)
    found = gradood.certify_class(half_space, x, settings=smoothing, radius=0.5)
    assert found.samples[0] == 20_064
    hits = found.evidence.rows[0]["counts"][1]
    reach = 0.5 * ndtri(float(binomial.lower(hits, 20_000, 5e-4)))
    assert found.radius[0] == pytest.approx(reach if reach >= 0.5 else 0.0)


def test_sequential_two_sided_claims_hold_for_several_classes():
    """The pilot sees rivals that share the rest: a radius beyond the one-sided bound's reach."""

    def model(x):
        return x @ torch.eye(4)

    x = torch.tensor([[0.4, 0.0, 0.0, 0.0]])
    smoothing = gradood.Smoothing(sigma=0.5, n=20_000, seed=0)
    found = gradood.certify_class(model, x, settings=smoothing, radius=0.1)
    assert not found.abstained[0] and found.samples[0] < 20_000
    lower, upper = float(found.lower[0]), float(found.upper[0])
    assert lower < float(ndtr(0.2)) and upper < 1 - lower, "one-sided after all"
    assert 0.25 * (ndtri(lower) - ndtri(upper)) == pytest.approx(0.1)


def test_nan_logits_are_a_class_of_their_own(half_space, points):
    class Broken(nn.Module):
        def forward(self, x):
            logits = half_space(x)
            return torch.where(x[:, 1:2] > 0, torch.nan, logits)  # half of the noise

    found = gradood.certify_class(
        Broken(), points(3.0), settings=gradood.Smoothing(sigma=0.5, n=500)
    )
    counts = found.evidence.rows[0]["counts"]
    assert found.abstained[0] and 180 < counts[2] < 320


def test_no_failure_beyond_alpha_on_borderline_points(half_space):
    """Two hundred points whose true radius is just below the target: no certificate may be there.

    alpha = 0.05: the bound is 10 on average, 20 or more has probability 2e-3 even at equality.
    """
    smoothing = gradood.Smoothing(sigma=1.0, n=400, alpha=0.05, n0=32, futility=0.0)
    x = torch.zeros(200, 4)
    x[:, 0] = 0.4999
    found = gradood.certify_class(half_space, x, settings=smoothing, radius=0.5)
    assert int((~found.abstained).sum()) < 20
    fixed = gradood.certify_class(half_space, x, settings=smoothing)
    assert int((fixed.radius > 0.4999).sum()) < 20


def test_label_and_bounds_come_from_different_samples(half_space, points):
    found = gradood.certify_class(
        half_space, points(0.01), settings=gradood.Smoothing(sigma=1.0, n=64, n0=64, seed=0)
    )
    row = found.evidence.rows[0]
    assert sum(row["pilot"]) == sum(row["counts"]) == 64
    assert row["pilot"] != row["counts"], "the same noise was used twice"


def test_embedded_classifier_keeps_its_clear_classes(classifier, pictures):
    smoothing = gradood.Smoothing(sigma=0.01, n=256)
    found = gradood.certify_class(classifier, pictures, settings=smoothing, radius=0.005)
    with torch.no_grad():
        clean = classifier(pictures).argmax(1)
    certified = ~found.abstained
    assert certified.sum() >= 4
    assert (found.label[certified] == clean[certified]).float().mean() >= 0.75


@pytest.mark.parametrize(
    "change, match",
    [
        ({"sigma": 0.0}, "sigma"),
        ({"sigma": -1.0}, "sigma"),
        ({"sigma": math.inf}, "sigma"),
        ({"sigma": math.nan}, "sigma"),
        ({"alpha": 0.0}, "alpha"),
        ({"alpha": 1.0}, "alpha"),
        ({"n": 0}, "n = 0"),
        ({"n": 2.5}, "n = 2.5"),
        ({"n": 2**32}, "n = "),
        ({"n0": 0}, "n0"),
        ({"seed": 1.5}, "seed"),
        ({"seed": 2**64}, "64 bits"),
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": "large"}, "batch_size"),
        ({"tile": -1}, "tile"),
        ({"dtype": "int8"}, "dtype"),
        ({"clamp": (1.0, 0.0)}, "clamp"),
        ({"futility": 1.0}, "futility"),
        ({"denoiser": 3}, "denoiser"),
    ],
)
def test_settings_out_of_range_are_refused(change, match):
    with pytest.raises(InputError, match=match):
        gradood.Smoothing(**{"sigma": 0.5, **change})


@pytest.mark.parametrize("radius", [-0.1, math.nan, math.inf])
def test_radius_out_of_range_is_refused(half_space, points, radius):
    with pytest.raises(InputError, match="radius"):
        gradood.certify_class(
            half_space, points(1.0), settings=gradood.Smoothing(sigma=1), radius=radius
        )


@pytest.mark.parametrize(
    "x, match",
    [
        (torch.zeros(3, 4, dtype=torch.uint8), "255"),
        (torch.zeros(3), r"\[N, ...\]"),
        (torch.tensor([[0.0, 1], [math.nan, 0]]), r"rows \[1\]"),
        (torch.zeros(3, 0), "cannot be smoothed"),
        ([[1.0]], "Tensor"),
    ],
)
def test_bad_inputs_are_refused(half_space, x, match):
    with pytest.raises(InputError, match=match):
        gradood.certify_class(half_space, x, settings=gradood.Smoothing(sigma=0.5))


@pytest.mark.parametrize("ids", [[0, 0], [0], [-1, 2], [0, 2**32], [0.5, 1.0]])
def test_bad_ids_are_refused(half_space, points, ids):
    with pytest.raises(InputError, match="ids"):
        gradood.certify_class(
            half_space, points(1, 2), settings=gradood.Smoothing(sigma=1.0), ids=ids
        )


def test_results_that_are_no_logits_are_refused(points):
    smoothing = gradood.Smoothing(sigma=0.5, n=64)
    with pytest.raises(ModelError, match=r"\[N, C\]"):
        gradood.certify_class(lambda x: x.sum(1), points(1.0), settings=smoothing)
    with pytest.raises(ModelError, match="ndarray"):
        gradood.certify_class(lambda x: x.numpy(), points(1.0), settings=smoothing)
    with pytest.raises(InputError, match="callable"):
        gradood.certify_class(3, points(1.0), settings=smoothing)


def test_batch_statistics_are_refused(points):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    with pytest.raises(ModelError, match="eval"):
        gradood.certify_class(model, points(1.0), settings=gradood.Smoothing(sigma=0.5))


def test_a_model_that_changes_is_refused(half_space, points):
    class Learning(nn.Module):
        """Moves its border with every batch."""

        def __init__(self):
            super().__init__()
            self.inner = half_space

        def forward(self, x):
            self.inner.normal.add_(0.1)
            return self.inner(x)

    with pytest.raises(ModelError, match="changed"):
        gradood.certify_class(Learning(), points(1.0), settings=gradood.Smoothing(sigma=0.5, n=64))


def test_a_model_whose_outputs_change_is_refused(points):
    widths = iter(range(2, 100))
    with pytest.raises(ModelError, match="outputs"):
        gradood.certify_class(
            lambda x: torch.zeros(len(x), next(widths)),
            points(1.0),
            settings=gradood.Smoothing(sigma=0.5, n=640),
        )


def test_random_models_are_allowed(points):
    """Dropout that is left on: randomness that does not depend on x."""
    model = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 2)).train()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0, 0, 0, 0], [1.0, 0, 0, 0]]))
        model[1].bias.zero_()
    found = gradood.certify_class(model, points(3.0), settings=gradood.Smoothing(sigma=0.5, n=500))
    assert found.label[0] == 1 and found.radius[0] > 0


def test_no_inputs_no_certificates(half_space):
    smoothing = gradood.Smoothing(sigma=0.5)
    for radius in (None, 0.5):
        found = gradood.certify_class(
            half_space, torch.zeros(0, 4), settings=smoothing, radius=radius
        )
        assert found.label.shape == found.radius.shape == found.samples.shape == (0,)
        assert found.evidence.records() == []


def test_denoiser_sees_sigma_and_comes_first(half_space, points):
    seen = set()

    def denoiser(noisy, sigma):
        seen.add(sigma)
        return torch.where(noisy.abs() > 10, noisy, points(5.0).expand_as(noisy))

    smoothing = gradood.Smoothing(sigma=0.3, n=100, denoiser=denoiser)
    found = gradood.certify_class(half_space, points(-5.0), settings=smoothing)
    assert seen == {0.3} and found.label[0] == 1
    assert found.evidence.common["settings"]["denoiser"].endswith("denoiser")
    with pytest.raises(ModelError, match="shape"):
        bad = gradood.Smoothing(sigma=0.3, denoiser=lambda noisy, sigma: noisy[:1])
        gradood.certify_class(half_space, points(-5.0), settings=bad)


def test_a_denoisers_weights_are_part_of_the_state(half_space, points, tmp_path):
    class Denoiser(nn.Linear):
        def forward(self, noisy, sigma):
            return super().forward(noisy)

    state = tmp_path / "state.safetensors"
    smoothing = gradood.Smoothing(sigma=0.3, n=100, denoiser=Denoiser(4, 4))
    gradood.certify_class(half_space, points(1.0), settings=smoothing, state=state)
    with torch.no_grad():
        smoothing.denoiser.bias.add_(1.0)
    with pytest.raises(CheckpointError, match="denoiser"):
        gradood.certify_class(half_space, points(1.0), settings=smoothing, state=state)


def test_progress_is_shown_where_it_is_wanted(half_space, points, capsys):
    gradood.certify_class(half_space, points(1.0), settings=gradood.Smoothing(sigma=1.0, n=100))
    assert capsys.readouterr().err == "", "stderr is no terminal"
    shown = gradood.Smoothing(sigma=1.0, n=100, progress=True)
    gradood.certify_class(half_space, points(1.0, 2.0), settings=shown)
    assert "2/2 inputs, 200 samples" in capsys.readouterr().err


def test_noise_is_added_once_at_sigma(points):
    """A published code added it twice: then the variance would double."""
    seen = []

    def model(x):
        seen.append(x.clone())
        return torch.zeros(len(x), 2)

    gradood.certify_class(model, points(0.0), settings=gradood.Smoothing(sigma=0.25, n=6400, n0=1))
    noise = torch.cat(seen[1:]).numpy()
    assert np.std(noise) == pytest.approx(0.25, rel=0.05)


def test_clamp_is_part_of_the_model(points):
    seen = []

    def model(x):
        seen.append(x.clone())
        return torch.zeros(len(x), 2)

    settings = gradood.Smoothing(sigma=2.0, n=64, clamp=(0.0, 1.0))
    gradood.certify_class(model, points(0.5), settings=settings)
    values = torch.cat(seen)
    assert values.min() == 0 and values.max() == 1


@pytest.mark.parametrize("classes", [1, 3])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["all", "one"])
def test_logits_that_are_no_numbers_are_certified_for_no_class(classes, value, where):
    class Overflowing(nn.Module):
        def forward(self, x):
            logits = x.new_zeros(len(x), classes)
            logits[:, slice(None) if where == "all" else 0] = value
            return logits

    x, settings = torch.rand(2, 1, 4, 4), gradood.Smoothing(sigma=0.1, n=100)
    for radius in (None, 0.01):
        found = gradood.certify_class(Overflowing().eval(), x, settings=settings, radius=radius)
        assert found.abstained.all() and (found.radius == 0).all()
