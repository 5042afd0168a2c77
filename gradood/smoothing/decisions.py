"""Certify the decision of a smoothed detector: anomalous, normal, or abstain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from scipy.special import ndtr, ndtri
from torch import Tensor

from gradood.arguments import checked, number_between
from gradood.arrays import Bools, Floats, Ints
from gradood.detectors import Detector
from gradood.errors import InputError
from gradood.smoothing.bounds import anytime, binomial, sequential
from gradood.smoothing.counting import count_above
from gradood.smoothing.evidence import Evidence, JsonObject, Run, check_goal
from gradood.smoothing.inference import Score
from gradood.smoothing.noise import ESTIMATION
from gradood.smoothing.settings import Smoothing


@dataclass(frozen=True)
class DecisionCertificates:
    """For each of N inputs, the decision of the smoothed detector and how far it reaches.

    Attributes:
        decision: Int64 ``[N]``: +1 anomalous, -1 normal, 0 abstain.
        radius: Float64 ``[N]``: the decision is the same within this l2 distance, in units of the
            input; 0 where it abstained.
        lower: Float64 ``[N]``, lower bound of P(score > threshold) under noise.
        upper: Float64 ``[N]``, upper bound of it.
        samples: Int64 ``[N]``, samples used.
        evidence: What was counted; ``evidence.write(path)`` writes it for others to check.
    """

    decision: Tensor
    radius: Tensor
    lower: Tensor
    upper: Tensor
    samples: Tensor
    evidence: Evidence


@checked
def certify_decision(
    score: Score,
    x: Tensor,
    settings: Smoothing,
    *,
    threshold: float | None = None,
    radius: float | Sequence[float] | Tensor | None = None,
    q: float = 0.5,
    ids: Sequence[int] | Tensor | None = None,
    state: str | Path | None = None,
    more: int | None = None,
) -> DecisionCertificates:
    """Certify "the q-quantile of score(x + sigma Z) is above the threshold", or that it is not.

    The quantile is above the threshold exactly if ``pi = P(score > threshold) > 1 - q``. For every
    perturbation of l2 size at most R the decision stays anomalous if ``R <= sigma (Phi^-1(pi) -
    Phi^-1(1 - q))``, and normal if ``R <= sigma (Phi^-1(1 - q) - Phi^-1(pi))``: Neyman and Pearson,
    as for a class (Cohen et al. 2019). Any real score will do, those of gradient detectors
    included; no score is stored. A score that is NaN counts against either claim.

    With ``radius`` (0 included): a sequential test for either side at alpha / 2, with a
    Clopper-Pearson bound after n samples at what the test has left of it, so that clear inputs take
    tens of samples. Several radii share the samples: the largest is given up to which all are
    proved, which takes nothing from alpha (see ``certify_class``). Without: the largest radius that
    n samples support, with bounds at alpha / 2 each.

    The certificate is about the smoothed detector. Its threshold is not that of the detector on
    clean inputs, which noise makes look anomalous: calibrate it on ``certify_quantile(score,
    normal, settings, radius=0.0, q=q).upper`` of normal inputs, say with
    ``conservative_threshold``.

    Args:
        score: A detector, or ``[T, ...] -> [T]``; higher = more anomalous.
        x: ``[N, ...]``, finite.
        settings: Noise, confidence and precision.
        threshold: Scores above it are anomalous; a detector's own by default.
        radius: The l2 radius that matters, or several, or None.
        q: Which quantile decides; the median by default.
        ids: As for ``certify_quantile``.
        state: As for ``certify_quantile``.
        more: As for ``certify_quantile``.

    Raises:
        InputError: An argument is wrong.
        NotFittedError: The detector is not fitted, or has no threshold and none is given.
        ModelError: The score's result is not ``[T]``, or weights changed on the way.
        CheckpointError: ``state`` belongs to another run.
    """
    if threshold is None:
        if not isinstance(score, Detector):
            raise InputError("give a threshold: only detectors have one of their own")
        threshold = score.threshold
    if math.isnan(threshold):
        raise InputError("threshold is NaN")
    target = {
        "threshold": threshold,
        "radius": check_goal(radius),
        "q": number_between("q", q),
    }
    run = Run("decision", score, x, settings, target, ids, state, more)
    stop = None
    if radius is not None:

        def stop(rows: Ints, counts: Ints, samples: Ints) -> Bools:
            answers = _answers(run.common, counts, samples, run.slack[rows])
            proved = _proved(answers)
            # What is out of reach for one radius is so for all larger ones.
            hopeless = np.logical_or.accumulate(answers == sequential.FUTILE, axis=1)
            clear = (proved | hopeless).all(1)
            return np.asarray((clear & proved[:, 0]).any(0) | clear.all(0))

    counter = partial(count_above, threshold=threshold)
    run.sampler.run(run.main, counter, run.n, ESTIMATION, stop)
    evidence = run.evidence(
        [{"counts": count} for count in run.main.counts.tolist()], certificate_from
    )
    columns = evidence.columns("decision", "radius", "lower", "upper")
    return DecisionCertificates(**columns, samples=evidence.samples, evidence=evidence)


def certificate_from(common: JsonObject, row: JsonObject) -> JsonObject:
    """The certificate of one input, from its counts."""
    settings, target = common["settings"], common["target"]
    sigma, alpha, n = settings["sigma"], settings["alpha"], row["samples"]
    above, missing = row["counts"]
    slack = row["slack"]
    if target["radius"] is None:
        if common["anytime"]:
            low = anytime.lower(above, n, alpha / 2, settings["n"])
            high = anytime.upper(above + missing, n, alpha / 2, settings["n"])
        else:
            low = binomial.lower(above, n, alpha / 2)
            high = binomial.upper(above + missing, n, alpha / 2)
        lower, upper = max(float(low) - slack, 0.0), min(float(high) + slack, 1.0)
        middle = ndtri(1 - target["q"])
        reach = sigma * (ndtri(lower) - middle), sigma * (middle - ndtri(upper))
        decision = int(reach[0] > 0) - int(reach[1] > 0)
        return _result(decision, float(max(*reach, 0.0)), lower, upper)
    answers = _answers(common, np.array([[above, missing]]), np.array([n]), np.array([slack]))
    anomalous, normal = _proved(answers)[..., 0].sum(1).tolist()
    radii, limits = np.atleast_1d(target["radius"]), _limits(common)
    if anomalous:
        return _result(1, float(radii[anomalous - 1]), float(limits[0][anomalous - 1]), 1.0)
    if normal:
        return _result(-1, float(radii[normal - 1]), 0.0, float(limits[1][normal - 1]))
    return _result(0, 0.0, 0.0, 1.0)


def _limits(common: JsonObject) -> tuple[Floats, Floats]:
    """For each radius, what P(score > threshold) must exceed for "anomalous", or not reach."""
    target = common["target"]
    middle = ndtri(1 - target["q"])
    c = np.atleast_1d(np.array(target["radius"], np.float64)) / common["settings"]["sigma"]
    return np.asarray(ndtr(middle + c)), np.asarray(ndtr(middle - c))


def _answers(common: JsonObject, counts: Ints, samples: Ints, slack: Floats) -> Ints:
    """Results of the tests for "anomalous" and for "normal" at each radius, ``[2, R, A]``."""
    settings = common["settings"]
    high, low = _limits(common)
    above, missing = counts.T
    # True probabilities are at most ``slack`` from the sampled ones; 1 can never be exceeded.
    limits = np.stack([high, 1 - low])[..., None] + slack
    return sequential.decide(
        np.stack([above, samples - above - missing])[:, None],
        samples,
        sequential.coarse(np.minimum(limits, 1 - 2.0**-40)),
        settings["alpha"] / 2,
        settings["futility"],
        settings["n"],
        common["tile"],
    )


def _proved(answers: Ints) -> Bools:
    """``[2, R, A]``: a radius counts only if all smaller ones do."""
    return np.logical_and.accumulate(answers == sequential.CERTIFY, axis=1)


def _result(decision: int, radius: float, lower: float, upper: float) -> JsonObject:
    return {"decision": decision, "radius": radius, "lower": lower, "upper": upper}
