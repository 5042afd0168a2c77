"""The Gram kernel at sizes that fill no vector, tile or piece, in every layout and dtype."""

import itertools

import pytest
import torch

from gradood.ops import choice, cpp_backend, reference
from tests.ops.test_cpp_backend import INSTRUCTION_SETS, LAYOUTS

POINT = ((1,), (1,), (0,), (1,))
POSITIONS = (*range(1, 26), 31, 33, 47, 49, 50, 63, 64, 65, 66, 72, 80, 97, 113, 150)
#: Channels of the input and of the output: parts of vectors, some pieces, and a last short one.
CHANNELS = ((1, 3), (16, 15), (17, 64), (63, 130), (96, 5), (257, 33), (520, 300))


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    before = cpp_backend.instruction_set()
    cpp_backend.use_instruction_set(request.param)
    yield request.param
    cpp_backend.use_instruction_set(before)


def tensors(positions, inputs, outputs, layout, dtype, samples=2):
    generator = torch.Generator().manual_seed(positions)
    sizes = ((samples, inputs, positions), (samples, outputs, positions))
    return [LAYOUTS[layout](torch.randn(s, generator=generator).to(dtype)) for s in sizes]


def assert_exact(x, d, groups=1, geometry=POINT, tolerance=2e-5):
    found = cpp_backend.conv_sqnorm(x, d, *geometry, groups, True, kind="gram")
    exact = reference.conv_sqnorm(x.double(), d.double(), *geometry, groups, True)
    for ours, norm in zip(found, exact, strict=True):
        torch.testing.assert_close(ours.double(), norm, rtol=tolerance, atol=0)


@pytest.mark.parametrize("layout", ["contiguous", "channels last", "strided"])
def test_any_number_of_positions(isa, layout):
    for positions, channels in zip(POSITIONS, itertools.cycle(CHANNELS), strict=False):
        assert_exact(*tensors(positions, *channels, layout, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_any_number_of_channels(isa, dtype):
    for channels, positions in itertools.product(CHANNELS, (5, 16, 65)):
        assert_exact(*tensors(positions, *channels, "channels last", dtype))


@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_groups(isa, layout):
    for positions in (9, 33, 65):
        assert_exact(*tensors(positions, 34, 51, layout, torch.float32), groups=17)


def test_a_bias_whose_terms_cancel(isa):
    """Its gradient is small beside those of its positions, as behind a softmax."""
    x, d = tensors(65, 40, 40, "channels last", torch.float32)
    d -= d.mean(2, keepdim=True) * 0.999
    assert_exact(x, d, tolerance=1e-4)


@pytest.mark.parametrize("scale", [1e-20, 1e18])
def test_inner_products_out_of_range(isa, scale):
    x, d = tensors(65, 100, 30, "channels last", torch.float32)
    found, _ = cpp_backend.conv_sqnorm(x * scale, d / scale, *POINT, 1, False, kind="gram")
    exact, _ = reference.conv_sqnorm(x.double(), d.double(), *POINT, 1, False)
    torch.testing.assert_close(found.double(), exact, rtol=2e-5, atol=0)


def test_fewer_products_by_winograd_s_algorithm_are_counted():
    costs = choice.Costs(gram=1, pixel_gram=1, shift=5, phases=True, winograd=2)
    shape = (64, 16, 16)

    def pick(kernel=3, stride=1, dilation=1, costs=costs):
        sizes = [(size, size) for size in (kernel, stride, kernel // 2 * dilation, dilation)]
        return choice.conv(shape, shape, *sizes[:3], 1, costs, sizes[3])

    assert pick() == "direct"
    assert pick(costs=costs._replace(winograd=4)) == "shift_gram"
    assert pick(dilation=2) == pick(kernel=5) == pick(stride=2) == "shift_gram"
