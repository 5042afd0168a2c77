"""APGD: projected gradient ascent that chooses its own step sizes (Croce and Hein 2020)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from gradood.attacks.ball import Ball

#: What is maximised: points ``[n, ...]`` and the number of the step -> ``[n]``, differentiable.
Objective = Callable[[Tensor, int], Tensor]

_MOMENTUM = 0.25
_RISING = 0.75


def checkpoints(steps: int) -> list[int]:
    """Where the step size may be halved: ``w_j = ceil(p_j steps)``, ascending.

    ``p_0 = 0, p_1 = .22, p_{j+1} = p_j + max(p_j - p_{j-1} - .03, .06)``; 0 is left out.
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return sorted({math.ceil(share * steps - 1e-9) for share in shares if share <= 1} - {0})


def apgd_ascent(
    objective: Objective, start: Tensor, ball: Ball, steps: int
) -> tuple[Tensor, Tensor]:
    """The best point that APGD meets for every input, and the last one.

    ``z = P(x_k + η d(∇f(x_k)))``, ``x_{k+1} = P(x_k + .75 (z - x_k) + .25 (x_k - x_{k-1}))``, with
    d the steepest direction of the norm and η at first 2 epsilon. At every checkpoint an input's η
    is halved, and its search resumed from its best point, if fewer than 3/4 of the steps since the
    last one increased f, or if neither η nor the best value changed since. Source: Croce and Hein,
    "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", 2020, arXiv 2003.01690, algorithm 1.

    Args:
        objective: Maximised for each input by itself; NaN counts as -inf.
        start: ``[n, ...]``, points of ``ball``.
        ball: Where points must stay.
        steps: Gradients computed; the objective itself once more.

    Returns:
        Best and last points, each ``[n, ...]``. By a noisy objective the best one may just have
        been lucky, and the last one better.
    """
    points = previous = best = last_points = start
    value, gradient = _slope(objective, points, 0, steps > 0)
    best_value, best_gradient = value, gradient
    size = 2 * ball.epsilon.flatten()
    last, last_best = 0, best_value
    rises = torch.zeros_like(value)
    halved = torch.zeros_like(value, dtype=torch.bool)
    turns = checkpoints(steps)
    for step in range(1, steps + 1):
        ahead = ball.ascend(points, gradient, size)
        if step > 1:
            moved = (1 - _MOMENTUM) * (ahead - points) + _MOMENTUM * (points - previous)
            ahead = ball.project(points + moved)
        previous, points, before = points, ahead, value
        value, gradient = _slope(objective, points, step, step < steps)
        rises += value > before
        better = value > best_value
        best, best_gradient = _where(better, points, best), _where(better, gradient, best_gradient)
        best_value = torch.where(better, value, best_value)
        last_points = points
        if step in turns:
            halved = (rises < _RISING * (step - last)) | (~halved & (best_value <= last_best))
            size = torch.where(halved, size / 2, size)
            points, previous = _where(halved, best, points), _where(halved, best, previous)
            gradient = _where(halved, best_gradient, gradient)
            value = torch.where(halved, best_value, value)
            last, last_best = step, best_value
            rises = torch.zeros_like(rises)
    return best, last_points


def _slope(
    objective: Objective, points: Tensor, step: int, with_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Value ``[n]`` and gradient; zeros for the gradient that nobody will use."""
    points = points.detach().requires_grad_(with_gradient)
    with torch.set_grad_enabled(with_gradient):
        value = objective(points, step).double()
    gradient = torch.zeros_like(points)
    if with_gradient and value.requires_grad:
        (gradient,) = torch.autograd.grad(value.sum(), points)
    return value.detach().nan_to_num(-torch.inf, torch.inf, -torch.inf), gradient.detach()


def _where(rows: Tensor, first: Tensor, second: Tensor) -> Tensor:
    return torch.where(rows.view(-1, *[1] * (first.dim() - 1)), first, second)
