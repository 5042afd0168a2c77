"""Restarts of an ascent over any number of inputs: batches, seeds, interruptions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradood import ops
from gradood.attacks.ascent import apgd_ascent
from gradood.attacks.ball import Ball
from gradood.errors import InputError
from gradood.progress import track
from gradood.raw_bytes import raw_bytes
from gradood.state_file import StateFile

#: What is maximised: points ``[n, ...]`` and the rows of the inputs that they belong to -> ``[n]``.
Loss = Callable[[Tensor, Tensor], Tensor]

#: Streams of noise: of gradients, of the comparison between restarts, and of their starts. Those of
#: certificates are 0 and 1.
_GRADIENT, _JUDGE, _START = 2, 3, 4
#: Noisy copies that restarts are compared on, the same for all of them.
_JUDGED = 32


class Expectation(NamedTuple):
    """Attack the mean over noise ``x + sigma Z``: what a smoothed model does, not one draw of it.

    Source: Athalye et al., "Synthesizing Robust Adversarial Examples", 2018; on smoothed
    classifiers Salman et al., "Provably Robust Deep Learning via Adversarially Trained Smoothed
    Classifiers", 2019.

    Attributes:
        sigma: Standard deviation of the noise, in units of the input.
        samples: Fresh noisy copies a gradient.
    """

    sigma: float
    samples: int = 4


class Budget(NamedTuple):
    """How hard to search: gradients an input are ``steps * restarts * expectation.samples``."""

    steps: int
    restarts: int
    seed: int
    batch_size: int
    expectation: Expectation | None

    def check(self) -> None:
        """Refuse what cannot be run.

        Raises:
            InputError: A number is out of range.
        """
        for name, least in (("steps", 0), ("restarts", 1), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}; expected at least {least}")
        noise = self.expectation
        if noise is not None and not (noise.sigma > 0 and noise.samples >= 1):
            raise InputError(f"{noise}: expected sigma > 0 and samples >= 1")


class Found(NamedTuple):
    """Points ``[N, ...]``, their losses float64 ``[N]``, and what computed those for any points."""

    points: Tensor
    values: Tensor
    judge: Callable[[Tensor], Tensor]


def search(
    loss: Loss,
    ball: Ball,
    budget: Budget,
    *,
    identity: Mapping[str, Any],
    state: str | Path | None,
    progress: bool | None,
) -> Found:
    """The points of the balls with the largest loss found, their centres among them.

    Restarts begin at the centre, at the centre with less contrast, then at uniformly random points.

    Args:
        loss: Maximised for each input by itself.
        ball: Centres ``[N, ...]`` and radii.
        budget: Of the search. Starts and noise are functions of the seed, the input's row and the
            restart alone.
        identity: What else the result depends on, as JSON values, for ``state``.
        state: File that keeps what restarts have found; call again with it to go on.
        progress: Show a progress bar on stderr; None shows it only on a terminal.

    Returns:
        The points and their losses.

    Raises:
        InputError: The budget is out of range.
        CheckpointError: ``state`` belongs to another run.
    """
    budget.check()
    x = ball.centres
    own = {"budget": budget, "norm": ball.norm, "inputs": _digest(x, ball.epsilon)}
    file = StateFile(state, "gradood-attack", {**own, **identity}, "an interrupted attack")
    rows = torch.arange(len(x), dtype=torch.int64, device="cpu")
    batches = rows.split(budget.batch_size) if len(x) else ()
    jobs = [(restart, part) for restart in range(budget.restarts) for part in batches]
    with torch.inference_mode(False):
        done, best, values = (
            0,
            x.clone(),
            torch.full((len(x),), -torch.inf, dtype=torch.float64, device="cpu"),
        )
        saved = file.read()
        if saved is not None:
            done, best, values = int(saved["done"]), saved["best"].to(x), saved["values"]
        for part, number in _shown(jobs, done, rows, budget, progress):
            restart = jobs[number][0]
            noisy = _Noisy(loss, part, budget, restart)
            inner = ball.rows(part.to(x.device))
            start = _start(inner, part, restart, budget.seed)
            best_met, last_met = apgd_ascent(noisy, start, inner, budget.steps)
            # No attack at all is one that nothing may be weaker than.
            candidates = [inner.centres] if restart == 0 else []
            candidates += [best_met] if budget.expectation is None else [best_met, last_met]
            for points in candidates:
                value = noisy.judge(points)
                better = value > values[part]
                best[part[better]] = points[better.to(x.device)]
                values[part] = torch.where(better, value, values[part])
            last = number + 1 == len(jobs) or jobs[number + 1][0] > restart
            if last or file.due:
                file.write(
                    {
                        "done": torch.tensor(number + 1, dtype=torch.int64, device="cpu"),
                        "best": best,
                        "values": values,
                    }
                )

    def judge(points: Tensor) -> Tensor:
        losses = [_Noisy(loss, part, budget, 0).judge(points[part]) for part in batches]
        return torch.cat(losses) if losses else values

    return Found(best, values, judge)


class _Noisy:
    """The loss of some rows, averaged over noise that is a function of seed, row and step."""

    def __init__(self, loss: Loss, rows: Tensor, budget: Budget, restart: int) -> None:
        self._loss, self._rows = loss, rows
        self._budget, self._restart = budget, restart

    def __call__(self, points: Tensor, step: int) -> Tensor:
        """Objective of ``apgd_ascent``."""
        expectation = self._budget.expectation
        if expectation is None:
            return self._loss(points, self._rows.to(points.device))
        number = self._restart * (self._budget.steps + 1) + step
        first = number * expectation.samples
        return self._mean(points, first, expectation.samples, _GRADIENT)

    @torch.no_grad()
    def judge(self, points: Tensor) -> Tensor:
        """float64 ``[n]``, on the CPU; NaN as -inf."""
        if self._budget.expectation is None:
            value = self._loss(points, self._rows.to(points.device))
        else:  # a few copies at a time, like a gradient, for memory
            size = min(self._budget.expectation.samples, _JUDGED)
            firsts = range(0, _JUDGED - _JUDGED % size, size)
            value = torch.stack([self._mean(points, first, size, _JUDGE) for first in firsts])
            value = value.double().mean(0)
        return value.double().cpu().nan_to_num(-torch.inf, torch.inf, -torch.inf)

    def _mean(self, points: Tensor, first: int, samples: int, stream: int) -> Tensor:
        assert self._budget.expectation is not None
        rows = self._rows.to(points.device).repeat_interleave(samples)
        numbers = first + torch.arange(samples, device=points.device, dtype=torch.int64).repeat(
            len(points)
        )
        noise = _normals(points, rows, numbers, self._budget.seed, stream)
        copies = points.repeat_interleave(samples, 0) + self._budget.expectation.sigma * noise
        return self._loss(copies, rows).view(len(points), samples).mean(1)


def _start(ball: Ball, rows: Tensor, restart: int, seed: int) -> Tensor:
    if restart == 0:
        return ball.centres
    if restart == 1:
        return ball.less_contrast()
    return random_points(ball, rows, seed, restart)


def random_points(ball: Ball, rows: Tensor, seed: int, number: int = 0) -> Tensor:
    """A uniformly random point of each ball, a function of seed, row and number alone."""
    if not len(rows):
        return ball.centres
    gaussian, other = (_normals(ball.centres, rows, 2 * number + i, seed, _START) for i in (0, 1))
    return ball.uniform(torch.special.ndtr(other.double()), gaussian)


def _normals(like: Tensor, rows: Tensor, numbers: Tensor | int, seed: int, stream: int) -> Tensor:
    """Standard normal numbers ``[n, ...]``, a function of seed, stream, row and number alone."""
    rows = rows.to(like.device)
    numbers = torch.as_tensor(numbers, dtype=torch.int64, device=like.device).expand(len(rows))
    normals: Tensor = ops.noisy_batch(
        torch.zeros_like(like[:1], dtype=torch.float32),
        torch.zeros_like(rows),
        rows,
        numbers.contiguous(),
        torch.tensor([seed, stream], dtype=torch.int64, device=like.device),
        1.0,
        *(None, None, None, None),
        torch.float32,
        False,
    )
    return normals.to(like.dtype)


def _shown(
    jobs: list[tuple[int, Tensor]], done: int, rows: Tensor, budget: Budget, show: bool | None
) -> Iterator[tuple[Tensor, int]]:
    """Jobs still to do and their numbers, with a bar that counts inputs times restarts."""
    left = [part for _, part in jobs[done:]]
    total = torch.cat(left) if left else rows[:0]
    return zip(track(left, "attacking", show, len(total)), range(done, len(jobs)), strict=True)


def _digest(*tensors: Tensor) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(str(list(tensor.shape)).encode())
        digest.update(raw_bytes(tensor).numpy().tobytes())
    return digest.hexdigest()
