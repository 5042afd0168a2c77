"""Every kernel equals the executable specification, whatever shapes, types and layouts it gets.

Memory around the inputs and new memory hold NaN, and programs run in random order.
"""

import pytest
import torch

from benchmarks.kernel_calls import CALLS, LAYOUTS, Call, poisoned, relative_error
from gradood.errors import InputError
from gradood.kernels import conv, conv3x3, depthwise, gram, launch, outer, pixel_gram, reduction
from gradood.kernels.layout import Geometry
from gradood.ops import triton_backend

#: Inputs are rounded before either side sees them, so half precision adds no error of its own;
#: what is asked for is 1e-2.
FLOAT, HALF = 2e-6, 1e-4


def run(call):
    assert triton_backend.reject(call.op, *call.arguments) is None
    return getattr(triton_backend, call.op)(*call.arguments)


@pytest.mark.parametrize("name", CALLS)
def test_equals_the_reference(name):
    assert relative_error(CALLS[name].map(poisoned), run) < FLOAT


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("op", ["bias_sqnorm", "batch_norm_sqnorm", "group_norm_sqnorm"])
def test_sums_that_cancel(op, seed):
    """Numbers of mean zero, few channels and long sums: what is lost is lost in the last digits."""
    torch.manual_seed(seed)
    x, d, statistics = torch.randn(2, 3, 1201), torch.randn(2, 3, 1201), torch.rand(2, 3) + 0.5
    arguments = {
        "bias_sqnorm": (d,),
        "batch_norm_sqnorm": (x, d, *statistics, 1e-5),
        "group_norm_sqnorm": (x, d, 3, 1e-5),
    }
    assert relative_error(Call(op, arguments[op]), run) < FLOAT


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "contiguous"])
@pytest.mark.parametrize("name", CALLS)
def test_any_layout(name, layout):
    changed = CALLS[name].map(lambda t: poisoned(LAYOUTS[layout](t)))
    assert relative_error(changed, run) < FLOAT


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", CALLS)
def test_half_precision_accumulates_in_float32(name, dtype):
    """In the other layout, so that both are seen in every precision."""
    half = CALLS[name].map(lambda t: poisoned(LAYOUTS["channels last"](t.to(dtype))))
    assert relative_error(half, run) < HALF


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["outer", "gram", "conv", "depthwise", "layer norm", "embedding"])
def test_half_precision_of_a_few(name, dtype):
    assert relative_error(CALLS[name].map(lambda t: poisoned(t.to(dtype))), run) < HALF


@pytest.mark.parametrize("name", ["outer", "gram", "conv", "batch norm (3, 17, 41)"])
def test_mixed_types(name):
    x, d, *rest = CALLS[name].arguments
    for mixed in ((x.bfloat16(), d, *rest), (x, d.half(), *rest)):
        assert relative_error(Call(CALLS[name].op, mixed), run) < FLOAT


@pytest.mark.parametrize("name", ["outer", "gram", "conv, strided and dilated", "layer norm"])
def test_expanded_gradient(name):
    """As the backward of a mean gives it: stride zero."""
    x, d, *rest = CALLS[name].arguments
    flat = d.mean(dim=-1, keepdim=True).expand_as(d)
    assert relative_error(Call(CALLS[name].op, (x, flat, *rest)), run) < FLOAT


ALGORITHMS = {
    "direct": conv.prepare,
    "shift-gram": pixel_gram.prepare,
    "depthwise": depthwise.prepare,
    "three by three": conv3x3.prepare,
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ALGORITHMS)
def test_every_algorithm_serves_every_convolution(kind):
    """Also those that the cost model would not choose."""
    served = 0
    for call in CALLS.values():
        if call.op != "conv_sqnorm" or call.arguments[1][0, 0].numel() > 300:
            continue
        x, d, *geometry, groups, bias = call.arguments
        if kind == "three by three" and not (
            tuple(geometry[0]) == (3, 3) and tuple(geometry[1]) == (1, 1)
        ):
            continue
        if kind == "depthwise" and groups != x.shape[1]:
            continue
        if kind == "shift-gram" and (groups > 1 or x.dim() == 5):
            continue

        def algorithm(call, geometry=geometry, groups=groups, bias=bias):
            x, d = call.arguments[:2]
            return ALGORITHMS[kind](x, d, Geometry.of(*geometry, groups), bias).both(x, d)

        assert relative_error(call.map(poisoned), algorithm) < FLOAT
        served += 1
    assert served >= 5


@pytest.mark.parametrize("name", ["outer", "gram"])
def test_both_algorithms_of_a_linear_layer(name):
    other = {"outer": gram.prepare, "gram": outer.prepare}[name]

    def run_other(call):
        return other(*call.arguments).both(*call.arguments[:2])

    assert relative_error(CALLS[name].map(poisoned), run_other) < FLOAT


def test_the_cases_reach_every_algorithm():
    reached = {triton_backend.algorithm(call.op, *call.arguments) for call in CALLS.values()}
    assert reached == {"outer", "gram", "direct", "pointwise", "depthwise", "shift_gram", "fused"}


@pytest.mark.parametrize(
    "name",
    ["outer", "gram, seven samples in two tiles", "conv", "depthwise", "shift-gram", "layer norm"]
    + ["group norm", "embedding"],
)
def test_bad_numbers_stay_in_their_sample(name):
    x, d, *rest = CALLS[name].arguments
    dirty = d.clone()
    dirty[(1, *(size // 2 for size in d.shape[1:]))] = torch.nan
    clean, spoilt = run(CALLS[name]), run(Call(CALLS[name].op, (x, dirty, *rest)))
    clean, spoilt = (r[0] if isinstance(r, tuple) else r for r in (clean, spoilt))
    assert torch.isnan(spoilt[1])
    others = torch.arange(len(clean)) != 1
    assert torch.equal(spoilt[others], clean[others])


@pytest.mark.parametrize(
    "name",
    ["outer, several tiles", "gram, several tiles", "gram, seven samples in two tiles", "conv"]
    + ["bias (3, 17, 41)"],
)
def test_result_does_not_depend_on_the_batch(name):
    """Not by a single bit on a GPU; the interpreter's NumPy rounds by shape."""
    call = CALLS[name]
    together = run(call)
    alone = run(call.map(lambda t: t[1:]))
    together, alone = (r if isinstance(r, tuple) else (r,) for r in (together, alone))
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a[1:], b, rtol=FLOAT if launch.INTERPRETING else 0, atol=0)


def test_empty_sizes_give_zeros():
    empty = torch.randn(3, 0, 4)
    got = triton_backend.linear_sqnorm(empty, torch.randn(3, 0, 5), True)
    assert [t.tolist() for t in got] == [[0.0] * 3, [0.0] * 3]
    d = torch.randn(3, 4, 5)
    weight, bias = triton_backend.linear_sqnorm(torch.randn(3, 4, 0), d, True)
    assert weight.tolist() == [0.0] * 3
    torch.testing.assert_close(bias, d.sum(1).square().sum(1))
    weight, bias = triton_backend.linear_sqnorm(torch.randn(3, 4, 0), d, False)
    assert weight.shape == (3,) and bias.shape == (0,)
    assert triton_backend.bias_sqnorm(torch.randn(2, 3, 0)).tolist() == [0.0, 0.0]
    assert (
        triton_backend.embedding_sqnorm(torch.zeros(3, 0, dtype=torch.long), empty, -1).sum() == 0
    )
    for result in (
        triton_backend.layer_norm_sqnorm(empty, empty, 1e-5, False),
        triton_backend.group_norm_sqnorm(torch.randn(3, 4, 0), torch.randn(3, 4, 0), 2, 1e-5),
        triton_backend.batch_norm_sqnorm(
            torch.randn(3, 4, 0), torch.randn(3, 4, 0), *d[:2, :, 0], 1e-5
        ),
    ):
        assert [t.tolist() for t in result] == [[0.0] * 3] * 2
    for samples in (0, 1):
        x, d, *rest = CALLS["conv"].arguments
        assert triton_backend.conv_sqnorm(x[:samples], d[:samples], *rest)[0].shape == (samples,)


def test_unwritten_memory_is_poisoned():
    """The tests above rest on it: a partial sum that no program wrote would be NaN."""
    nothing = reduction.Summed(lambda *tensors: None, 4, (reduction.Segment(0, 4),))
    (total,) = nothing(torch.zeros(2, 3), torch.zeros(2, 3))
    assert total.isnan().all()


@pytest.mark.slow
def test_sixty_four_bit_offsets():
    """The second sample lies beyond 2³¹ elements, in 4.3 GB of memory."""
    far = 2**31 + 64
    memory = torch.empty(0, dtype=torch.bfloat16)
    memory.untyped_storage().resize_(2 * (far + 70 * 33))
    torch.manual_seed(0)
    values = (torch.randn(2, 70, 33) + 0.5).bfloat16()
    x = memory.as_strided((2, 70, 33), (far, 33, 1))
    x.copy_(values)
    call = Call("linear_sqnorm", (x, torch.randn(2, 70, 47).bfloat16(), False))
    assert relative_error(call, run) < HALF


def test_a_sample_beyond_32_bit_offsets_is_rejected():
    x = torch.empty(1, 2**16, 2**16, dtype=torch.bfloat16, device="meta")
    assert "2³¹" in triton_backend.reject("linear_sqnorm", x, x, False)


def test_float64_is_left_to_pytorch():
    d = torch.randn(2, 3, 4, dtype=torch.float64)
    assert "float64" in triton_backend.reject("bias_sqnorm", d)


#: What splitting float32 costs, on norms of a few hundred entries and more.
PRECISIONS = {"ieee": 2e-6, "tf32x3": 2e-6, "bf16x6": 2e-6, "bf16x3": 1e-5, "tf32": 3e-3}


@pytest.mark.skipif(not launch.INTERPRETING, reason="the splits are emulated in the interpreter")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize(
    "name", ["outer, several tiles", "gram, several tiles", "conv, several tiles", "shift-gram"]
)
def test_precision_of_split_products(name, precision):
    with triton_backend.precision(precision):
        error = relative_error(CALLS[name], run)
    assert error < PRECISIONS[precision]
    if precision == "tf32":  # the emulation is at work
        assert error > FLOAT


def test_unknown_precision_is_an_error():
    with pytest.raises(InputError, match="int8.*bf16x3"), triton_backend.precision("int8"):
        pass
