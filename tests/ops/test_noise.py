"""The noise is one function of seed, input, sample and element, to the last bit everywhere."""

import math

import pytest
import torch
from scipy import stats

from gradood import ops
from gradood.errors import BackendError
from gradood.ops import cpp_backend, philox, reference, torch_backend

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 7, 5), (5,), (700,), (2, 601), (1, 1, 1), (3, 3, 3, 3)]


def instruction_sets():
    before, available = cpp_backend.instruction_set(), []
    for name in ("baseline", "avx2", "avx512", "amx"):
        try:
            cpp_backend.use_instruction_set(name)
        except BackendError:
            continue
        available.append(name)
    cpp_backend.use_instruction_set(before)
    return available


@pytest.fixture(params=instruction_sets())
def isa(request):
    """Each instruction set in turn."""
    before = cpp_backend.instruction_set()
    cpp_backend.use_instruction_set(request.param)
    yield request.param
    cpp_backend.use_instruction_set(before)


def call(shape, copies=7, dtype=torch.float32, extras=False, channels_last=False):
    """Arguments of noisy_batch with ids over the whole range of 32 bits."""
    torch.manual_seed(0)
    channels = shape[0] if len(shape) > 1 else 1
    ids = [torch.randint(0, 2**32, (copies,)) for _ in range(2)]
    limits = (0.0, 1.0) if extras else (None, None)
    scaling = (torch.rand(channels), torch.rand(channels) + 1) if extras else (None, None)
    return (
        torch.rand(3, *shape), torch.randint(0, 3, (copies,)), *ids,
        torch.tensor([-(2**61) - 12345, 3]), 0.37, *limits, *scaling, dtype, channels_last,
    )  # fmt: skip


@pytest.mark.parametrize("counter, key, expected", philox.KNOWN_ANSWERS)
def test_known_answers(counter, key, expected):
    words = philox.philox(tuple(map(torch.tensor, counter)), tuple(map(torch.tensor, key)))
    assert tuple(int(word) for word in words) == expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("extras", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cpp_equals_the_reference_bit_for_bit(isa, shape, extras, dtype):
    for channels_last in (False, True) if len(shape) == 3 else (False,):
        arguments = call(shape, dtype=dtype, extras=extras, channels_last=channels_last)
        got, expected = cpp_backend.noisy_batch(*arguments), reference.noisy_batch(*arguments)
        assert torch.equal(got, expected)
        assert got.dtype == dtype
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert got.is_contiguous(memory_format=layout)


def test_torch_in_chunks_equals_the_reference(monkeypatch):
    monkeypatch.setattr(torch_backend, "CHUNK_BYTES", 1 << 17)
    arguments = call((3, 7, 5), copies=41)
    assert torch.equal(torch_backend.noisy_batch(*arguments), reference.noisy_batch(*arguments))


def test_strided_inputs_are_read_where_they_are():
    x, *rest = call((3, 7, 5))
    strange = x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    assert torch.equal(ops.noisy_batch(strange, *rest), reference.noisy_batch(x, *rest))


def test_a_copy_does_not_depend_on_its_batch_or_the_threads():
    x, rows, inputs, samples, *rest = call((3, 7, 5), copies=9)
    together = ops.noisy_batch(x, rows, inputs, samples, *rest)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(ops.noisy_batch(x, rows, inputs, samples, *rest), together)
    finally:
        torch.set_num_threads(threads)
    for i in range(9):
        one = slice(i, i + 1)
        alone = ops.noisy_batch(x, rows[one], inputs[one], samples[one], *rest)
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("changed", ["seed", "tag", "input", "sample", "channel"])
def test_streams_are_independent(changed):
    """Two streams of 2^16 normals that differ in one word: no correlation beyond chance."""
    shape, zero = (2, 1 << 15), torch.zeros(1, dtype=torch.long)

    def normals(seed=0, tag=0, inputs=zero, samples=zero):
        return philox.normals(shape, inputs, samples, torch.tensor([seed, tag]))

    first = normals()
    other = {
        "seed": lambda: normals(seed=1),
        "tag": lambda: normals(tag=1),
        "input": lambda: normals(inputs=zero + 1),
        "sample": lambda: normals(samples=zero + 1),
        "channel": lambda: first.flip(1),
    }[changed]()
    a, b = first.double().flatten(), other.double().flatten()
    assert abs(float((a * b).mean())) < 5 / math.sqrt(len(a))


def test_normals_have_the_normal_distribution():
    zero = torch.zeros(1, dtype=torch.long)
    sample = philox.normals((1 << 17,), zero, zero, torch.tensor([7, 0])).double().flatten()
    assert stats.kstest(sample.numpy(), "norm").pvalue > 1e-3
    words = torch.tensor([0, 1, 2**31, 2**32 - 1])
    uniform = (words.float() + 0.5) * 2.0**-32
    exact = uniform.double()
    torch.testing.assert_close(philox._log(uniform).double(), exact.log(), rtol=3e-7, atol=1e-7)


def test_votes_of_classes():
    logits = torch.tensor([[1.0, 2, 2], [3, 1, 0], [math.nan, 1, 0], [0, math.inf, 0]])
    rows = torch.tensor([0, 2, 2, 2])
    expected = [[0, 1, 0, 0], [0, 0, 0, 0], [1, 1, 0, 1]]
    for count in (cpp_backend.vote_count, reference.vote_count, ops.vote_count):
        assert count(logits, rows, "argmax", None, 3).tolist() == expected


def test_votes_above_thresholds_and_in_bins():
    values = torch.tensor([0.5, 1.0, math.nan, -math.inf, math.inf, 2.0, 1.5])
    rows, edges = torch.tensor([0, 0, 0, 1, 1, 1, 1]), torch.tensor([0.5, 1.0, 2.0])
    above, bins = [[1, 0, 0, 1], [3, 3, 1, 0]], [[1, 1, 0, 0, 1], [1, 0, 2, 1, 0]]
    for count in (cpp_backend.vote_count, reference.vote_count, ops.vote_count):
        assert count(values, rows, "above", edges, 2).tolist() == above
        assert count(values, rows, "histogram", edges, 2).tolist() == bins


def test_rows_that_do_not_exist_are_refused():
    arguments = list(call((5,)))
    arguments[1] = arguments[1] + 3
    with pytest.raises(IndexError, match="of 3"):
        cpp_backend.noisy_batch(*arguments)
    with pytest.raises(IndexError, match="of 2"):
        cpp_backend.vote_count(torch.zeros(1), torch.tensor([2]), "above", torch.zeros(1), 2)


def test_no_copies_and_no_values():
    arguments = call((3, 7, 5), copies=0)
    assert ops.noisy_batch(*arguments).shape == (0, 3, 7, 5)
    none = torch.empty(0, dtype=torch.long)
    assert ops.vote_count(torch.empty(0, 4), none, "argmax", None, 2).tolist() == [[0] * 5] * 2


@pytest.mark.parametrize("channels_last", [False, True])
def test_operators_pass_opcheck(channels_last):
    noisy_batch, vote_count = (
        getattr(torch.ops.gradood, n).default for n in ("noisy_batch", "vote_count")
    )
    torch.library.opcheck(noisy_batch, call((3, 7, 5), channels_last=channels_last))
    rows, edges = torch.tensor([0, 0, 1]), torch.tensor([0.5, 1.0])
    for mode in ("above", "histogram"):
        torch.library.opcheck(vote_count, (torch.rand(3), rows, mode, edges, 2))
    torch.library.opcheck(vote_count, (torch.rand(3, 4), rows, "argmax", None, 2))
