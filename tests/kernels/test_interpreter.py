"""The interpreter computes what a GPU would, and runs programs in the order it is told."""

import pytest
import torch
import triton
import triton.language as tl

from gradood.kernels.launch import INTERPRETING

pytestmark = pytest.mark.skipif(not INTERPRETING, reason="kernels run on the GPU here")


@triton.jit
def _product_kernel(a, b, out, PRECISION: tl.constexpr):
    i = tl.arange(0, 16)
    place = i[:, None] * 16 + i[None, :]
    product = tl.dot(tl.load(a + place), tl.load(b + place), input_precision=PRECISION)
    tl.store(out + place, product)


def product(a, b, precision="ieee"):
    out = torch.empty(16, 16)
    _product_kernel[(1,)](a, b, out, PRECISION=precision)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_products_of_every_type(dtype):
    a, b = torch.randn(16, 16).to(dtype), torch.randn(16, 16).to(dtype)
    torch.testing.assert_close(product(a, b), a.float() @ b.float(), rtol=1e-5, atol=1e-5)


def test_precisions_differ_as_on_tensor_cores():
    torch.manual_seed(0)
    a, b = torch.randn(16, 16), torch.randn(16, 16)
    exact = a.double() @ b.double()
    errors = {p: (product(a, b, p) - exact).abs().max() for p in ("tf32", "bf16x3", "tf32x3")}
    assert errors["tf32x3"] < 4e-6 < errors["bf16x3"] < 5e-4 < errors["tf32"] < 1e-2


@triton.jit
def _cast_kernel(x, out):
    i = tl.arange(0, 512)
    tl.store(out + i, tl.load(x + i).to(tl.bfloat16))


def test_rounds_to_the_nearest_bfloat16():
    x = torch.randn(512)
    x[:4] = torch.tensor([torch.inf, -torch.inf, torch.nan, 3.4e38])
    out = torch.empty(512, dtype=torch.bfloat16)
    _cast_kernel[(1,)](x, out)
    torch.testing.assert_close(out, x.bfloat16(), rtol=0, atol=0, equal_nan=True)


@triton.jit
def _order_kernel(clock, out):
    now = tl.load(clock)
    tl.store(out + tl.program_id(0), now)
    tl.store(clock, now + 1)


def test_programs_run_in_another_order():
    clock, out = torch.zeros(1, dtype=torch.int64), torch.full((20,), -1)
    _order_kernel[(20,)](clock, out)
    assert sorted(out.tolist()) == list(range(20)) != out.tolist()
