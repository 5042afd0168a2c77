"""The backward pass of layer norms at sizes that fill no vector or group of rows, in any layout."""

import itertools

import pytest
import torch

from gradood.ops import cpp_backend, reference
from tests.ops.test_cpp_backend import INSTRUCTION_SETS, LAYOUTS

ROWS = (*range(1, 10), 15, 16, 17, 33, 49, 65, 1030)
COLUMNS = (1, 2, 7, 8, 15, 16, 17, 33, 64, 130)


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    before = cpp_backend.instruction_set()
    cpp_backend.use_instruction_set(request.param)
    yield request.param
    cpp_backend.use_instruction_set(before)


def tensors(rows, columns, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows)
    x, d = torch.randn(2, 3, rows, columns, generator=generator).to(dtype)
    return 2 * x + 1, d, torch.randn(columns, generator=generator)


def assert_exact(x, d, scale, rms, tolerance=2e-5):
    found = cpp_backend.layer_norm_backward_sqnorm(x, d, scale, 1e-5, rms)
    exact = reference.layer_norm_backward_sqnorm(x.double(), d.double(), scale.double(), 1e-5, rms)
    for ours, norm in zip(found[:2], exact[:2], strict=True):
        torch.testing.assert_close(ours.double(), norm, rtol=tolerance, atol=1e-8)
    spread = x.double().square().mean(2) if rms else x.double().var(2, correction=0)
    terms = (d * scale).double().abs().amax(2) * (spread + 1e-5).rsqrt()  # they may cancel
    error = ((found[2].double() - exact[2]).abs().amax(2) / terms).max()
    assert float(error) < (1e-2 if x.dtype == torch.bfloat16 else 2e-6)


@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_any_size(isa, layout, rms):
    for rows, columns in zip(ROWS, itertools.cycle(COLUMNS), strict=False):
        x, d, scale = tensors(rows, columns)
        assert_exact(LAYOUTS[layout](x), LAYOUTS[layout](d), scale, rms)
        assert_exact(x, LAYOUTS[layout](d), scale, rms)


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
@pytest.mark.parametrize("columns", [1000, 4096, 4097, 9000])
def test_long_rows(isa, columns, layout):
    x, d, scale = tensors(6, columns)
    assert_exact(LAYOUTS[layout](x), LAYOUTS[layout](d), scale, False)
    x, d, scale = tensors(6, columns, torch.bfloat16)
    assert_exact(LAYOUTS[layout](x), LAYOUTS[layout](d), scale, False)


@pytest.mark.parametrize("row", [0, 3, 4])
def test_a_row_of_large_numbers_beside_others(isa, row):
    """Its squares leave the range of a float; those of the rows in its group do not."""
    x, d, scale = tensors(5, 40)
    x[:, row] *= 1e25
    assert_exact(x, d, scale, False)
