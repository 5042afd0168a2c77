"""float32 sums keep their digits at any length, and where their terms cancel."""

import pytest
import torch

from gradood.ops import cpp_backend, reference, torch_backend, torch_conv
from gradood.ops.row_norms import row_sqnorm
from tests.gradients.oracle import FLOAT32, OF_THE_LOOP
from tests.ops.conftest import Case, as_tuple
from tests.ops.test_cpp_backend import INSTRUCTION_SETS

MILLION = 1 << 20
ONE, NONE = (1, 1), (0, 0)


@pytest.fixture(params=[*INSTRUCTION_SETS, "torch"])
def backend(request):
    """PyTorch's backend, and that in C++ with each instruction set."""
    if request.param == "torch":
        yield torch_backend
        return
    before = cpp_backend.instruction_set()
    cpp_backend.use_instruction_set(request.param)
    yield cpp_backend
    cpp_backend.use_instruction_set(before)


def numbers(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(1, *shape, generator=generator)


def pair(*shape):
    return numbers(*shape), numbers(*shape).flip(-1)


def channels_last(positions, channels):
    return tuple(t.transpose(1, 2) for t in pair(positions, channels))


def statistics(channels):
    return numbers(channels)[0], numbers(channels)[0].square() + 0.5


#: Sums of a million terms and more.
LONG_SUMS = {
    "bias": ("bias_sqnorm", lambda: (numbers(3, 4 * MILLION),)),
    "bias, channels last": ("bias_sqnorm", lambda: channels_last(4 * MILLION, 3)[:1]),
    "one long token": ("linear_sqnorm", lambda: (numbers(1, 4 * MILLION), numbers(1, 3), True)),
    "many tokens": ("linear_sqnorm", lambda: (numbers(MILLION, 3), numbers(MILLION, 5), True)),
    "wide tokens": ("linear_sqnorm", lambda: (numbers(8, 100_000), numbers(8, 300), True)),
    "pointwise": ("conv_sqnorm", lambda: (*pair(8, 600, 600), ONE, ONE, NONE, ONE, 1, True)),
    "three by three": ("conv_sqnorm", lambda: (
        *pair(16, 1000, 40), (3, 3), ONE, ONE, ONE, 1, True)),
    "stem": ("conv_sqnorm", lambda: (
        numbers(3, 700, 300), numbers(20, 349, 149), (5, 3), (2, 2), (1, 0), ONE, 1, True)),
    "depthwise": ("conv_sqnorm", lambda: (
        numbers(4, MILLION), numbers(4, MILLION - 2), (3,), (1,), (0,), (1,), 4, True)),
    "batch norm": ("batch_norm_sqnorm", lambda: (*pair(3, 4 * MILLION), *statistics(3), 1e-5)),
    "batch norm, channels last": ("batch_norm_backward_sqnorm", lambda: (
        *channels_last(4 * MILLION, 3), *statistics(3), torch.ones(3), 1e-5)),
    "batch norm, many channels": (
        "batch_norm_sqnorm", lambda: (*pair(MILLION, 4), *statistics(MILLION), 1e-5)),
    "group norm": ("group_norm_sqnorm", lambda: (*pair(MILLION, 2), 1, 1e-5)),
    "layer norm, many rows": ("layer_norm_sqnorm", lambda: (*pair(MILLION, 4), 1e-5, False)),
    "layer norm, long rows": ("layer_norm_sqnorm", lambda: (*pair(2, MILLION), 1e-5, False)),
    "layer norm backward": ("layer_norm_backward_sqnorm", lambda: (
        *pair(MILLION, 4), torch.ones(4), 1e-5, False)),
}  # fmt: skip


def largest_error(found, expected):
    """Of the squared norms; the gradients that come with some are compared elsewhere."""
    return max(
        float(((f.double() - e) / e).abs().max())
        for f, e in zip(as_tuple(found), expected, strict=True)
        if e.dim() == 1 and e.numel()
    )


def assert_as_promised(case, found):
    expected = case.expected()
    error = largest_error(found, expected)
    if error > FLOAT32:
        loop = getattr(reference, case.op)(*case.arguments)
        assert error <= OF_THE_LOOP * largest_error(loop, expected)


@pytest.mark.parametrize("name", LONG_SUMS)
def test_long_sums(name, backend):
    op, arguments = LONG_SUMS[name]
    case = Case(op, arguments())
    assert_as_promised(case, getattr(backend, op)(*case.arguments))


@pytest.mark.parametrize("vocabulary", [2, MILLION])
def test_long_embeddings(vocabulary, backend):
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(0, vocabulary, (1, MILLION), generator=generator)
    d = torch.randn(1, MILLION, 4, generator=generator)
    gradient = torch.zeros(vocabulary, 4, dtype=torch.float64)
    gradient.index_add_(0, indices[0], d[0].double())
    expected = gradient.square().sum()
    found = backend.embedding_sqnorm(indices, d, -1).double()
    assert float((found - expected).abs() / expected) <= FLOAT32


@pytest.mark.parametrize("width", [1, 1023, 1024, 1025, 2048, 2049, 3_600_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_row_norms(width, dtype):
    rows = torch.randn(3, 1, width, generator=torch.Generator().manual_seed(0), dtype=dtype)
    expected = rows.double().square().sum((1, 2))
    torch.testing.assert_close(row_sqnorm(rows).double(), expected, rtol=1e-6, atol=0)


def cancelling(kind, left, shape, generator):
    """Gradients of positions that cancel, but for a part ``left`` of them."""
    samples, positions, inputs, outputs = shape
    x = torch.randn(samples, positions, inputs, generator=generator)
    d = torch.randn(samples, positions, outputs, generator=generator)
    if kind == "keys":  # of attention: nearly the same everywhere, and gradients that add to zero
        return x[:, :1] + left * x, d - d.mean(1, keepdim=True)
    half = positions // 2
    x[:, half:] = x[:, :half] + left * x[:, half:]
    d[:, half:] = -d[:, :half]
    return x, d


@pytest.mark.parametrize("kind", ["keys", "pairs"])
@pytest.mark.parametrize("shape", [(3, 18, 192, 192), (3, 64, 640, 200), (2, 96, 768, 768)])
def test_gradients_that_cancel_in_a_gram_matrix(kind, shape, backend):
    generator = torch.Generator().manual_seed(0)
    for left in (1.0, 0.2, 0.05, 1e-3):
        x, d = cancelling(kind, left, shape, generator)
        assert backend.algorithm("linear_sqnorm", x, d, True) == "gram"
        x[0] = torch.randn_like(x[0])  # beside a sample that has nothing to cancel
        for case in (
            Case("linear_sqnorm", (x, d, True)),
            Case("linear_sqnorm", (x.transpose(1, 2).contiguous().transpose(1, 2), d, False)),
        ):
            assert_as_promised(case, getattr(backend, case.op)(*case.arguments))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", ["gram", "direct"])
def test_gradients_of_a_convolution_that_cancel(kind, groups, backend):
    if backend is torch_backend and (groups > 1 or kind == "direct"):
        pytest.skip("PyTorch's backend has no algorithms of its own for these")
    if kind == "direct" and cpp_backend.instruction_set() == "amx":
        pytest.skip("the tile unit multiplies two of three parts: see docs/limits.md")
    generator = torch.Generator().manual_seed(0)
    for left in (1.0, 0.1, 0.01, 1e-3):
        x = torch.randn(2, 64, 1, 1, generator=generator)
        x = x + left * torch.randn(2, 64, 9, 9, generator=generator)
        d = torch.randn(2, 64, 7, 7, generator=generator)
        d = d - d.mean((2, 3), keepdim=True)
        options = ((3, 3), ONE, NONE, ONE)
        case = Case("conv_sqnorm", (x, d, *options, groups, False))
        if backend is torch_backend:
            found = torch_conv.shift_gram(x, d, *options), d.new_empty(0)
        else:
            found = cpp_backend.conv_sqnorm(*case.arguments, kind=kind)
        assert_as_promised(case, found)
