"""Bound the smoothed mean of a score in [0, 1] everywhere near an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradood.arguments import checked
from gradood.smoothing.bounds import binomial, mean
from gradood.smoothing.bounds.histogram import default_edges
from gradood.smoothing.counting import count_unit
from gradood.smoothing.evidence import Evidence, JsonObject, Run, check_radii, compact
from gradood.smoothing.inference import Score
from gradood.smoothing.noise import ESTIMATION
from gradood.smoothing.settings import Smoothing


@dataclass(frozen=True)
class MeanCertificates:
    """For each of N inputs and R radii, bounds of the smoothed mean within that radius.

    Attributes:
        lower: Float64 ``[N, R]``.
        upper: Float64 ``[N, R]``.
        radius: Float64 ``[R]``, l2, in units of the input.
        samples: Int64 ``[N]``, samples used.
        evidence: What was counted; ``evidence.write(path)`` writes it for others to check.
    """

    lower: Tensor
    upper: Tensor
    radius: Tensor
    samples: Tensor
    evidence: Evidence


@checked
def certify_mean(
    score: Score,
    x: Tensor,
    settings: Smoothing,
    *,
    radius: float | Sequence[float] | Tensor = 0.0,
    ids: Sequence[int] | Tensor | None = None,
    state: str | Path | None = None,
    more: int | None = None,
) -> MeanCertificates:
    """Bound ``E score(x + delta + sigma Z)`` for every ``|delta|_2 <= radius``.

    With ``S(t) = P(score(x + sigma Z) > t)`` the largest mean within r is at most ``integral_0^1
    Phi(Phi^-1(S(t)) + r / sigma) dt`` (Kumar et al., "Certifying confidence via randomized
    smoothing", 2020, arXiv 2009.08061). Bounds of that from n samples: see ``bounds.mean``, whose
    coins are those of the seed and the number of the input. Each interval, for one input and one
    radius, holds with probability 1 - alpha.

    The certificate is about the smoothed score. Scores are counted in a histogram that is rounded
    to the safe side by at most 1/4096; a score that is NaN counts as 1 above and as 0 below.

    Args:
        score: ``[T, ...] -> [T]`` in [0, 1].
        x: ``[N, ...]``, finite.
        settings: Noise, confidence and precision.
        radius: One l2 radius or several, in units of the input.
        ids: As for ``certify_quantile``.
        state: As for ``certify_quantile``.
        more: As for ``certify_quantile``.

    Raises:
        InputError: An argument is wrong, or a score lies outside [0, 1].
        ModelError: The score's result is not ``[T]``, or weights changed on the way.
        CheckpointError: ``state`` belongs to another run.
    """
    target = {"radius": check_radii(radius)}
    run = Run("mean", score, x, settings, target, ids, state, more)
    edges = default_edges()
    counter = partial(count_unit, edges=torch.from_numpy(edges))
    run.sampler.run(run.main, counter, run.n, ESTIMATION)
    parts = [compact(count, edges) for count in run.main.counts]
    evidence = run.evidence(
        [{"edges": edges, "counts": counts} for edges, counts in parts], certificate_from
    )
    bounds = evidence.columns("lower", "upper", each_radius=True)
    return MeanCertificates(
        **bounds, radius=evidence.radii, samples=evidence.samples, evidence=evidence
    )


def certificate_from(common: JsonObject, row: JsonObject) -> JsonObject:
    """The bounds of one input, from its counts."""
    settings = common["settings"]
    c = np.array(common["target"]["radius"]) / settings["sigma"]
    arguments = row["counts"], row["edges"], c, settings["alpha"] / 2
    seed = (settings["seed"] + row["id"]) % 2**32
    # S + slack bounds the true survival function, and shift(S + slack) <= shift(S) + shift(slack),
    # for shift is concave and 0 at 0.
    room = binomial.shift(row["slack"], c)
    bound: mean.Bound = mean.default
    if common["anytime"]:
        bound = partial(mean.always, planned=settings["n"])
    below = np.maximum(mean.lower(*arguments, bound, seed) - room, 0)
    above = np.minimum(mean.upper(*arguments, bound, seed) + room, 1)
    return {"lower": below.tolist(), "upper": above.tolist()}
