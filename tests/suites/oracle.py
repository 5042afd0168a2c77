"""What is right for a model: plain autograd, a sample at a time, or why there is no such thing."""

from __future__ import annotations

import contextlib
import copy
import traceback

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

#: Elementwise relative error of a squared norm.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}
#: How often the float32 loop's own error a float32 norm may be off, where that is more.
LOOP_ERRORS = 10
#: What two float32 computations, of which none is right, may differ by.
LOOSE = 1e-4
#: Squared norms below this share of the largest, or of one, which is about what the gradient of
#: the logits has, are rounding of zero.
ZERO = {torch.float64: 1e-20, torch.float32: 1e-9}


class NoOracle(Exception):
    """Nothing can be compared, for the reason in ``args``."""


def settle(model: nn.Module, x: Tensor, tolerance: float = 1e-7) -> Tensor | str:
    """The norms ``[N, L]``, or why there are none and an error is right.

    Raises:
        NoOracle: the model cannot be run, or draws random numbers.
    """
    try:
        torch.manual_seed(1)
        given = x.clone()
        batch = logits_of(copy.deepcopy(model)(given))
        torch.manual_seed(2)
        again = logits_of(copy.deepcopy(model)(x.clone()))
    except Exception as error:
        raise NoOracle(f"the model raises {where(error)}") from error
    if not same(given, x):
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
        return f"one sample does not run ({where(error)})"
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
        fresh = copy.deepcopy(model)
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


def _gradients_mix(model: nn.Module, x: Tensor) -> bool:
    """Whether the logits of a sample have a gradient at another sample."""
    model, x = copy.deepcopy(model), x.clone().requires_grad_()
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


def uncertainty(model: nn.Module, x: Tensor, right: Tensor) -> float:
    """By how much the loop's own norms differ, computed in another way."""
    noise = 0.0
    with contextlib.suppress(Exception):
        noise = worst(loop(model, x, pair=False)[0], right, torch.float64)
    for seed in range(3):
        # A change of the last bit of every number shows the condition of the gradient.
        nudged, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
        with torch.no_grad(), contextlib.suppress(Exception):
            for p in nudged.parameters():
                p.copy_(_nudged(p, generator))
            given = _nudged(x, generator) if x.is_floating_point() else x
            with torch.enable_grad():
                noise = max(noise, worst(loop(nudged, given)[0], right, torch.float64))
    return noise


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


def computes_in_float32(model: nn.Module, x: Tensor) -> bool:
    if any(p.dtype == torch.float32 for p in model.parameters()):
        return True
    with _Narrow() as narrow:
        copy.deepcopy(model)(x.clone())
    return narrow.found


def same(a: Tensor, b: Tensor) -> bool:
    if a.is_floating_point():
        a, b = a.nan_to_num(), b.nan_to_num()
    return torch.equal(a, b)


def line_of(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def where(error: BaseException) -> str:
    """Type and message of an error, and the last line of the package that it passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "gradood" in f.filename and "tests" not in f.filename]
    at = f" at {ours[-1].filename.rpartition('/')[2]}:{ours[-1].name}" if ours else ""
    return f"{type(error).__name__}{at}: {line_of(error)}"
