"""Attacks on scores: the search, its constraints, its seeds and its interruptions."""

import copy

import pytest
import torch
from torch import nn

from gradood.attacks import Expectation, attack_score, energy, max_confidence, through_softplus
from gradood.attacks.ascent import apgd_ascent, checkpoints
from gradood.attacks.ball import make_ball
from gradood.data import embedded_classifier, embedded_images
from gradood.detectors import Energy, GradientDetector, GradientMahalanobis, MaxSoftmax
from gradood.errors import CheckpointError, InputError, ModelError

NORMS = pytest.mark.parametrize("norm", ["linf", "l2"])
EPSILON = {"linf": 8 / 255, "l2": 1.0}


@pytest.fixture(scope="module")
def model():
    return embedded_classifier()


@pytest.fixture(scope="module")
def small():
    """Fast and smooth: for what does not depend on the network."""
    torch.manual_seed(0)
    layers = nn.Conv2d(1, 4, 5, stride=3), nn.Tanh(), nn.Flatten(), nn.Linear(256, 5)
    return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def anomalies():
    return embedded_images("mnist")[:12]


def distances(images, x, norm):
    offset = (images.double() - x.double()).flatten(1)
    return offset.abs().amax(1) if norm == "linf" else offset.norm(dim=1)


def plain_pgd(score, x, norm, epsilon, steps):
    """Written for this test: the last iterate of Madry et al., steps of epsilon / 4."""
    ball, points = make_ball(x, norm, epsilon, (0.0, 1.0)), x
    for _ in range(steps):
        points = points.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(score(points).sum(), points)
        points = ball.ascend(points.detach(), gradient, epsilon / 4)
    return score(points).detach()


@NORMS
@pytest.mark.parametrize("epsilon", [0.0, 1e-9, 1 / 255, 0.3, 3.0])
def test_points_stay_in_the_ball_and_in_range_exactly(norm, epsilon):
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(20, 1, 9, 9, generator=generator)
    ball = make_ball(x, norm, epsilon, (0.0, 1.0))
    gradient = torch.randn(x.shape, generator=generator)
    starts = [ball.uniform(torch.rand(x.shape, generator=generator), gradient)]
    starts += [ball.less_contrast(), ball.ascend(x, gradient, 7.0), ball.project(x + gradient)]
    for points in starts:
        assert bool((distances(points, x, norm) <= epsilon).all())
        assert points.min() >= 0 and points.max() <= 1
        if epsilon == 0:
            assert torch.equal(points, x)
    if 1e-3 < epsilon < 1:  # and the radius is used up, not only respected
        assert bool((distances(ball.ascend(x, gradient, 7.0), x, norm) > 0.5 * epsilon).all())


@NORMS
def test_random_starts_fill_the_ball(norm):
    x = torch.full((400, 3), 0.5)
    generator = torch.Generator().manual_seed(0)
    points = make_ball(x, norm, 0.2, (0.0, 1.0)).uniform(
        torch.rand(x.shape, generator=generator), torch.randn(x.shape, generator=generator)
    )
    share = (distances(points, x, norm) <= 0.1).double().mean()
    assert abs(share - 1 / 8) < 0.06  # half the radius is an eighth of the volume
    torch.testing.assert_close(points.mean(0), x[0], atol=0.02, rtol=0)


def test_less_contrast_moves_towards_the_mean_and_not_past_it():
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5]])
    near = make_ball(x, "linf", 0.1, (0.0, 1.0)).less_contrast()
    torch.testing.assert_close(near, torch.tensor([[0.1, 0.9, 0.5, 0.5]]))
    far = make_ball(x, "l2", 5.0, (0.0, 1.0)).less_contrast()
    torch.testing.assert_close(far, torch.full((1, 4), 0.5))


def test_checkpoints_are_those_of_the_paper():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(1) == [1]
    assert checkpoints(0) == []


@NORMS
def test_apgd_reaches_the_maximum_of_a_concave_function(norm):
    x = torch.full((3, 2), 0.5, dtype=torch.float64)
    best = torch.tensor([[0.52, 0.47], [0.9, 0.5], [0.5, 0.1]], dtype=torch.float64)
    ball = make_ball(x, norm, torch.tensor([0.1, 0.2, 0.2]), None)

    def closeness(points, step):
        return -((points - best) * torch.tensor([1.0, 3.0])).square().sum(1)

    points = apgd_ascent(closeness, x, ball, 100)[0]
    expected = torch.tensor([[0.52, 0.47], [0.7, 0.5], [0.5, 0.3]], dtype=torch.float64)
    torch.testing.assert_close(points, expected, atol=2e-3, rtol=0)


@pytest.mark.slow
@NORMS
@pytest.mark.parametrize("score", [max_confidence, energy], ids=["confidence", "energy"])
def test_apgd_is_at_least_as_strong_as_pgd_of_the_same_budget(norm, score, model, anomalies):
    target, epsilon, steps = score(model), EPSILON[norm] / 4, 100
    sign = 1 if score is max_confidence else -1
    found = attack_score(
        target,
        anomalies,
        epsilon=epsilon,
        norm=norm,
        direction="up" if sign > 0 else "down",
        steps=steps,
        restarts=1,
    )
    pgd = plain_pgd(lambda points: sign * target(points), anomalies, norm, epsilon, steps)
    assert (sign * found.score).mean() >= pgd.mean()
    # Input by input, the difference is small where it is in PGD's favour.
    assert bool((sign * found.score >= pgd - 0.02 * pgd.abs()).all())


@NORMS
def test_an_undefended_detector_breaks(norm, model, anomalies):
    normal = embedded_images("fashion-mnist")[:200]
    for detector in (MaxSoftmax(model), Energy(model)):
        threshold = detector.score(normal).quantile(0.8)
        found = attack_score(
            detector, anomalies, epsilon=EPSILON[norm], norm=norm, steps=10, restarts=1
        )
        assert (found.clean > threshold).double().mean() > 0.4
        assert (found.score < threshold).all()
        assert (found.score_rounded < threshold).all()
        assert bool((distances(found.images, anomalies, norm) <= EPSILON[norm]).all())
        with torch.no_grad():
            again = detector.score(found.images).double()
        torch.testing.assert_close(found.score, again, atol=1e-5, rtol=1e-5)
        levels = found.rounded * 255
        torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)


def test_every_point_is_attacked_whatever_the_classifier_says(model):
    """The published attack loop left out points whose label is not the prediction: all anomalies.

    Normal pictures right and wrong, and anomalous ones: each moves, and each loses.
    """
    x = torch.cat([embedded_images("fashion-mnist")[:20], embedded_images("mnist")[:10]])
    found = attack_score(energy(model), x, epsilon=0.01, steps=3, restarts=1)
    assert bool((found.score < found.clean).all())
    assert bool(((found.images - x).flatten(1).abs().amax(1) > 0.003).all())


def test_more_restarts_never_find_less_and_no_attack_is_among_them(small, anomalies):
    clean = energy(small)(anomalies).detach()
    scores = [
        attack_score(energy(small), anomalies, epsilon=0.02, steps=4, restarts=r).score
        for r in (1, 2, 4)
    ]
    assert bool((scores[0] >= scores[1]).all() and (scores[1] >= scores[2]).all())
    nothing = attack_score(energy(small), anomalies, epsilon=0.02, steps=0, restarts=1)
    torch.testing.assert_close(nothing.score, clean.double())
    still = attack_score(energy(small), anomalies, epsilon=0.0, steps=3, restarts=3)
    assert torch.equal(still.images, anomalies)


def test_restarts_begin_at_the_input_with_less_contrast_and_at_random(small, anomalies):
    seen = []

    def spy(x):
        seen.append(x.detach())
        return energy(small)(x)

    attack_score(spy, anomalies, epsilon=0.1, steps=0, restarts=4)
    starts = [seen[0], *seen[3:8:2]]  # the value of every start, and then its judgement
    assert torch.equal(starts[0], anomalies)
    assert (starts[1].flatten(1).std(1) < anomalies.flatten(1).std(1)).all()
    assert len({float(start.sum()) for start in starts}) == 4
    assert bool(((starts[2] - starts[3]).flatten(1).abs().amax(1) > 0.1).all())


def test_radii_may_differ_between_inputs(small, anomalies):
    epsilon = torch.linspace(0, 0.5, len(anomalies))
    found = attack_score(energy(small), anomalies, epsilon=epsilon, norm="l2", steps=5, restarts=1)
    lengths = distances(found.images, anomalies, "l2")
    assert bool((lengths <= epsilon.double()).all())
    assert lengths[0] == 0 and lengths[-1] > 0.4


def test_a_seed_gives_the_same_result_at_every_batch_size(small, anomalies):
    model = copy.deepcopy(small).double()
    x = anomalies.double()
    options = {"epsilon": 0.02, "steps": 4, "restarts": 3, "expectation": Expectation(0.05, 2)}
    whole = attack_score(energy(model), x, **options, seed=3)
    parts = attack_score(energy(model), x, **options, seed=3, batch_size=5)
    torch.testing.assert_close(whole.images, parts.images)
    torch.testing.assert_close(whole.score, parts.score)
    other = attack_score(energy(model), x, **options, seed=4)
    assert not torch.equal(whole.images, other.images)


def test_an_expectation_climbs_the_mean_under_noise():
    """A score that is flat at x itself, and whose mean under noise is not."""

    class Step(nn.Module):
        def forward(self, x):
            return (x[:, 0] - 0.6).clamp_min(0)

    x = torch.full((2, 3), 0.5)
    options = {"epsilon": 0.05, "norm": "l2", "direction": "up", "steps": 10, "restarts": 1}
    flat = attack_score(Step(), x, **options)
    assert torch.equal(flat.images, x)
    smooth = attack_score(Step(), x, **options, expectation=Expectation(0.2, 16))
    torch.testing.assert_close(smooth.images[:, 0], torch.full((2,), 0.55), atol=2e-3, rtol=0)
    # E (x + 0.2 Z - 0.6)⁺ = 0.2 (φ(a) - a (1 - Φ(a))), a = (0.6 - x) / 0.2
    normal = torch.distributions.Normal(0.0, 1.0)
    for mean, at in ((smooth.clean, 0.5), (smooth.score, 0.55)):
        a = torch.tensor((0.6 - at) / 0.2)
        exact = 0.2 * (normal.log_prob(a).exp() - a * (1 - normal.cdf(a)))
        assert (mean - exact).abs().max() < 0.05  # 32 samples


class Calls:
    made, most = 0, 0


def test_an_interrupted_attack_goes_on_and_gives_the_same(tmp_path, small, anomalies):
    options = {"epsilon": 0.02, "steps": 3, "restarts": 4, "batch_size": 5}
    score = energy(small)

    def counts(x):  # counted outside, for what a score encloses is part of its fingerprint
        Calls.made += 1
        if Calls.made > Calls.most:
            raise InterruptedError
        return score(x)

    state = tmp_path / "attack.safetensors"
    Calls.made, Calls.most = 0, 30
    with pytest.raises(InterruptedError):
        attack_score(counts, anomalies, **options, state=state)
    Calls.made, Calls.most = 0, 10**6
    resumed = attack_score(counts, anomalies, **options, state=state)
    through, Calls.made = Calls.made, 0
    straight = attack_score(counts, anomalies, **options)
    assert torch.equal(resumed.images, straight.images)
    assert torch.equal(resumed.score, straight.score)
    assert through < Calls.made - 10  # what was kept was not computed again
    with pytest.raises(CheckpointError, match="inputs"):
        attack_score(energy(small), anomalies[:5], **options, state=state)
    with pytest.raises(CheckpointError, match="budget"):
        attack_score(energy(small), anomalies, **{**options, "steps": 4}, state=state)


def test_a_progress_bar_counts_inputs_and_restarts(small, anomalies, capfd):
    attack_score(energy(small), anomalies[:3], epsilon=0.01, steps=1, restarts=2, progress=True)
    shown = capfd.readouterr().err
    assert "attacking" in shown and "6/6" in shown


def test_model_and_inputs_come_back_untouched(small, anomalies):
    before = anomalies.clone()
    with torch.inference_mode():
        attack_score(energy(small), anomalies, epsilon=0.01, steps=1, restarts=2)
    assert torch.equal(anomalies, before)
    assert all(p.grad is None and p.requires_grad for p in small.parameters())


def test_no_inputs_give_no_scores(model):
    found = attack_score(energy(model), torch.empty(0, 1, 28, 28), epsilon=0.1, restarts=1)
    assert found.images.shape == (0, 1, 28, 28) and found.score.shape == (0,)


def test_bad_input(small, anomalies):
    score = energy(small)
    for images, options, message in (
        (anomalies * 255, {}, r"\[0, 1\]"),
        ((anomalies * 255).to(torch.uint8), {}, "uint8"),
        (anomalies / 0, {}, "finite"),
        (anomalies, {"epsilon": -0.1}, "epsilon"),
        (anomalies, {"epsilon": torch.ones(3)}, "epsilon"),
        (anomalies, {"norm": "l1"}, "norm"),
        (anomalies, {"direction": "left"}, "direction"),
        (anomalies, {"restarts": 0}, "restarts"),
        (anomalies, {"expectation": Expectation(0.0)}, "sigma"),
    ):
        with pytest.raises(InputError, match=message):
            attack_score(score, images, **{"epsilon": 0.1, **options})
    with pytest.raises(ModelError, match="derivative"):
        attack_score(lambda x: score(x).detach(), anomalies, epsilon=0.1)
    with pytest.raises(ModelError, match=r"\[12\]"):
        attack_score(small, anomalies, epsilon=0.1)
    with pytest.raises(ModelError, match="eval"):
        attack_score(energy(embedded_classifier().train()), anomalies, epsilon=0.1)
    with pytest.raises(InputError, match="callable"):
        attack_score("energy", anomalies, epsilon=0.1)


@pytest.fixture(scope="module")
def mahalanobis(model):
    """Of the last layers' norms: fewer are cheaper to differentiate twice."""
    detector = GradientMahalanobis(model, parameters=["stage3.0.norm2.*", "linear.*"])
    return detector.fit(embedded_images("fashion-mnist-train")[:200])


def test_a_gradient_detector_breaks_through_its_norms(mahalanobis, anomalies):
    threshold = mahalanobis.score(embedded_images("fashion-mnist")[:100]).quantile(0.95)
    x = anomalies[mahalanobis.score(anomalies) > threshold][:4]
    assert len(x) == 4
    found = attack_score(mahalanobis, x, epsilon=1.0, norm="l2", steps=10, restarts=1)
    assert (found.score < threshold).double().mean() > 0.7
    torch.testing.assert_close(
        found.score.float(), mahalanobis.score(found.images), rtol=1e-3, atol=1e-2
    )


def test_a_softplus_changes_the_slope_and_not_the_value(mahalanobis, anomalies):
    x = anomalies[:3].clone().requires_grad_()
    exact, smooth = mahalanobis.differentiable_score(x), through_softplus(mahalanobis)(x)
    torch.testing.assert_close(smooth, exact, rtol=1e-5, atol=1e-5)
    slopes = [torch.autograd.grad(score.sum(), x)[0] for score in (exact, smooth)]
    assert (slopes[0] - slopes[1]).norm() > 0.01 * slopes[0].norm()
    sharp = through_softplus(mahalanobis, beta=1e5)(x)
    (nearly,) = torch.autograd.grad(sharp.sum(), x)
    assert (slopes[0] - nearly).norm() < 0.2 * slopes[0].norm()
    with pytest.raises(InputError, match="beta"):
        through_softplus(mahalanobis, beta=0.0)


@pytest.mark.parametrize("count", [0, 1])
def test_no_input_and_a_single_one_are_attacked_like_any(model, anomalies, count):
    detector = GradientDetector(model).fit(embedded_images("fashion-mnist")[:200])
    found = attack_score(detector, anomalies[:count], epsilon=0.03, steps=1, restarts=2)
    several = attack_score(detector, anomalies[:3], epsilon=0.03, steps=1, restarts=2)
    assert found.images.shape == anomalies[:count].shape and found.score.shape == (count,)
    torch.testing.assert_close(found.score, several.score[:count], rtol=1e-3, atol=1e-3)
