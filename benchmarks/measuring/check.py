"""Are a method's numbers right? Each is held against a float64 loop over a few samples."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradood.benchmarking.methods import TOTAL, Norms
from gradood.gradients import gradient_norms

#: Samples that are compared; in evaluation mode they do not depend on the others.
SAMPLES = 5
#: A column that is further off is wrong, unless float32 autograd itself is; bfloat16 rounds more.
TOLERANCE = {False: 1e-3, True: 0.3}
#: How far off a column may be in terms of the worst error of float32 autograd, and at most.
ALLOWANCE, CEILING = 3.0, 0.3


@dataclass(frozen=True)
class Verdict:
    """What a method leaves out or gets wrong.

    Attributes:
        error: The largest error of a column that is not wrong, relative to its largest entry.
        missing: Parameters without norms.
        wrong: Parameters whose norms are off by more than rounding.
        parameters: How many there are.
    """

    error: float
    missing: tuple[str, ...]
    wrong: tuple[str, ...]
    parameters: int

    def __str__(self) -> str:
        faults = [
            f"{len(names)} of {self.parameters} {fault}"
            for names, fault in ((self.missing, "missing"), (self.wrong, "wrong"))
            if names
        ]
        return ", ".join(faults) or "exact"


def expected(
    model: nn.Module, x: Tensor, computes: str, dtype: torch.dtype = torch.float64
) -> Norms:
    """What a method that ``computes`` this should return for the first samples.

    ``norms`` and ``sum`` come from the library's loop, which shares nothing with its rules. In
    float32 it shows what rounding alone does.
    """
    exact = copy.deepcopy(model).to(dtype).requires_grad_()
    part = x[:SAMPLES].to(dtype)
    if computes == "l1":
        return {TOTAL: torch.stack([_absolute_gradients(exact, sample) for sample in part])}
    loss = "bce_softmax" if computes == "sum" else "bce"
    norms = gradient_norms(exact, part, loss=loss, method="loop")
    if computes == "sum":
        return {TOTAL: norms.values.sum(1)}
    return dict(zip(norms.names, norms.values.unbind(1), strict=True))


def compare(
    found: Norms, right: Norms, rounded: Norms | None = None, autocast: bool = False
) -> Verdict:
    """Compare columns ``[N]`` with the first samples' right ones.

    A column is wrong if its error is above the tolerance, and above three times that of the worst
    column of ``rounded``, the same in float32: deep networks turn rounding, which flips a ReLU here
    and there, into more than 0.1 %.
    """
    floor = 1e-14 * max(float(column.max()) for column in right.values())
    errors = {n: _error(found[n], column, floor) for n, column in right.items() if n in found}
    rounding = [_error(column, right[n], floor) for n, column in (rounded or {}).items()]
    limit = max(TOLERANCE[autocast], min(ALLOWANCE * max(rounding, default=0.0), CEILING))
    wrong = tuple(name for name, error in errors.items() if error > limit)
    missing = tuple(name for name in right if name not in found)
    rest = [error for name, error in errors.items() if name not in wrong]
    return Verdict(max(rest, default=0.0), missing, wrong, len(right))


def _error(column: Tensor, right: Tensor, floor: float) -> float:
    """The middle one of the samples' errors, relative to the column's largest entry.

    Or to ``floor``, where a column is nothing but rounding. The middle one, since a ReLU whose
    input is within rounding of zero may flip between a batch and a sample alone, and then that
    sample's gradient is another one in float32, rightly.
    """
    difference = column[: len(right)].double() - right
    error = float(difference.abs().median() / right.max().clamp_min(floor))
    return error if error == error else math.inf  # not a number must not pass for right


def _absolute_gradients(model: nn.Module, sample: Tensor) -> Tensor:
    """GradNorm's ``‖∂/∂θ (−mean_c log softmax(z)_c)‖₁``, over all parameters."""
    # Beside itself, and counted once: the batch norm backward of PyTorch is wrong for one sample.
    logits = model(torch.stack([sample, sample]))[:1]
    loss = -logits.log_softmax(1).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.stack([g.abs().sum() for g in gradients]).sum()
