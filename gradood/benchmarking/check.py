"""Are a method's numbers right? Each is held against a float64 loop over a few samples."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradood.benchmarking.methods import TOTAL, Norms
from gradood.gradients import gradient_norms

#: Samples that are compared; in evaluation mode they do not depend on the others.
SAMPLES = 5
#: A column that is further off, relative to its largest entry, is wrong; bfloat16 rounds more.
TOLERANCE = {False: 1e-3, True: 0.3}


@dataclass(frozen=True)
class Verdict:
    """What a method leaves out or gets wrong.

    Attributes:
        error: the largest error of a column that is not wrong, relative to its largest entry.
        missing: parameters without norms.
        wrong: parameters whose norms are off by more than rounding.
        parameters: how many there are.
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


def expected(model: nn.Module, x: Tensor, computes: str) -> Norms:
    """What a method that ``computes`` this should return for the first samples; float64.

    ``norms`` and ``sum`` come from the library's loop, which shares nothing with its rules.
    """
    exact = copy.deepcopy(model).double().requires_grad_()
    part = x[:SAMPLES].double()
    if computes == "l1":
        return {TOTAL: torch.stack([_absolute_gradients(exact, sample) for sample in part])}
    loss = "bce_softmax" if computes == "sum" else "bce"
    norms = gradient_norms(exact, part, loss=loss, method="loop")
    if computes == "sum":
        return {TOTAL: norms.values.sum(1)}
    return dict(zip(norms.names, norms.values.unbind(1), strict=True))


def compare(found: Norms, right: Norms, autocast: bool = False) -> Verdict:
    """Compare columns ``[N]`` with the first samples' right ones.

    The error of a column is the middle one of its samples', relative to the column's largest entry,
    or to 1e-14 of the largest of all where a column is nothing but rounding. The middle one, since
    a ReLU whose input is within rounding of zero may flip between a batch and a sample alone, and
    then that sample's gradient is another one in float32, rightly.
    """
    floor = 1e-14 * max(float(column.max()) for column in right.values())
    errors = {}
    for name, column in right.items():
        if name in found:
            difference = found[name][: len(column)].double() - column
            # Not a number must not pass for right.
            error = float(difference.abs().median() / column.max().clamp_min(floor))
            errors[name] = error if error == error else float("inf")
    wrong = tuple(name for name, error in errors.items() if error > TOLERANCE[autocast])
    missing = tuple(name for name in right if name not in found)
    rest = [error for name, error in errors.items() if name not in wrong]
    return Verdict(max(rest, default=0.0), missing, wrong, len(right))


def _absolute_gradients(model: nn.Module, sample: Tensor) -> Tensor:
    """GradNorm's ``‖∂/∂θ (−mean_c log softmax(z)_c)‖₁``, over all parameters."""
    # Beside itself, and counted once: the batch norm backward of PyTorch is wrong for one sample.
    logits = model(torch.stack([sample, sample]))[:1]
    loss = -logits.log_softmax(1).mean()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    return torch.stack([g.abs().sum() for g in gradients]).sum()
