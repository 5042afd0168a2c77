"""Certify that a smoothed classifier gives one class to everything near an input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri
from torch import Tensor

from gradood.arguments import checked
from gradood.arrays import Bools, Floats, Ints
from gradood.smoothing.bounds import anytime, binomial, sequential
from gradood.smoothing.counting import count_classes
from gradood.smoothing.evidence import Evidence, JsonObject, Run, check_goal
from gradood.smoothing.noise import ESTIMATION, SELECTION
from gradood.smoothing.settings import Smoothing

#: Looks of a sequential test over which the settings' futility is divided.
_LOOKS = 20


@dataclass(frozen=True)
class ClassCertificates:
    """For each of N inputs, the class of the smoothed classifier and how far it reaches.

    Attributes:
        label: Int64 ``[N]``, the class chosen on samples of its own.
        radius: Float64 ``[N]``: within this l2 distance, in units of the input, the smoothed
            classifier gives ``label``; 0 where it abstained.
        abstained: Bool ``[N]``: nothing is certified.
        lower: Float64 ``[N]``, lower bound of the probability of ``label`` under noise.
        upper: Float64 ``[N]``, upper bound of that of any other class.
        samples: Int64 ``[N]``, all samples used, those of the choice included.
        evidence: What was counted; ``evidence.write(path)`` writes it for others to check.
    """

    label: Tensor
    radius: Tensor
    abstained: Tensor
    lower: Tensor
    upper: Tensor
    samples: Tensor
    evidence: Evidence


@checked
def certify_class(
    model: Callable[[Tensor], Any],
    x: Tensor,
    settings: Smoothing,
    *,
    radius: float | Sequence[float] | Tensor | None = None,
    ids: Sequence[int] | Tensor | None = None,
    state: str | Path | None = None,
    more: int | None = None,
) -> ClassCertificates:
    """Certify the class ``argmax_c P(model(x + sigma Z) = c)`` in an l2 ball about each input.

    ``R = sigma / 2 (Phi^-1(lower) - Phi^-1(upper))``, where with probability 1 - alpha ``lower`` is
    at most the probability of the class and ``upper`` at least that of every other one (Cohen,
    Rosenfeld, Kolter, "Certified adversarial robustness via randomized smoothing", 2019, theorem
    1). The class is chosen on ``n0`` samples of a stream of its own.

    Without ``radius``: Clopper-Pearson bounds after n samples, at alpha / 2 each. One bound of the
    largest other count serves all classes: it is at least that of the true runner-up, whichever
    this is, and the bound is monotone.

    With ``radius``: sampling stops as soon as it is clear whether that radius can be certified,
    which takes tens of samples where it is clear. A sequential test (``bounds.sequential``) of
    ``P(class) > a`` and, if the choice saw more than two classes, ``P(other) < b``, with
    ``Phi^-1(a) - Phi^-1(b) = 2 radius / sigma`` set halfway between what the choice saw; each at
    alpha / 2 then. Inputs still open after n samples get Clopper-Pearson bounds at what the tests
    have left of alpha. Several radii share the samples: the largest is given up to which all are
    proved. That takes nothing from alpha: if it is false, so is the smallest one beyond the truth,
    whose test is one of those that were passed.

    The certificate is about the smoothed model, not the model; see ``Smoothing`` for what it is
    made of. alpha is for each input: of N certificates, about alpha N may be false.

    Args:
        model: A module, or a function, ``[T, ...] -> logits [T, C]``. Logits that hold NaN or
            Inf count as one more class.
        x: ``[N, ...]``, finite.
        settings: Noise, confidence and precision.
        radius: The l2 radius that matters, or several, or None for the largest that n samples
            support.
        ids: As for ``certify_quantile``.
        state: As for ``certify_quantile``.
        more: As for ``certify_quantile``.

    Returns:
        Labels, radii, bounds and exact numbers of samples.

    Raises:
        InputError: An argument is wrong.
        ModelError: The model's result is not ``[T, C]``, batch statistics are in use, or weights
            changed on the way.
        CheckpointError: ``state`` belongs to another run.

    Example:
        >>> from gradood.data import embedded_classifier, embedded_images
        >>> smoothing = Smoothing(sigma=0.1, n=200)
        >>> images = embedded_images("fashion-mnist")[:2]
        >>> certify_class(embedded_classifier(), images, smoothing, radius=0.05).label.shape
        torch.Size([2])
    """
    target = {"radius": check_goal(radius)}
    run = Run("class", model, x, settings, target, ids, state, more)
    run.sampler.run(run.pilot, count_classes, settings.n0, SELECTION)
    pilot = run.pilot.counts
    stop = None
    if radius is not None and len(x):
        claims = _claims(pilot, run.common)

        def stop(rows: Ints, counts: Ints, samples: Ints) -> Bools:
            return _clear(claims.of(rows), counts, samples, run.slack[rows], run.common)

    run.sampler.run(run.main, count_classes, run.n, ESTIMATION, stop)
    counts = zip(run.main.counts.tolist(), pilot.tolist(), strict=True)
    evidence = run.evidence(
        [{"counts": count, "pilot": first} for count, first in counts], certificate_from
    )
    columns = evidence.columns("label", "radius", "abstained", "lower", "upper")
    return ClassCertificates(**columns, samples=evidence.samples, evidence=evidence)


def certificate_from(common: JsonObject, row: JsonObject) -> JsonObject:
    """The certificate of one input, from its counts."""
    if common["target"]["radius"] is not None:
        return _at_radii(common, row)
    counts, alpha, n = np.array([row["counts"]]), common["settings"]["alpha"], row["samples"]
    label = np.array([row["pilot"]])[:, :-1].argmax(1)
    hits, others = (int(votes[0]) for votes in _votes(label, counts))
    if common["anytime"]:
        planned = common["settings"]["n"]
        bounds = (
            anytime.lower(hits, n, alpha / 2, planned),
            anytime.upper(others, n, alpha / 2, planned),
        )
    else:
        bounds = binomial.lower(hits, n, alpha / 2), binomial.upper(others, n, alpha / 2)
    return _from_bounds(int(label[0]), *bounds, row["slack"], common, 0.0)


def _at_radii(common: JsonObject, row: JsonObject) -> JsonObject:
    """The largest radius up to which all that were asked for are proved."""
    counts, n = np.array([row["counts"]]), np.array([row["samples"]])
    slack = np.array([row["slack"]])
    claims = _claims(np.array([row["pilot"]]), common)
    label, two_sided = int(claims.label[0]), bool(claims.two_sided[0])
    radii, settings = _radii(common), common["settings"]
    proved = int(_proved(claims, counts, n, slack, common)[:, 0].sum())
    found = _result(label, 0.0, 0.0, 1.0, True)
    if proved:
        lower, upper = (float(side[proved - 1, 0]) for side in (claims.lower, claims.upper))
        found = _result(label, float(radii[proved - 1]), lower, upper, False)
    if n[0] < settings["n"] or proved == len(radii):
        return found
    # By what the tests on the way have left: of several radii the least, so that one pair of bounds
    # serves all.
    hits, others = (int(votes[0]) for votes in _votes(claims.label, counts))
    share = settings["alpha"] / (2 if two_sided else 1)
    low, high = (
        min(sequential.left(goal, share, settings["n"], common["tile"]) for goal in side.tolist())
        for side in _goals(claims, slack)[..., 0]
    )
    bounds = binomial.lower(hits, n[0], low), binomial.upper(others, n[0], high)
    if not two_sided:
        bounds = bounds[0], np.ones(())
    last = _from_bounds(label, *bounds, row["slack"], common, float(radii[proved]))
    return found if proved and last["abstained"] else last


def _from_bounds(
    label: int,
    lower: Floats | float,
    upper: Floats | float,
    slack: float,
    common: JsonObject,
    least: float,
) -> JsonObject:
    """The result for bounds of sampled probabilities; abstains for a radius below ``least``."""
    low = max(float(lower) - slack, 0.0)
    high = min(1 - low, float(upper) + slack)
    # 1 and 0 have infinite quantiles; no bound of a certificate reaches them.
    reach = float(common["settings"]["sigma"] / 2 * (ndtri(low) - ndtri(high)))
    enough = reach > 0 if common["target"]["radius"] is None else reach >= least
    return _result(label, reach if enough else 0.0, low, high, not enough)


class _Claims(NamedTuple):
    """The claims that sequential tests try to prove: P(label) > lower, P(any other) < upper.

    Bounds are ``[R, A]``, a row a radius.
    """

    label: Ints
    lower: Floats
    upper: Floats
    two_sided: Bools

    def of(self, rows: Ints) -> _Claims:
        """Those of some inputs."""
        label, lower, upper, two_sided = self
        return _Claims(label[rows], lower[:, rows], upper[:, rows], two_sided[rows])


def _radii(common: JsonObject) -> Floats:
    return np.atleast_1d(np.array(common["target"]["radius"], np.float64))


def _claims(pilot: Ints, common: JsonObject) -> _Claims:
    """Labels with most pilot votes, and two bounds that make ``c = radius / sigma`` for each."""
    label = pilot[:, :-1].argmax(1)
    hits, others = _votes(label, pilot)
    total = pilot.sum(1) + 1
    top, second = ndtri((hits + 0.5) / total), ndtri((others + 0.5) / total)
    # Otherwise there are practically two classes, and the first bound implies the second.
    two_sided = top + second <= -0.1
    c = _radii(common)[:, None] / common["settings"]["sigma"]
    # Halfway, rounded to eighths, so that few values need the exact calculation.
    middle = np.where(two_sided, np.round(4 * (top + second)) / 8, 0.0)
    return _Claims(label, ndtr(middle + c), ndtr(middle - c), two_sided)


def _votes(label: Ints, counts: Ints) -> tuple[Ints, Ints]:
    """Votes for the label, and the most for another class, NaN being one."""
    rows = np.arange(len(label))
    others = counts.copy()
    others[rows, label] = -1
    return counts[rows, label], others.max(1)


def _goals(claims: _Claims, slack: Floats) -> Floats:
    """``[2, R, A]``: thresholds of the sampled probabilities of the label, and of no other."""
    goals = np.stack([claims.lower, 1 - claims.upper]) + slack
    return sequential.coarse(np.minimum(goals, 1 - 2.0**-40))


def _proved(claims: _Claims, counts: Ints, n: Ints, slack: Floats, common: JsonObject) -> Bools:
    """``[R, A]``: claims about true probabilities, by tests of the sampled ones, ``slack`` away.

    A radius counts only if all smaller ones do.
    """
    settings = common["settings"]
    hits, others = _votes(claims.label, counts)
    answers = sequential.decide(
        np.stack([hits, n - others])[:, None],
        n,
        _goals(claims, slack),
        settings["alpha"] / np.where(claims.two_sided, 2, 1),
        0.0,
        settings["n"],
        common["tile"],
    )
    possible = np.stack([claims.lower, 1 - claims.upper]) + slack < 1 - 2.0**-40
    first, second = (answers == sequential.CERTIFY) & possible
    proved: Bools = np.logical_and.accumulate(first & (second | ~claims.two_sided), axis=0)
    return proved


def _clear(claims: _Claims, counts: Ints, n: Ints, slack: Floats, common: JsonObject) -> Bools:
    """Whether each radius is proved, or out of reach."""
    proved = _proved(claims, counts, n, slack, common)
    settings = common["settings"]
    if settings["futility"] == 0:
        return np.asarray(proved.all(0))
    hits, others = _votes(claims.label, counts)
    share = settings["futility"] / _LOOKS
    best = ndtri(binomial.upper(hits, n, share)) - ndtri(binomial.lower(others, n, share))
    futile = settings["sigma"] / 2 * best < _radii(common)[:, None]
    clear: Bools = (proved | futile).all(0)
    return clear


def _result(label: int, radius: float, lower: float, upper: float, abstained: bool) -> JsonObject:
    return {
        "label": label,
        "radius": radius,
        "abstained": abstained,
        "lower": lower,
        "upper": upper,
    }
