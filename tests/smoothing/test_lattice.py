"""Integer noise has the distribution that its certificate assumes, to the bound that it states."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr

import gradood
from gradood.errors import InputError
from gradood.smoothing.lattice import Lattice


def draw(shape=(1, 64, 64), sigma=0.05, copies=64, seed=0, tag=0):
    """Integers ``[copies, *shape]``."""
    zeros = torch.zeros(copies, dtype=torch.long)
    lattice = Lattice(torch.zeros(1, *shape), sigma)
    values = lattice.copies(zeros, zeros, torch.arange(copies), torch.tensor([seed, tag]))
    steps = values.double() * 255
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    return steps.round().long()


@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.5])
def test_integers_have_the_rounded_normal_distribution(sigma):
    numbers = draw(sigma=sigma).flatten().numpy()
    scale = 255 * sigma
    inner = np.arange(math.floor(-2 * scale), math.ceil(2 * scale) + 1)
    edges = np.concatenate([[-np.inf], inner + 0.5, [np.inf]])
    expected = np.diff(ndtr(edges / scale)) * len(numbers)
    observed = np.histogram(numbers, edges)[0]
    usable = expected > 20
    observed = np.append(observed[usable], observed[~usable].sum())
    expected = np.append(expected[usable], expected[~usable].sum())
    kept = expected > 0
    assert stats.chisquare(observed[kept], expected[kept]).pvalue > 1e-3


def test_thresholds_are_as_exact_as_the_proof_needs():
    """Phi of scipy against 40 digits: within 2^-49 at every threshold."""
    mpmath.mp.dps = 40
    for sigma in (0.01, 0.25):
        lattice = Lattice(torch.zeros(1, 1), sigma)
        reach = len(lattice._thresholds) // 2
        for j in range(-reach, reach, max(1, reach // 60)):
            exact = mpmath.ncdf(mpmath.mpf(j + 0.5) / mpmath.mpf(255 * sigma))
            drawn = mpmath.mpf(int(lattice._thresholds[j + reach])) / mpmath.mpf(2) ** 53
            assert abs(exact - drawn) < mpmath.mpf(2) ** -48


def test_noise_is_of_its_copy_alone():
    one = draw(copies=4)
    assert torch.equal(draw(copies=2), one[:2])
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(draw(copies=1, tag=1), one[:1])
    assert not torch.equal(draw(copies=1, seed=1), one[:1])


def test_slack_is_small_and_grows_with_the_input():
    small, large = Lattice(torch.zeros(1, 1, 28, 28), 0.25), Lattice(torch.zeros(1, 3, 224, 224), 1)
    assert 0 < small.slack < 1e-7 < large.slack < 1e-4


def test_certificates_on_the_grid(half_space, points):
    x = (points(0.8, -0.6, 0.02) * 255).round() / 255
    smoothing = gradood.Smoothing(sigma=0.3, n=2000, exact_grid=True)
    fixed = gradood.certify_class(half_space, x, smoothing)
    assert fixed.label[:2].tolist() == [1, 0]
    # A step of the lattice lies between the half-space's border and that of its rounded version.
    assert (fixed.radius[:2] <= x[:2, 0].abs() + 1 / 255).all() and (fixed.radius[:2] > 0.4).all()
    target = gradood.certify_class(half_space, x, smoothing, radius=0.3)
    assert target.abstained.tolist() == [False, False, True]
    decided = gradood.certify_decision(lambda z: z[:, 0], x, smoothing, threshold=0.0, radius=0.3)
    assert decided.decision.tolist() == [1, -1, 0]
    bounds = gradood.certify_quantile(lambda z: z[:, 0], x, smoothing, radius=0.1)
    assert (bounds.lower[:, 0] <= x[:, 0] - 0.1).all() and (
        bounds.upper[:, 0] >= x[:, 0] + 0.1 - 1 / 255
    ).all()
    for made in (fixed, target, decided, bounds):
        assert made.evidence.common["slack"] > 0
        assert all(gradood.smoothing.verify(r) is None for r in made.evidence.records())


def test_slack_widens_every_bound(half_space, points, monkeypatch):
    """With a slack of 0.2 nothing that rests on 95 % is left."""
    x = points(0.8)
    x = (x * 255).round() / 255
    smoothing = gradood.Smoothing(sigma=0.5, n=500, exact_grid=True)

    def everything():
        return [
            gradood.certify_class(half_space, x, smoothing).lower[0],
            gradood.certify_decision(lambda z: z[:, 0], x, smoothing, threshold=0.0).lower[0],
            gradood.certify_quantile(lambda z: z[:, 0], x, smoothing).lower[0, 0],
            ~gradood.certify_class(half_space, x, smoothing, radius=0.5).abstained[0],
            gradood.certify_decision(
                lambda z: z[:, 0], x, smoothing, threshold=0.0, radius=0.5
            ).decision[0],
        ]

    before = everything()
    monkeypatch.setattr("gradood.smoothing.noise.NoisyInputs.slack", 0.2)
    after = everything()
    assert all(b < a for a, b in zip(before, after, strict=True))


def test_inputs_off_the_grid_are_refused(half_space, points):
    smoothing = gradood.Smoothing(sigma=0.3, exact_grid=True)
    with pytest.raises(InputError, match="1/255"):
        gradood.certify_class(half_space, points(0.5001), smoothing)
    with pytest.raises(InputError, match="certify_mean"):
        gradood.certify_mean(lambda z: z[:, 0], points(1.0), smoothing)


def test_half_precision_and_clamp_apply_to_the_exact_sum(pictures):
    from gradood.smoothing.noise import NoisyInputs

    settings = gradood.Smoothing(
        sigma=0.5, exact_grid=True, clamp=(0, 1), dtype="bfloat16", channels_last=True
    )
    copies = NoisyInputs(pictures, None, settings).copies(torch.arange(6), torch.arange(6), 0)
    assert copies.dtype == torch.bfloat16 and copies.min() == 0 and copies.max() == 1
    assert copies.is_contiguous(memory_format=torch.channels_last)
