"""Wrong dtypes, sizes, strides and addresses at every entry point of the C++ kernels: an error, or
the right result; nothing is read or written outside. ``benchmarks/sanitize.sh`` runs it on kernels
built with the sanitizers, which see what a test cannot.
"""

import random

import pytest
import torch
from torch import Tensor

from gradood.errors import BackendError
from gradood.ops import cpp_backend, reference
from gradood.ops.addresses import address, address_of_any
from tests.ops.conftest import CASES, Case, as_tuple

pytestmark = pytest.mark.skipif(
    cpp_backend.unavailable() is not None, reason="the C++ kernels are not built"
)

#: What Python and PyTorch raise of arguments that make no sense.
ERRORS = (BackendError, TypeError, ValueError, IndexError, RuntimeError, OverflowError,
          NotImplementedError, AttributeError, AssertionError, KeyError, UserWarning)  # fmt: skip
SMALL = {name: case for name, case in CASES.items() if all(
    a.numel() < 4000 for a in case.arguments if isinstance(a, Tensor))}  # fmt: skip


def misaligned(t):
    """The same numbers, one byte beside where they should begin."""
    raw = bytearray(t.numel() * t.element_size() + 1)
    return torch.frombuffer(raw, dtype=t.dtype, count=t.numel(), offset=1).view(t.shape).copy_(t)


def freed(t):
    t = t.clone()
    t.untyped_storage().resize_(0)
    return t


def axis(t, chance):
    return chance.randrange(max(t.dim(), 1))


MUTATIONS = {
    **{
        f"as {dtype}": lambda t, _, dtype=dtype: t.to(dtype)
        for dtype in (
            torch.float64,
            torch.float16,
            torch.bfloat16,
            torch.int64,
            torch.int32,
            torch.uint8,
            torch.bool,
            torch.complex64,
        )
    },
    "a dimension less": lambda t, c: t.flatten(0, 1) if t.dim() > 1 else t[0],
    "a dimension more": lambda t, c: t.unsqueeze(axis(t, c)),
    "half of a dimension": lambda t, c: t.narrow(a := axis(t, c), 0, (t.shape[a] + 1) // 2),
    "twice a dimension": lambda t, c: t.repeat_interleave(2, axis(t, c)),
    "nothing in a dimension": lambda t, c: t.narrow(axis(t, c), 0, 0),
    "one row for all": lambda t, c: t.narrow(axis(t, c), 0, 1).expand_as(t),
    "transposed": lambda t, c: t.transpose(0, -1),
    "every other number": lambda t, c: t.repeat_interleave(2, -1)[..., ::2],
    "overlapping": lambda t, c: t.contiguous().as_strided(t.shape, [1] * t.dim()),
    "a conjugate": lambda t, c: t.to(torch.complex64).conj(),
    "misaligned": lambda t, c: misaligned(t),
    "sparse": lambda t, c: t.to_sparse(),
    "nowhere": lambda t, c: t.to("meta"),
    "no tensor": lambda t, c: None,
}
NUMBERS = (0, -1, 3, 2**31, 2**63 - 1, 2**64, -(2**62), 1.5, None, "1")


def mutated(case, chance):
    """One argument, or two, as somebody might get it wrong; what was done, and the call."""
    arguments, done = list(case.arguments), []
    for _ in range(chance.choice((1, 1, 2))):
        place = chance.randrange(len(arguments))
        old = arguments[place]
        if isinstance(old, Tensor) and old.dim() > 0:
            name = chance.choice(list(MUTATIONS))
            try:
                arguments[place] = MUTATIONS[name](old, chance)
            except ERRORS:  # such a tensor cannot be
                continue
        elif isinstance(old, tuple):
            name = chance.choice(("shorter", "longer", *NUMBERS))
            rest = list(old)
            if name == "shorter":
                rest.pop()
            elif name == "longer":
                rest.append(1)
            else:
                rest[chance.randrange(len(rest))] = name
            arguments[place] = tuple(rest)
        elif not isinstance(old, str) and old is not None:
            name = chance.choice(NUMBERS)
            arguments[place] = name
        else:
            continue
        done.append(f"{place}: {name}")
    return "; ".join(done), Case(case.op, tuple(arguments))


def largest(t):
    """Of the finite numbers."""
    usable = not (t.is_sparse or t.is_meta) and t.numel() > 0
    return t.double().nan_to_num(0, 0, 0).abs().max().item() if usable else 0.0


def expected(case):
    """What the specification makes of it, or None where it refuses too."""
    try:
        return case.expected()
    except (*ERRORS, ZeroDivisionError, MemoryError):
        return None


@pytest.mark.parametrize("op", sorted({case.op for case in SMALL.values()}))
def test_wrong_arguments_are_errors_or_harmless(op):
    chance = random.Random(f"gradood {op}")
    chosen = [case for case in SMALL.values() if case.op == op]
    refused = 0
    for _ in range(400):
        what, case = mutated(chance.choice(chosen), chance)
        try:
            found = getattr(cpp_backend, op)(*case.arguments)
        except ERRORS:
            refused += 1
            continue
        rights = expected(case) or as_tuple(found)
        least = 1e-5 + 1e-6 * max(map(largest, rights), default=0.0)  # rounding, where all cancels
        for got, right in zip(as_tuple(found), rights, strict=True):
            if not (right.is_sparse or right.is_meta or right is got):  # what is empty stays so
                close = torch.isclose(got.double(), right.double(), 1e-2, least, equal_nan=True)
                close |= ~(got.isfinite() | right.isfinite())  # of a variance of zero, say
                assert close.all(), what
    assert refused > 50


NOISE = {
    "noisy_batch": lambda: (
        torch.rand(4, 2, 3, 5), torch.tensor([0, 3, 1]), torch.tensor([7, 8, 9]),
        torch.tensor([0, 1, 2]), torch.tensor([5, 1]), 0.5, 0.0, 1.0, torch.zeros(2),
        torch.ones(2), torch.float32, False,
    ),
    "grid_batch": lambda: (
        torch.rand(4, 2, 3, 5), torch.tensor([0, 3, 1]), torch.tensor([7, 8, 9]),
        torch.tensor([0, 1, 2]), torch.tensor([5, 1]), 0.5, 4096.0, 0.0, 1.0, torch.float32, False,
    ),
    "vote_count": lambda: (
        torch.randn(6, 3), torch.tensor([0, 1, 1, 2, 0, 2]), "argmax", None, 3,
    ),
    "vote_count above": lambda: (
        torch.randn(6), torch.tensor([0, 1, 1, 2, 0, 2]), "above", torch.tensor([0.0, 0.5]), 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NOISE)
def test_wrong_noise_and_votes_are_errors_or_harmless(name):
    chance, refused = random.Random(f"gradood {name}"), 0
    op = name.split()[0]
    for _ in range(400):
        what, case = mutated(Case(op, NOISE[name]()), chance)
        if "2147483648" in what:  # as many inputs as that are only slow
            continue
        try:
            getattr(cpp_backend, op)(*case.arguments)
        except (*ERRORS, MemoryError):
            refused += 1
    assert refused > 50


class Recorder:
    """The kernels, and what they were called with."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*numbers):
            self.calls.append((name, numbers))
            return getattr(cpp_backend._cpu, name)(*numbers)

        return call


def recorded(monkeypatch):
    """One valid call of every entry point, with the tensors that it points to."""
    recorder, alive = Recorder(), []
    monkeypatch.setattr(cpp_backend, "_kernels", recorder)
    new = cpp_backend._new
    monkeypatch.setattr(cpp_backend, "_new", lambda n: alive.append(new(n)) or alive[-1])
    for name in ("conv strided", "conv depthwise", "linear (3, 17, 41)", "linear (1, 401, 17)",
                 "batch_norm (3, 17, 41)", "batch_norm backward (3, 17, 41)", "bias (3, 17, 41)",
                 "layer_norm (3, 17, 41)", "layer_norm backward (3, 17, 41)",
                 "group_norm (3, 17, 41)", "embedding (17, 41, 5, 0)"):  # fmt: skip
        case = CASES[name]
        alive.append((case, getattr(cpp_backend, case.op)(*case.arguments)))
    for kind in ("direct", "gram", "depthwise"):
        x, d, *geometry, _ = CASES["conv depthwise"].arguments
        alive.append(cpp_backend.conv_sqnorm(x, d, *geometry, True, kind=kind))
    return recorder.calls, alive


@pytest.mark.parametrize("isa", ["baseline", "auto"])
def test_entry_points_refuse_numbers_that_make_no_sense(monkeypatch, isa):
    """Addresses of what has been freed cannot be told from others, so kernels with such do not run:
    every mutation here must be refused before the kernel is.
    """
    before = cpp_backend.instruction_set()
    cpp_backend.use_instruction_set(isa)
    try:
        calls, _alive = recorded(monkeypatch)
        assert {name for name, _ in calls} >= {
            "direct", "gram", "depthwise", "outer", "batch_norm", "layer_norm",
            "layer_norm_backward", "group_norm", "embedding", "bias",
        }  # fmt: skip
        for name, numbers in calls:
            kernel = getattr(cpp_backend._cpu, name)
            wrong = [numbers[:-1], (*numbers, 1), (*numbers[:-1], 0), (*numbers[:-1], -3), ()]
            for place, number in enumerate(numbers):
                for value in (None, "x", [1], 2**70)[: 3 + isinstance(number, int)]:
                    wrong.append((*numbers[:place], value, *numbers[place + 1 :]))
                if isinstance(number, int) and number > 2**20:  # an address
                    wrong.append((*numbers[:place], number + 1, *numbers[place + 1 :]))
            # The first tensor of every kernel: address, dtype, sizes, strides.
            first = 1 if name == "embedding" else 0
            dimensions = 5 if name in ("direct", "gram", "depthwise") else 3
            for place, values in (
                (first, (0,)),
                (first + 1, (-1, 3, 9)),
                *((first + 2 + i, (0, -1, -(2**40))) for i in range(dimensions)),
                *((first + 2 + dimensions + i, (-1, -(2**40))) for i in range(dimensions)),
            ):
                wrong += [(*numbers[:place], v, *numbers[place + 1 :]) for v in values]
            for arguments in wrong:
                with pytest.raises((TypeError, ValueError, OverflowError)):
                    kernel(*arguments)
    finally:
        cpp_backend.use_instruction_set(before)


def test_a_gradient_that_reaches_beyond_its_input_is_refused():
    """Kernels of size one fold strides, and would read on where x has ended."""
    x, d = torch.randn(2, 4, 5, 5), torch.randn(2, 3, 3, 3)
    for kernel, stride, padding, dilation, size in (
        ((1, 1), (2, 2), (0, 0), (1, 1), (4, 3)),
        ((3, 3), (1, 1), (0, 0), (1, 1), (3, 4)),
        ((3, 3), (1, 1), (0, 0), (2, 2), (2, 1)),
    ):
        wrong = torch.randn(2, 3, *size)
        with pytest.raises(BackendError, match="has no meaning"):
            cpp_backend.conv_sqnorm(x, wrong, kernel, stride, padding, dilation, 1, True)
    # Fewer windows than fit are what a transposed convolution with output padding has.
    found = cpp_backend.conv_sqnorm(x, d, (1, 1), (1, 1), (0, 0), (1, 1), 1, True)
    right = reference.conv_sqnorm(x, d, (1, 1), (1, 1), (0, 0), (1, 1), 1, True)
    torch.testing.assert_close(found[0], right[0])


@pytest.mark.parametrize("kind", ["direct", "gram"])
def test_a_stride_beyond_everything(kind):
    """One window has no next one, however far away."""
    x, d = torch.randn(2, 8, 5, 5), torch.randn(2, 16, 1, 1)
    far = ((5, 5), (2**63 - 1, 2**40), (0, 0), (1, 1), 1, True)
    found = cpp_backend.conv_sqnorm(x, d, *far, kind=kind)
    right = reference.conv_sqnorm(x, d, (5, 5), (1, 1), (0, 0), (1, 1), 1, True)
    torch.testing.assert_close(found, right)


@pytest.mark.parametrize("change", [misaligned, freed])
def test_what_lies_nowhere_or_askew_is_refused(change):
    t = change(torch.ones(3, 2))
    for place in (lambda: address(t, torch.float32, (3, 2)), lambda: address_of_any(t)):
        with pytest.raises(BackendError, match="not aligned, or freed"):
            place()
