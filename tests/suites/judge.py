"""Judge one model: exact, refused rightly, no oracle, or at fault.

The oracle is plain autograd, one sample at a time. It also settles what a right answer is: a model
whose samples influence one another, or whose logits or gradients are no numbers, has no gradient
norm a sample, and a ``GradoodError`` is then the right answer. For every other model it is not.
"""

from __future__ import annotations

import contextlib
import copy
import signal
import traceback
import warnings
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

import gradood
from gradood.errors import GradoodError

#: Elementwise relative error of a squared norm.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
#: How often the float32 loop's own error a float32 norm may be off, where that is more.
LOOP_ERRORS = 10
#: What two float32 computations, of which none is right, may differ by.
LOOSE = 1e-4
#: Squared norms below this share of the largest, or of one, which is about what the gradient of
#: the logits has, are rounding of zero.
ZERO = {torch.float64: 1e-20, torch.float32: 1e-9}

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


class NoOracle(Exception):
    """Nothing can be compared, for the reason in ``args``."""


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
            row.outcome, row.reason = "refused", f"{right}: {_line(error)}"
            return
        raise Fault("wrong error", _line(error)) from error
    except Exception as error:
        raise Fault("exception", _where(error)) from error
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


def settle(model: nn.Module, x: Tensor, tolerance: float = 1e-7) -> Tensor | str:
    """The norms ``[N, L]``, or why there are none and an error is right.

    Raises:
        NoOracle: the model cannot be run, or draws random numbers.
    """
    try:
        torch.manual_seed(1)
        given = x.clone()
        batch = logits_of(_copy(model)(given))
        torch.manual_seed(2)
        again = logits_of(_copy(model)(x.clone()))
    except Exception as error:
        raise NoOracle(f"the model raises {_where(error)}") from error
    if not _same(given, x):
        raise NoOracle("the model writes to its input")
    if x.is_floating_point() and not bool(x.isfinite().all()):
        return "the batch is not finite"
    if not torch.equal(batch.nan_to_num(), again.nan_to_num()):
        raise NoOracle("the model draws random numbers")
    if not bool(batch.isfinite().all()):
        return "the logits are not finite"
    if not batch.requires_grad:
        return "no gradient reaches a parameter"
    try:
        norms, alone = loop(model, x)
    except Exception as error:
        return f"one sample does not run ({_where(error)})"
    batch = batch.detach()
    if worst(alone, batch, torch.float64) > tolerance and not torch.allclose(
        alone, batch, tolerance / 100, tolerance / 1000
    ):
        return "the samples influence one another"
    if x.is_floating_point() and _gradients_mix(model, x):
        if worst(loop(model, x, pair=False)[0], norms, torch.float64) > 1e-7:
            raise NoOracle("a sample alone has another gradient than beside its copy")
        return "the gradients of the samples influence one another"
    if not bool(norms.isfinite().all()):
        return "the gradients are not finite"
    return norms


def loop(model: nn.Module, x: Tensor, pair: bool = True) -> tuple[Tensor, Tensor]:
    """Squared norms ``[N, L]`` and logits ``[N, C]``, one sample at a time.

    Every sample runs beside a copy of itself that the loss ignores: the batch norm backward of
    PyTorch 2.14 is wrong for a batch of one.
    """
    rows, alone = [], []
    for n in range(len(x)):
        fresh = _copy(model)
        parameters = [p.requires_grad_() for p in fresh.parameters()]
        logits = logits_of(fresh(x[[n, n] if pair else [n]].clone()))[:1]
        loss = functional.binary_cross_entropy_with_logits(
            logits, torch.ones_like(logits), reduction="sum"
        )
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        rows.append([0.0 if g is None else float(_square(g)) for g in gradients])
        alone.append(logits.detach())
    return torch.tensor(rows, dtype=torch.float64), torch.cat(alone)


def _square(gradient: Tensor) -> Tensor:
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    return gradient.double().square().sum()


def worst(found: Tensor, right: Tensor, dtype: torch.dtype) -> float:
    """The largest elementwise relative error."""
    if found.numel() == 0 or found.shape != right.shape:
        return 0.0 if found.shape == right.shape else float("inf")
    floor = ZERO[dtype] * max(float(right.abs().max()), 1.0)
    errors = (found.double() - right.double()).abs() / right.double().abs().clamp_min(floor)
    return float(errors.nan_to_num(float("inf"), float("inf")).max())


def logits_of(out: object) -> Tensor:
    """A tensor, or the ``logits`` of an output object."""
    return out if isinstance(out, Tensor) else out.logits


def _copy(model: nn.Module) -> nn.Module:
    return copy.deepcopy(model)


def _gradients_mix(model: nn.Module, x: Tensor) -> bool:
    """Whether the logits of a sample have a gradient at another sample."""
    model, x = _copy(model), x.clone().requires_grad_()
    try:
        logits = logits_of(model(x * 1.0))
        if not logits.requires_grad:
            return False
        weights = torch.linspace(1, 2, logits.shape[1]).to(logits)
        for n in range(len(x)):
            (g,) = torch.autograd.grad(
                (logits[n] * weights).sum(), x, retain_graph=True, allow_unused=True
            )
            if g is None:
                continue
            others = g.abs().flatten(1).nan_to_num().sum(1)
            own = float(others[n])
            others[n] = 0
            if float(others.max()) > 1e-12 * own:
                return True
    except RuntimeError:
        pass  # no gradient at the input: the values have been compared
    return False


def _compare_again(
    row: Row, model: nn.Module, x: Tensor, found: gradood.GradientNorms, right: Tensor
) -> None:
    """Allow what the oracle itself is uncertain about; else it is a mismatch."""
    if row.error <= TOLERANCE[torch.float32] and _computes_in_float32(model, x):
        return
    noise = 0.0
    with contextlib.suppress(Exception):
        noise = worst(loop(model, x, pair=False)[0], right, torch.float64)
    for seed in range(3):
        # A change of the last bit of every number shows the condition of the gradient.
        nudged, generator = _copy(model), torch.Generator().manual_seed(seed)
        with torch.no_grad(), contextlib.suppress(Exception):
            for p in nudged.parameters():
                p.copy_(_nudged(p, generator))
            given = _nudged(x, generator) if x.is_floating_point() else x
            with torch.enable_grad():
                noise = max(noise, worst(loop(nudged, given)[0], right, torch.float64))
    if row.error > LOOP_ERRORS * noise:
        scale = right.abs().amax(0).clamp_min(1e-300)
        column = int(((found.values.double() - right).abs() / scale).amax(0).argmax())
        raise Fault(
            "mismatch",
            f"{found.names[column]}: got {_few(found.values[:, column])}, "
            f"loop {_few(right[:, column])}, error {row.error:.1e}, noise {noise:.1e}",
        )


def _nudged(t: Tensor, generator: torch.Generator) -> Tensor:
    bits = torch.randint(-1, 2, t.shape, generator=generator)
    return t.detach() * (1 + 2.3e-16 * bits.to(t))


class _Narrow(TorchFunctionMode):
    """Notice float32 on the way of a gradient: some models cast, whatever their dtype."""

    found = False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.dtype == torch.float32 and t.requires_grad:
                self.found = True
        return out


def _computes_in_float32(model: nn.Module, x: Tensor) -> bool:
    with _Narrow() as narrow:
        _copy(model)(x.clone())
    return narrow.found


def _judge_float32(row: Row, double: nn.Module, wide: Tensor, exact: Tensor) -> None:
    model = _copy(double).float()
    x = wide.float() if wide.is_floating_point() else wide
    with contextlib.suppress(Exception):
        single = loop(model, x)[0]
        rounded = _copy(model).double()
        pairs = [*zip(rounded.state_dict().values(), double.state_dict().values(), strict=True)]
        if not all(torch.equal(a, b) for a, b in [*pairs, (x.to(wide), wide)]):
            exact = loop(rounded, x.to(wide))[0]
        row.loop32 = worst(single, exact, torch.float32)
    if row.loop32 is None or row.loop32 == float("inf"):
        return  # the model does not run in float32, or has no gradient there
    try:
        found = gradood.gradient_norms(model, x).values
    except GradoodError as error:
        raise Fault("wrong error", f"float32: {_line(error)}") from error
    except Exception as error:
        raise Fault("exception", f"float32: {_where(error)}") from error
    row.error32 = worst(found, exact, torch.float32)
    if row.error32 > max(TOLERANCE[torch.float32], LOOP_ERRORS * row.loop32):
        raise Fault(
            "mismatch in float32",
            f"error {row.error32:.1e}, the float32 loop's {row.loop32:.1e}",
        )


def _check_unchanged(model: nn.Module, before: dict[str, Tensor], x: Tensor, given: Tensor) -> None:
    if not _same(x, given):
        raise Fault("changed", "the input was written to")
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor) and not _same(value, before[name]):
            raise Fault("changed", f"{name} was written to")


def _same(a: Tensor, b: Tensor) -> bool:
    if a.is_floating_point():
        a, b = a.nan_to_num(), b.nan_to_num()
    return torch.equal(a, b)


def _explain(row: Row, model: nn.Module, x: Tensor) -> None:
    try:
        row.fallbacks, row.fallback_elements = _fallbacks(model, x)
    except Exception as error:
        raise Fault("exception", f"explain: {_where(error)}") from error


def _fallbacks(model: nn.Module, x: Tensor) -> tuple[list[str], int]:
    rows = gradood.explain(model, x).fallbacks
    sizes = {name: p.numel() for name, p in model.named_parameters()}
    described = [f"{r.parameter}: {r.rule}, {r.reason}" for r in rows]
    return described, sum(sizes[r.parameter] for r in rows)


def _few(values: Tensor) -> str:
    return "[" + ", ".join(f"{v:.6g}" for v in values[:3].tolist()) + "]"


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def _where(error: BaseException) -> str:
    """Type and message of an error, and the last line of the package that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "gradood" in f.filename and "tests" not in f.filename]
    at = f" at {ours[-1].filename.rpartition('/')[2]}:{ours[-1].name}" if ours else ""
    return f"{type(error).__name__}{at}: {_line(error)}"
