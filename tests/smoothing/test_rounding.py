"""What is sampled has the distribution that the theorem needs, to the bound that is stated."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr
from torch import nn

import gradood
from gradood.ops import cpp_backend, grid, torch_backend
from gradood.ops.philox import noise_words
from gradood.smoothing import rounding
from gradood.smoothing.noise import NoisyInputs
from tests.ops.test_noise import SHAPES, instruction_sets

mpmath.mp.dps = 50


def arguments(shape, dtype=torch.float32, channels_last=False, limits=(None, 0.75)):
    torch.manual_seed(0)
    ids = [torch.randint(0, 2**32, (5,)) for _ in range(2)]
    return (
        torch.rand(3, *shape), torch.randint(0, 3, (5,)), *ids, torch.tensor([-(2**61) - 12345, 3]),
        0.37, 512.0, *limits, dtype, channels_last,
    )  # fmt: skip


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_backends_draw_the_same_bits(isa, shape):
    cpp_backend.use_instruction_set(isa)
    try:
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for last in (False, True) if len(shape) == 3 else (False,):
                call = arguments(shape, dtype, last)
                expected = grid.grid_batch(*call)
                assert torch.equal(cpp_backend.grid_batch(*call), expected)
                assert torch.equal(torch_backend.grid_batch(*call), expected)
    finally:
        cpp_backend.use_instruction_set("auto")


def test_logarithm_and_cosine_are_as_exact_as_the_proof_needs():
    generator = np.random.default_rng(0)
    u = np.concatenate(
        [
            generator.random(2000) * 2.0 ** -generator.integers(0, 65, 2000),
            1 - 2.0 ** -np.arange(1, 54),
            np.arange(1, 17) / 16,
            np.nextafter(np.arange(1, 16) / 16, 0),
            np.sqrt(0.5) * (1 + np.arange(-4, 5) * 2.0**-40),
        ]
    )
    logs = grid.log(torch.from_numpy(u)).tolist()
    cosines, sines = (part.tolist() for part in grid.cos_sin(torch.from_numpy(u)))
    for value, logarithm, cosine, sine in zip(u.tolist(), logs, cosines, sines, strict=True):
        exact, angle = mpmath.log(value), 2 * mpmath.pi * mpmath.mpf(value)
        assert abs(exact - logarithm) <= 2.0**-52 * (1 + abs(exact))
        assert abs(mpmath.cos(angle) - cosine) <= 2.0**-50
        assert abs(mpmath.sin(angle) - sine) <= 2.0**-50


def ideal_normal(words):
    """Normals of the real uniform numbers that lie in the middle of what 64 bits tell."""
    w = [int(word) for word in words]
    first, second = ((mpmath.mpf(w[i] * 2**32 + w[i + 1]) + 0.5) / 2**64 for i in (0, 2))
    radius = mpmath.sqrt(-2 * mpmath.log(first))
    return [radius * f(2 * mpmath.pi * second) for f in (mpmath.cos, mpmath.sin)]


def test_normals_are_as_near_to_ideal_ones_as_the_proof_says():
    key, shape = torch.tensor([7, 1]), (1, 512)
    ids = torch.zeros(1, dtype=torch.long)
    words = noise_words((1, 1024), ids, ids, key).view(-1, 4)
    drawn = grid.normals(shape, ids, ids, key).view(-1, 2)
    for four, pair in zip(words, drawn.tolist(), strict=True):
        ideal = ideal_normal(four)
        radius = math.hypot(*pair)
        for one, number in zip(ideal, pair, strict=True):
            assert abs(one - number) <= 2.0**-48 * radius + 2.0**-49 / radius


@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.5])
@pytest.mark.parametrize("exact_grid", [False, True])
def test_noise_is_the_rounded_normal_one(sigma, exact_grid):
    settings = gradood.Smoothing(sigma=sigma, exact_grid=exact_grid, seed=3)
    x = torch.full((1, 1, 64, 64), 0.3)
    rows = torch.zeros(32, dtype=torch.long)
    copies = NoisyInputs(x, None, settings).copies(rows, torch.arange(32), 0).double()
    steps = rounding.levels(sigma, exact_grid)
    multiples = copies * steps
    assert torch.allclose(multiples, multiples.round(), atol=1e-4)
    centre = float(x[0, 0, 0, 0].double()) * steps
    numbers = multiples.round().flatten().numpy() - centre
    scale = sigma * steps
    inner = np.arange(math.floor(-2 * scale), math.ceil(2 * scale) + 1) + round(centre) - centre
    if len(inner) > 200:
        inner = inner[:: len(inner) // 100]
    edges = np.concatenate([[-np.inf], inner + 0.5, [np.inf]])
    expected = np.diff(ndtr(edges / scale)) * numbers.size
    observed = np.histogram(numbers, edges)[0]
    assert stats.chisquare(observed, expected).pvalue > 1e-3
    if not exact_grid:
        assert 128 <= sigma * steps < 256


class Traces(nn.Module):
    """Class 0 exactly if two numbers are multiples of 2^-25 (Voracek and Hein 2022)."""

    def forward(self, v):
        y = v.flatten(1)[:, :2].double() * 2**25
        same = (y == y.round()).all(1).float()
        return torch.stack([same, 1 - same], 1)


class LastBits(nn.Module):
    """Class 0 if the last bits of the first number are as x = 1/2 or as x = 0 would leave them."""

    def forward(self, v):
        bits = v.flatten(1)[:, 0].float().view(torch.int32) & 7
        return torch.stack([(bits == 0).float(), (bits != 0).float()], 1)


@pytest.mark.parametrize("model", [Traces(), LastBits()])
@pytest.mark.parametrize("exact_grid", [False, True])
def test_rounding_shows_no_trace_of_the_input(model, exact_grid):
    """Inputs .707 apart, certified to .72 each: then both must have the same class."""
    found = []
    for value in (0.5, 0.0):
        x = torch.zeros(1, 1, 8, 8)
        x[0, 0, 0, :2] = value
        settings = gradood.Smoothing(sigma=0.25, n=2000, exact_grid=exact_grid)
        found.append(gradood.certify_class(model, x, settings=settings))
    first, second = found
    far = 0.5 * 2**0.5
    reach = max(float(first.radius), float(second.radius))
    assert reach < far or int(first.label) == int(second.label)


def test_slack_is_small_and_grows_with_the_input():
    def of(shape, sigma, magnitude=1.0):
        return float(rounding.slack({"sigma": sigma, "exact_grid": False}, shape, magnitude))

    assert 0 < of((3, 32, 32), 0.12) < 1e-7 < of((3, 224, 224), 1.0) < 1e-5
    assert of((3, 32, 32), 0.12, 1e6) > 1e-3 and of((3, 32, 32), 0.12, 1e15) == 1


def test_float64_inputs_are_added_as_they_are():
    """1 + 2^-30 is 1 in float32; where the noise is smaller, the difference shows."""
    x = torch.full((1, 4), 2.0**-30, dtype=torch.float64) + 2.0**-60
    settings = gradood.Smoothing(sigma=2.0**-70, seed=0)
    rows = torch.zeros(1, dtype=torch.long)
    assert NoisyInputs(x, None, settings).x.dtype == torch.float64
    copies = NoisyInputs(x, None, settings).copies(rows, rows, 0)
    assert torch.equal(copies, x.float())


def everything(half_space, x, smoothing):
    def score(z):
        return z[:, 0]

    return [
        gradood.certify_class(half_space, x, settings=smoothing).lower[0],
        gradood.certify_decision(score, x, settings=smoothing, threshold=0.0).lower[0],
        gradood.certify_quantile(score, x, settings=smoothing).lower[0, 0],
        gradood.certify_mean(lambda z: (z[:, 0] > 0).float(), x, settings=smoothing).lower[0, 0],
        ~gradood.certify_class(half_space, x, settings=smoothing, radius=0.5).abstained[0],
        gradood.certify_decision(score, x, settings=smoothing, threshold=0.0, radius=0.5).decision[
            0
        ],
    ]


def test_slack_widens_every_bound(half_space, points, monkeypatch):
    """With a slack of 0.2 nothing that rests on 95 % is left."""
    smoothing = gradood.Smoothing(sigma=0.5, n=500, seed=1)
    before = everything(half_space, points(0.8), smoothing)
    monkeypatch.setattr("gradood.smoothing.noise.NoisyInputs.slack", 0.2)
    after = everything(half_space, points(0.8), smoothing)
    assert all(b < a for a, b in zip(before, after, strict=True))


def test_half_precision_and_clamp_apply_to_the_grid(pictures):
    settings = gradood.Smoothing(
        sigma=0.5, exact_grid=True, clamp=(0, 1), dtype="bfloat16", channels_last=True
    )
    copies = NoisyInputs(pictures, None, settings).copies(torch.arange(6), torch.arange(6), 0)
    assert copies.dtype == torch.bfloat16 and copies.min() == 0 and copies.max() == 1
    assert copies.is_contiguous(memory_format=torch.channels_last)
