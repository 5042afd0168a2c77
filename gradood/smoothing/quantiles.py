"""Bound a smoothed quantile of any real score everywhere near an input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gradood.arguments import checked, number_between
from gradood.arrays import Floats
from gradood.smoothing.bounds import binomial, quantile
from gradood.smoothing.counting import count_between, record
from gradood.smoothing.evidence import (
    Evidence,
    JsonObject,
    Run,
    check_radii,
    compact,
)
from gradood.smoothing.inference import Score
from gradood.smoothing.noise import ESTIMATION, SELECTION
from gradood.smoothing.settings import Smoothing

#: Number of edges of a histogram, and its range in spreads of the pilot scores.
_EDGES, _REACH = 2048, 1e4


@dataclass(frozen=True)
class QuantileCertificates:
    """For each of N inputs and R radii, bounds of the smoothed quantile within that radius.

    Attributes:
        lower: Float64 ``[N, R]``, -inf where n samples cannot bound it.
        upper: Float64 ``[N, R]``, +inf where n samples cannot bound it.
        radius: Float64 ``[R]``, l2, in units of the input.
        q: Which quantile.
        samples: Int64 ``[N]``, all samples used, those that chose the edges included.
        evidence: What was counted; ``evidence.write(path)`` writes it for others to check.
    """

    lower: Tensor
    upper: Tensor
    radius: Tensor
    q: float
    samples: Tensor
    evidence: Evidence


@checked
def certify_quantile(
    score: Score,
    x: Tensor,
    settings: Smoothing,
    *,
    radius: float | Sequence[float] | Tensor = 0.0,
    q: float = 0.5,
    ids: Sequence[int] | Tensor | None = None,
    state: str | Path | None = None,
    more: int | None = None,
) -> QuantileCertificates:
    """Bound the q-quantile of ``score(x + delta + sigma Z)`` for every ``|delta|_2 <= radius``.

    It lies between the quantiles ``Phi(Phi^-1(q) -+ r / sigma)`` at x itself (Chiang et al.,
    "Detection as regression: certified object detection by median smoothing", 2020, lemma 1),
    which two order statistics of n samples bound; see ``bounds.quantile``. Any real score will do,
    those of gradient detectors included: atoms and infinities are allowed, NaN counts as +inf above
    and as -inf below. Each interval, for one input and one radius, holds with probability
    1 - alpha. The median is bounded on both sides where ``r / sigma`` is at most about 1.4 / 2.4 /
    3.2 / 3.8 for n = 100 / 1k / 10k / 100k and the default alpha.

    The certificate is about the smoothed score. Scores are counted between 2048 edges, which
    ``n0`` samples of a stream of its own choose, and their scores are edges too; bounds are edges,
    rounded to the safe side by about 1 % of the spread of the scores. So memory does not depend on
    n.

    Args:
        score: A detector, or ``[T, ...] -> [T]``.
        x: ``[N, ...]``, finite.
        settings: Noise, confidence and precision.
        radius: One l2 radius or several, in units of the input.
        q: Which quantile; the median by default.
        ids: Numbers of the inputs, see ``Smoothing.seed``; their rows by default.
        state: File that keeps samples over interruptions; call again with it to go on.
        more: Draw so many further samples of each input, after those in ``state``, and give bounds
            that hold at all numbers of samples at once (``bounds.quantile``): look as often as you
            like, and go on until they please. They are tightest where n is the settings'. Without
            it n is fixed, and drawing again, or more, until a certificate is good enough makes its
            alpha worthless.

    Raises:
        InputError: An argument is wrong.
        NotFittedError: The detector is not fitted.
        ModelError: The score's result is not ``[T]``, or weights changed on the way.
        CheckpointError: ``state`` belongs to another run.
    """
    target = {"radius": check_radii(radius), "q": number_between("q", q)}
    run = Run("quantile", score, x, settings, target, ids, state, more)
    evidence = run.evidence(count_scores(run), certificate_from)
    bounds = evidence.columns("lower", "upper", each_radius=True)
    return QuantileCertificates(
        **bounds, radius=evidence.radii, q=q, samples=evidence.samples, evidence=evidence
    )


def certificate_from(common: JsonObject, row: JsonObject) -> JsonObject:
    """The bounds of one input, from its counts."""
    share = common["settings"]["alpha"] / 2
    below, above = bounds_of(common, row, common["target"]["q"], share)
    return {"lower": below.tolist(), "upper": above.tolist()}


def bounds_of(common: JsonObject, row: JsonObject, q: float, share: float) -> tuple[Floats, Floats]:
    """Lower and upper bounds of one quantile at each radius, each false with probability share."""
    c = np.array(common["target"]["radius"]) / common["settings"]["sigma"]
    n, counted = row["samples"], (row["counts"], np.array(row["edges"], np.float64))
    # The lemma's probabilities, widened by what the sampled ones may be off; no further shift.
    low = np.maximum(binomial.shift(q, -c) - row["slack"], 0)
    high = np.minimum(binomial.shift(q, c) + row["slack"], 1)
    if common["anytime"]:
        planned = common["settings"]["n"]
        ranks = (
            quantile.anytime_lower_rank(n, low, share, planned),
            quantile.anytime_upper_rank(n, high, share, planned),
        )
    else:
        ranks = quantile.lower_rank(n, low, 0.0, share), quantile.upper_rank(n, high, 0.0, share)
    below = quantile.lower_from_counts(*counted, ranks[0])
    return below, quantile.upper_from_counts(*counted, ranks[1])


def count_scores(run: Run) -> list[JsonObject]:
    """Draw all samples of scores, between edges that a pilot chooses."""
    n0 = run.settings.n0
    run.sampler.run(run.pilot, partial(record, n=n0), n0, SELECTION)
    edges = np.array([edges_from(pilot) for pilot in run.pilot.counts])
    counter = partial(count_between, edges=torch.from_numpy(edges))
    run.sampler.run(run.main, counter, run.n, ESTIMATION)
    parts = [compact(*pair) for pair in zip(run.main.counts, edges, strict=True)]
    return [{"edges": kept, "counts": counts} for kept, counts in parts]


def edges_from(pilot: Floats) -> Floats:
    """Ascending edges: dense around the pilot scores, and sparser away from them.

    ``median + spread sinh(u)`` for u on a uniform grid; the pilot scores themselves and their lower
    neighbours are edges too, so that atoms are bounded exactly.
    """
    finite = pilot[np.isfinite(pilot)]
    centre = float(np.median(finite)) if len(finite) else 0.0
    spread = 1e-3 * max(abs(centre), 1e-3)
    if len(finite):
        low, high = np.quantile(finite, [0.25, 0.75])
        spread = max((high - low) / 2, 1e-3 * float(np.ptp(finite)), 1e-6 * spread)
    u = np.linspace(-np.arcsinh(_REACH), np.arcsinh(_REACH), _EDGES)
    # As many edges for every input: scores that are missing repeat the centre.
    atoms = np.full(len(pilot), centre)
    atoms[: len(finite)] = finite
    return np.sort(
        np.concatenate([centre + spread * np.sinh(u), atoms, np.nextafter(atoms, -np.inf)])
    )
