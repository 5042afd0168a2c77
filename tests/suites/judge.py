"""Judge one model: exact, refused rightly, no oracle, or at fault.

The oracle is plain autograd, one sample at a time. It also settles what a right answer is: a model
whose samples influence one another, or whose logits or gradients are no numbers, has no gradient
norm a sample, and a ``GradoodError`` is then the right answer. For every other model it is not.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import warnings
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

import gradood
from gradood.errors import GradoodError
from tests.suites.oracle import (
    LOOP_ERRORS,
    LOOSE,
    TOLERANCE,
    NoOracle,
    computes_in_float32,
    line_of,
    loop,
    same,
    settle,
    uncertainty,
    where,
    worst,
)

#: Outcomes that are as they should be.
RIGHT = ("exact", "refused", "no oracle")


@dataclass
class Row:
    """What was found about one model."""

    suite: str
    entry: str
    case: str
    outcome: str = ""
    reason: str = ""
    parameters: int = 0
    #: Elements of the parameters, and of those on a fallback.
    elements: int = 0
    fallback_elements: int = 0
    #: ``name: rule, reason`` of every parameter on a fallback.
    fallbacks: list[str] = field(default_factory=list)
    #: The largest errors, and the float32 loop's own.
    error: float | None = None
    error32: float | None = None
    loop32: float | None = None

    @property
    def name(self) -> str:
        """What the table of listed rows calls it."""
        return f"{self.suite}/{self.entry}/{self.case}"

    @property
    def right(self) -> bool:
        """Whether the promise is kept."""
        return self.outcome in RIGHT

    def as_dict(self) -> dict[str, object]:
        """For a JSON line."""
        return asdict(self)


class Fault(Exception):
    """The promise is broken; ``args`` are the outcome and the reason."""


class TimeLimit(BaseException):
    """A row took too long; no ``Exception``, so that no code under test swallows it."""


@contextlib.contextmanager
def limited(seconds: int):
    """Raise ``TimeLimit`` in what runs longer, as far as Python gets to run."""

    def stop(*_: object) -> None:
        raise TimeLimit

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def judge(row: Row, model: nn.Module, x: Tensor, seconds: int = 60, alone: bool = False) -> Row:
    """Fill in ``row`` for a model in evaluation mode and a batch of two or more.

    A float64 model is judged in float64 and in float32. ``alone`` says that it is a float32 model
    that does not run in float64: two float32 computations are compared.
    """
    try:
        with limited(seconds), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            row.parameters = len(list(model.parameters()))
            row.elements = sum(p.numel() for p in model.parameters())
            _judge(row, model, x, alone)
    except Fault as fault:
        row.outcome, row.reason = fault.args
    except NoOracle as none:
        row.outcome, row.reason = "no oracle", str(none)
    except TimeLimit:
        row.outcome, row.reason = "time limit", f"more than {seconds} s"
    return row


def _judge(row: Row, model: nn.Module, x: Tensor, alone: bool) -> None:
    right = settle(model, x, LOOSE if alone else 1e-7)
    before = copy.deepcopy(model.state_dict())
    given = x.clone()
    try:
        torch.manual_seed(1)
        found = gradood.gradient_norms(model, x)
    except GradoodError as error:
        if isinstance(right, str):
            row.outcome, row.reason = "refused", f"{right}: {line_of(error)}"
            return
        raise Fault("wrong error", line_of(error)) from error
    except Exception as error:
        raise Fault("exception", where(error)) from error
    _check_unchanged(model, before, x, given)
    if isinstance(right, str):
        raise Fault("no error", right)
    _explain(row, model, x)
    if alone:
        row.error32 = worst(found.values, right, torch.float32)
        if row.error32 > LOOSE:
            raise Fault("mismatch in float32", f"error {row.error32:.1e}, the loop is float32 too")
    else:
        row.error = worst(found.values, right, torch.float64)
        if row.error > TOLERANCE[torch.float64]:
            _compare_again(row, model, x, found, right)
        _judge_float32(row, model, x, right)
    row.outcome = "exact"


def _compare_again(
    row: Row, model: nn.Module, x: Tensor, found: gradood.GradientNorms, right: Tensor
) -> None:
    """Allow what the oracle itself is uncertain about; else it is a mismatch."""
    if row.error <= TOLERANCE[torch.float32] and computes_in_float32(model, x):
        return
    noise = uncertainty(model, x, right)
    if row.error > LOOP_ERRORS * noise:
        scale = right.abs().amax(0).clamp_min(1e-300)
        column = int(((found.values.double() - right).abs() / scale).amax(0).argmax())
        raise Fault(
            "mismatch",
            f"{found.names[column]}: got {_few(found.values[:, column])}, "
            f"loop {_few(right[:, column])}, error {row.error:.1e}, noise {noise:.1e}",
        )


def _judge_float32(row: Row, double: nn.Module, wide: Tensor, exact: Tensor) -> None:
    model = copy.deepcopy(double).float()
    x = wide.float() if wide.is_floating_point() else wide
    with contextlib.suppress(Exception):
        single = loop(model, x)[0]
        rounded = copy.deepcopy(model).double()
        pairs = [*zip(rounded.state_dict().values(), double.state_dict().values(), strict=True)]
        if not all(torch.equal(a, b) for a, b in [*pairs, (x.to(wide), wide)]):
            exact = loop(rounded, x.to(wide))[0]
        row.loop32 = worst(single, exact, torch.float32)
    if row.loop32 is None or row.loop32 == float("inf"):
        return  # the model does not run in float32, or has no gradient there
    try:
        found = gradood.gradient_norms(model, x).values
    except GradoodError as error:
        raise Fault("wrong error", f"float32: {line_of(error)}") from error
    except Exception as error:
        raise Fault("exception", f"float32: {where(error)}") from error
    row.error32 = worst(found, exact, torch.float32)
    if row.error32 > max(TOLERANCE[torch.float32], LOOP_ERRORS * row.loop32):
        raise Fault(
            "mismatch in float32",
            f"error {row.error32:.1e}, the float32 loop's {row.loop32:.1e}",
        )


def _check_unchanged(model: nn.Module, before: dict[str, Tensor], x: Tensor, given: Tensor) -> None:
    if not same(x, given):
        raise Fault("changed", "the input was written to")
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and not same(value, before[name]):
            raise Fault("changed", f"{name} was written to")


def _explain(row: Row, model: nn.Module, x: Tensor) -> None:
    try:
        row.fallbacks, row.fallback_elements = _fallbacks(model, x)
    except Exception as error:
        raise Fault("exception", f"explain: {where(error)}") from error


def _fallbacks(model: nn.Module, x: Tensor) -> tuple[list[str], int]:
    rows = gradood.explain(model, x).fallbacks
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    described = [f"{r.parameter}: {r.rule}, {r.reason}" for r in rows]
    return described, sum(sizes[r.parameter] for r in rows)


def _few(values: Tensor) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in values[:3].tolist()) + "]"
