"""The noise is the defined one bit for bit, whatever the layout, type and batch it comes in."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from benchmarks.kernel_calls import DEVICE
from gradood.kernels import noise as kernels
from gradood.ops import cpp_backend, philox, triton_backend

ROWS = torch.tensor([0, 0, 3, 2, 1])
INPUTS = torch.tensor([100, 100, 2**31 + 1, 7, 2**32 - 1])
SAMPLES = torch.tensor([0, 1, 5, 2**31 - 1, 2**32 - 1])
SEED, TAG, SIGMA = 2**35 + 1, 1, 0.25


def noisy(x, rows=ROWS, inputs=INPUTS, samples=SAMPLES, seed=SEED, tag=TAG, sigma=SIGMA, low=None,
          high=None, mean=None, rstd=None, dtype=torch.float32, channels_last=False):  # fmt: skip
    arguments = (x, rows, inputs, samples, torch.tensor([seed, tag]))
    there = [a.to(DEVICE) for a in arguments]
    channels = [c if c is None else c.to(DEVICE) for c in (mean, rstd)]
    options = (sigma, low, high, *channels, dtype, channels_last)
    assert triton_backend.reject("noisy_batch", *there, *options) is None
    return triton_backend.noisy_batch(*there, *options).cpu()


def defined(shape, seed=SEED, tag=TAG):
    return philox.normals(shape, INPUTS, SAMPLES, torch.tensor([seed, tag]))


@triton.jit
def _philox_kernel(out, seed, c0, c1, c2, c3):
    zero = tl.zeros((1,), tl.int64).to(tl.uint32)
    words = tl.philox(
        tl.load(seed), zero + tl.load(c0).to(tl.uint32), zero + tl.load(c1).to(tl.uint32),
        zero + tl.load(c2).to(tl.uint32), zero + tl.load(c3).to(tl.uint32),
    )  # fmt: skip
    one = tl.arange(0, 1)
    tl.store(out + one, words[0].to(tl.int64))
    tl.store(out + 1 + one, words[1].to(tl.int64))
    tl.store(out + 2 + one, words[2].to(tl.int64))
    tl.store(out + 3 + one, words[3].to(tl.int64))


@pytest.mark.parametrize(("counter", "key", "answer"), philox.KNOWN_ANSWERS)
def test_known_answers(counter, key, answer):
    words = philox.philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(w) for w in words) == answer
    signed = key[0] + (key[1] << 32)
    signed -= 2**64 if signed >= 2**63 else 0
    values = [torch.tensor([v], device=DEVICE) for v in (signed, *counter)]
    out = torch.zeros(4, dtype=torch.int64, device=DEVICE)
    _philox_kernel[(1,)](out, *values)
    assert tuple(int(w) & 0xFFFFFFFF for w in out) == answer


@pytest.mark.parametrize(
    "shape", [(3, 5, 7), (3, 8, 8), (1, 9, 3), (20, 3, 3), (2, 7), (33,), (1,)]
)
def test_bits_are_the_defined_ones(shape):
    x = torch.rand(4, *shape)
    assert torch.equal(noisy(x), x[ROWS] + torch.tensor(SIGMA) * defined(shape))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_clamp_normalise_and_cast(dtype, channels_last):
    x, mean, rstd = torch.rand(4, 3, 5, 7), torch.rand(3), 1 / (torch.rand(3) + 0.2)
    clamped = (x[ROWS] + torch.tensor(SIGMA) * defined((3, 5, 7))).clamp(0, 1)
    wanted = ((clamped - mean.view(-1, 1, 1)) * rstd.view(-1, 1, 1)).to(dtype)
    got = noisy(
        x, low=0.0, high=1.0, mean=mean, rstd=rstd, dtype=dtype, channels_last=channels_last
    )
    assert torch.equal(got, wanted)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert got.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("options", [{"low": 0.3}, {"high": 0.6}, {"mean": torch.ones(2)},
                                     {"rstd": torch.full((2,), 3.0)}])  # fmt: skip
def test_options_alone(options):
    x = torch.rand(4, 2, 3, 3)
    y = x[ROWS] + torch.tensor(SIGMA) * defined((2, 3, 3))
    y = y.clamp(options.get("low"), options.get("high")) if options.keys() & {"low", "high"} else y
    y = (y - 1 if "mean" in options else y) * options.get("rstd", torch.ones(2)).view(-1, 1, 1)
    assert torch.equal(noisy(x, **options), y)


def test_strides_of_the_input_do_not_matter():
    x = torch.rand(4, 3, 6, 5)
    wanted = noisy(x)
    wide = torch.full((4, 3, 6, 10), torch.nan)
    wide[..., ::2] = x
    for other in (
        x.contiguous(memory_format=torch.channels_last),
        wide[..., ::2],
        x.mT.contiguous().mT,
    ):
        assert torch.equal(noisy(other), wanted)


def test_noise_does_not_depend_on_the_batch():
    x = torch.rand(4, 3, 5, 7)
    together = noisy(x)
    for i in range(len(ROWS)):
        assert torch.equal(
            noisy(x, ROWS[i : i + 1], INPUTS[i : i + 1], SAMPLES[i : i + 1])[0], together[i]
        )


@pytest.mark.parametrize("change", [{"seed": SEED + 2**40}, {"seed": -SEED}, {"tag": 0}])
def test_seed_and_tag_choose_the_stream(change):
    x = torch.zeros(4, 3, 5, 7)
    got = noisy(x, sigma=1.0, **change)
    key = {"seed": SEED, "tag": TAG} | change
    assert torch.equal(got, defined((3, 5, 7), key["seed"], key["tag"]))
    assert not torch.equal(got, noisy(x, sigma=1.0))


def test_it_is_normal():
    """Moments, and the Kolmogorov–Smirnov distance at its 0.1 % point."""
    count = 1 << 19
    one, two = torch.tensor([1]), torch.tensor([2])
    values = philox.normals((count,), one, two, torch.tensor([5, 0]))[0].double().numpy()
    assert abs(values.mean()) < 3.3 / count**0.5
    assert abs(values.var() - 1) < 3.3 * (2 / count) ** 0.5
    assert abs((values**4).mean() - 3) < 3.3 * (96 / count) ** 0.5
    ranks = torch.special.ndtr(torch.from_numpy(np.sort(values))).numpy()
    assert np.abs(ranks - (np.arange(count) + 0.5) / count).max() * count**0.5 < 1.95


def test_tails_are_not_cut():
    """The smallest word gives a radius of 6.8; a clamp of u at 1e-7 would stop at 5.7."""
    assert 6.7 < philox.normals_of(torch.zeros(4, dtype=torch.int64))[0] < 6.9
    largest = torch.full((4,), 2**32 - 1)
    assert all(abs(n) < 1e-3 for n in philox.normals_of(largest))


@pytest.mark.parametrize("word", [0, 1, 2**31 - 1, 2**31, 2**32 - 129, 2**32 - 1])
def test_the_kernel_agrees_at_extreme_words(word):
    out = torch.zeros(3, device=DEVICE)
    _pieces_kernel[(1,)](out, torch.tensor([word], device=DEVICE), enable_fp_fusion=False)
    u = (torch.tensor([word]).to(torch.float32) + 0.5) * 2.0**-32
    cosine, sine = philox._cos_sin(u)
    assert out.cpu().tolist() == [philox._log(u)[0], cosine[0], sine[0]]


@triton.jit
def _pieces_kernel(out, word):
    u = kernels.uniform(tl.load(word + tl.arange(0, 1)).to(tl.uint32))
    cosine, sine = kernels.cosine_sine(u)
    tl.store(out + tl.arange(0, 1), kernels.natural_log(u))
    tl.store(out + 1 + tl.arange(0, 1), cosine)
    tl.store(out + 2 + tl.arange(0, 1), sine)


def test_no_copies_and_no_elements():
    none = torch.zeros(0, dtype=torch.int64)
    assert noisy(torch.rand(4, 3, 5, 7), none, none, none).shape == (0, 3, 5, 7)
    assert noisy(torch.rand(4, 3, 0)).shape == (5, 3, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_those_of_cpp(dtype):
    x, key = torch.rand(4, 3, 8, 9), torch.tensor([SEED, TAG])
    mean, rstd = torch.rand(3), torch.rand(3) + 1
    options = (SIGMA, 0.0, 1.0, mean, rstd, dtype, False)
    cpp = cpp_backend.noisy_batch(x, ROWS, INPUTS, SAMPLES, key, *options)
    triton_options = {"low": 0.0, "high": 1.0, "mean": mean, "rstd": rstd, "dtype": dtype}
    assert torch.equal(noisy(x, **triton_options), cpp)
