"""The C++ kernels equal the executable specification, for every instruction set of this machine."""

import pytest
import torch

from gradood import ops
from gradood.errors import BackendError
from gradood.ops import cpp_backend, reference
from tests.ops.conftest import Case

pytestmark = pytest.mark.usefixtures("one_thread")

CONVOLUTIONS = ("direct", "gram", "depthwise")
#: Operators of one tensor of real numbers.
ONE_TENSOR = ("bias_sqnorm", "channel_sums", "embedding_sqnorm")


def instruction_sets():
    before, available = cpp_backend.instruction_set(), []
    for name in ("baseline", "avx2", "avx512", "amx"):
        try:
            cpp_backend.use_instruction_set(name)
        except BackendError:
            continue
        available.append(name)
    cpp_backend.use_instruction_set(before)  # GRADOOD_CPU_ISA may have chosen it
    return available


INSTRUCTION_SETS = instruction_sets()


@pytest.fixture(params=INSTRUCTION_SETS)
def isa(request):
    """Each instruction set in turn."""
    before = cpp_backend.instruction_set()
    assert cpp_backend.use_instruction_set(request.param) == request.param
    yield request.param
    cpp_backend.use_instruction_set(before)


def run(case):
    assert cpp_backend.reject(case.op, *case.arguments) is None
    return getattr(cpp_backend, case.op)(*case.arguments)


def permuted(t):
    """The same tensor with its last dimension the slowest in memory."""
    return t.movedim(-1, 0).contiguous().movedim(0, -1)


def channels_last(t):
    return t.movedim(1, -1).contiguous().movedim(-1, 1) if t.dim() > 2 else t


def strided(t):
    """The same tensor with gaps between its elements."""
    wide = torch.full((*t.shape[:-1], 3 * t.shape[-1] + 1), torch.nan, dtype=t.dtype)
    wide[..., 1::3] = t
    return wide[..., 1::3]


LAYOUTS = {
    "contiguous": lambda t: t,
    "channels last": channels_last,
    "permuted": permuted,
    "strided": strided,
}
#: Rounding of inputs is shared with the reference; sums differ by float32 rounding alone, which
#: cancellation magnifies in sums near zero.
TOLERANCE = 2e-5


def test_a_bare_instruction_set_of_this_architecture_is_there():
    assert "baseline" in INSTRUCTION_SETS


def test_equals_the_reference(case, isa, assert_close):
    expected = case.expected()
    for laid_out in LAYOUTS.values():
        assert_close(run(case.map(laid_out)), expected, TOLERANCE)


@pytest.mark.parametrize(
    "shape", [(2, 1, 1), (3, 17, 41), (2, 41, 17), (2, 401, 3), (2, 130, 70), (2, 3, 2051)]
)
@pytest.mark.parametrize("layout", ["contiguous", "channels last"])
def test_a_layer_that_is_measured_as_it_is_made(shape, layout, isa):
    generator = torch.Generator().manual_seed(0)
    x = LAYOUTS[layout](torch.randn(shape, generator=generator))
    mean, variance, weight, bias = torch.rand(4, shape[1], generator=generator)
    for parameters in ((weight, bias), (weight, None), (None, bias), (None, None)):
        case = Case("batch_norm_sums", (x, mean, variance, *parameters, 1e-3))
        got, expected = run(case), case.expected()
        assert got[0].stride() == x.stride()
        for ours, exact in zip(got, expected, strict=True):
            assert float((ours - exact).abs().max() / exact.abs().max()) < 1e-6


@pytest.mark.parametrize("shape", [(401, 17, 50), (64, 58, 37), (171, 70, 5), (2050, 6, 11)])
def test_every_layout_of_inputs_beside_every_one_of_gradients(shape, isa, assert_close):
    torch.manual_seed(0)
    tokens, inputs, outputs = shape
    x, d = torch.randn(2, inputs, tokens) + 0.5, torch.randn(2, outputs, tokens)
    geometry = ((1,), (1,), (0,), (1,), 1)
    expected = reference.conv_sqnorm(x.double(), d.double(), *geometry, True)
    for of_x in LAYOUTS.values():
        for of_d in LAYOUTS.values():
            got = cpp_backend.conv_sqnorm(of_x(x), of_d(d), *geometry, True, kind="direct")
            assert_close(got, expected, TOLERANCE)


def test_what_is_not_written_as_it_is_made():
    x, statistics = torch.randn(2, 5, 7), torch.ones(5)
    rest = (statistics, statistics, None, statistics, 0.0)
    for other in (x.double(), strided(x), x[:, :, :5], x[:1].expand(3, 5, 7)):
        assert cpp_backend.reject("batch_norm_sums", other, *rest) is not None
    for other in (strided(x), x[:, :, :5], x[:1].expand(3, 5, 7)):
        out, sums = ops.batch_norm_sums(other, *rest)
        torch.testing.assert_close(out, other)
        torch.testing.assert_close(sums, torch.stack([out.sum(2), out.square().sum(2)], 1))


def test_half_precision_accumulates_in_float32(case, isa, assert_close):
    for dtype in (torch.bfloat16, torch.float16):
        half = case.map(lambda t, dtype=dtype: t.to(dtype))
        if dtype == torch.float16 and case.op.endswith("backward_sqnorm"):
            assert "float16" in cpp_backend.reject(case.op, *half.arguments)
        else:
            assert_close(run(half), half.expected(), 1e-4)


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_every_algorithm_serves_every_convolution(cases, isa, kind, assert_close):
    """Also those that the cost model would not choose."""
    for name, case in cases.items():
        if case.op != "conv_sqnorm":
            continue
        x, d, kernel, stride, padding, dilation, groups, _ = case.arguments
        if kind == "depthwise" and groups != x.shape[1]:
            continue
        for change in (lambda t: t, channels_last):
            geometry = (kernel, stride, padding, dilation, groups)
            got = cpp_backend.conv_sqnorm(change(x), change(d), *geometry, True, kind=kind)
            assert_close(got, case.expected(), 1e-4 if name == "conv one of everything" else 3e-5)


def test_mixed_dtypes(isa, assert_close, cases):
    for case in cases.values():
        if case.op in ONE_TENSOR:
            continue
        x, d, *rest = case.arguments
        mixtures = [(x.bfloat16(), d, *rest), (x, d.bfloat16(), *rest), (x, d.half(), *rest)]
        for mixed in mixtures[:2] if case.op.endswith("backward_sqnorm") else mixtures:
            changed = case._replace(arguments=mixed)
            assert_close(run(changed), changed.expected(), 1e-4)


def test_expanded_gradient(isa, cases, assert_close):
    """As the backward of a mean gives it: stride zero."""
    for name in ("conv strided", "conv depthwise", "conv pointwise", "conv few channels"):
        x, d, *rest = cases[name].arguments
        flat = d.mean(dim=tuple(range(2, d.dim())), keepdim=True).expand_as(d)
        case = cases[name]._replace(arguments=(x, flat, *rest))
        assert_close(run(case), case.expected(), TOLERANCE)
    for name in ("linear (17, 41, 3)", "batch_norm (2, 41, 17)", "layer_norm (2, 41, 17)"):
        x, d, *rest = cases[name].arguments
        for flat in (d[:, :1].expand_as(d), d[..., :1].expand_as(d), d[:1].expand_as(d)):
            case = cases[name]._replace(arguments=(x, flat, *rest))
            assert_close(run(case), case.expected(), TOLERANCE)


@pytest.mark.parametrize("samples", [0, 1, 5])
def test_number_of_samples(cases, isa, samples, assert_close):
    for case in cases.values():
        changed = case._replace(
            arguments=tuple(
                a[[0] * samples]
                if isinstance(a, torch.Tensor) and not ("_norm" in case.op and i > 1)
                else a
                for i, a in enumerate(case.arguments)
            )
        )
        got = run(changed)
        wanted = tuple(w[[0] * samples] for w in case.expected())
        assert_close(got, wanted, TOLERANCE)


def test_empty_sizes_give_zeros(isa):
    got = cpp_backend.linear_sqnorm(torch.randn(3, 0, 4), torch.randn(3, 0, 5), True)
    assert [t.tolist() for t in got] == [[0.0] * 3, [0.0] * 3]
    d = torch.randn(3, 4, 5)
    weight, bias = cpp_backend.linear_sqnorm(torch.randn(3, 4, 0), d, True)
    assert weight.tolist() == [0.0] * 3
    torch.testing.assert_close(bias, d.sum(1).square().sum(1))
    weight, bias = cpp_backend.linear_sqnorm(torch.randn(3, 4, 0), d, False)
    assert weight.shape == (3,) and bias.shape == (0,)
    assert cpp_backend.bias_sqnorm(torch.randn(2, 3, 0)).tolist() == [0.0, 0.0]
    assert cpp_backend.channel_sums(torch.randn(1, 2, 0)).tolist() == [[[0, 0], [0, 0]]]
    empty = torch.randn(2, 0, 4)
    assert cpp_backend.embedding_sqnorm(torch.zeros(2, 0, dtype=torch.long), empty, -1).sum() == 0
    assert [t.tolist() for t in cpp_backend.layer_norm_sqnorm(empty, empty, 1e-5, False)] == [
        [0.0, 0.0]
    ] * 2


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_no_overflow_where_the_result_fits(cases, isa, scale, assert_close):
    """x and 1/x scaled against each other, so that inner products of one alone overflow."""
    for name, case in cases.items():
        if case.op not in ("conv_sqnorm", "linear_sqnorm"):
            continue
        x, d, *rest = case.arguments
        scaled = case._replace(arguments=(x * scale**1.3, d / scale**1.3, *rest[:-1], False))
        assert_close(run(scaled), scaled.expected(), 3e-5 if "one" not in name else 1e-3)


@pytest.mark.parametrize("kernel", [1, 3])
def test_gradients_of_zero(isa, kernel):
    """As behind a gain that starts at zero: no norm, unless a number that is none is multiplied."""
    torch.manual_seed(0)
    x, d = torch.randn(4, 40, 5, 5), torch.randn(4, 50, 6 - kernel, 6 - kernel)[:, :, :3, :3]
    d[:2] = -0.0
    d[3] *= 1e-19
    x[1, 3, 2, 2] = torch.inf
    x, geometry = x[:, :, : 2 + kernel, : 2 + kernel], ((kernel,) * 2, (1, 1), (0, 0), (1, 1), 1)
    got, _ = cpp_backend.conv_sqnorm(x, d, *geometry, False, kind="gram")
    exact, _ = reference.conv_sqnorm(x.double(), d.double(), *geometry, False)
    assert got[0] == 0 and got[1].isnan() and exact[1].isnan()
    torch.testing.assert_close(got[2:].double(), exact[2:], rtol=1e-5, atol=0)


def test_norm_layers_of_large_numbers(isa, assert_close, cases):
    for name in ("layer_norm (2, 41, 17)", "rms_norm (2, 41, 17)", "group_norm 8 groups"):
        x, d, *rest = cases[name].arguments
        case = cases[name]._replace(arguments=(x * 1e25, d, *rest))
        assert_close(run(case), case.expected(), TOLERANCE)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_bad_numbers_stay_in_their_row(cases, isa, value, which):
    for name, case in cases.items():
        if case.op in ONE_TENSOR or "one of everything" in name:
            continue
        clean = run(case)
        arguments = list(case.arguments)
        arguments[which] = arguments[which].clone()
        index = tuple(size // 2 for size in arguments[which].shape[1:])
        arguments[which][(1, *index)] = value
        changed = case._replace(arguments=tuple(arguments))
        dirty = run(changed)
        seen = not torch.isfinite(changed.expected()[0][1])  # strides may pass over a pixel
        assert seen == (not torch.isfinite(dirty[0][1])), name
        torch.testing.assert_close(dirty[0][0], clean[0][0], rtol=0, atol=0)
        torch.testing.assert_close(dirty[1][0], clean[1][0], rtol=0, atol=0)


def test_result_does_not_depend_on_the_batch(cases, isa):
    """Not by a single bit: a sample's sums are its own."""
    for name in ("conv strided", "conv depthwise", "linear (64, 48, 96)", "linear (150, 130, 140)"):
        x, d, *rest = cases[name].arguments
        together = run(cases[name])[0]
        alone = run(cases[name]._replace(arguments=(x[1:], d[1:], *rest)))[0]
        assert together[1] == alone[0]


def test_unknown_instruction_set_is_an_error():
    with pytest.raises(BackendError, match="sse9.*unset it"):
        cpp_backend.use_instruction_set("sse9")
    assert cpp_backend.instruction_set() in INSTRUCTION_SETS


def test_float64_is_left_to_pytorch():
    d = torch.randn(2, 3, 4, dtype=torch.float64)
    assert "float64" in cpp_backend.reject("bias_sqnorm", d)


@pytest.mark.parametrize("spatial", [(8, 8), (4, 4, 4), (64,)])
def test_large_patches_are_a_linear_layer(spatial):
    """A stride as long as the kernel, without padding: split into patches, in any layout."""
    torch.manual_seed(0)
    places = [2 + i for i in range(len(spatial))]
    x = torch.randn(2, 3, *(k * t for k, t in zip(spatial, places, strict=True)))
    d = torch.randn(2, 5, *places)
    geometry = (spatial, spatial, (0,) * len(spatial), (1,) * len(spatial), 1)
    assert cpp_backend.algorithm("conv_sqnorm", x, d, *geometry).startswith("patches")
    found = cpp_backend.conv_sqnorm(x, d, *geometry, True)
    exact = reference.conv_sqnorm(x.double(), d.double(), *geometry, True)
    for a, b in zip(found, exact, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=0)
    # One more column, which the convolution leaves out, is no part of any patch.
    wider = torch.cat([x, x[..., :1]], -1)
    assert not cpp_backend.algorithm("conv_sqnorm", wider, d, *geometry).startswith("patches")
    torch.testing.assert_close(cpp_backend.conv_sqnorm(wider, d, *geometry, True)[0], found[0])
