"""From p-values to decisions about many inputs, with few false detections."""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
from scipy import special

from gradood.arguments import at_least, checked, number_between
from gradood.arrays import Bools, Floats, Ints
from gradood.errors import InputError
from gradood.evaluation.curves import Scores, as_numbers
from gradood.evaluation.guaranteed import check_noise
from gradood.smoothing.quantiles import QuantileCertificates


@checked
def control_fdr(
    p: Scores,
    *,
    level: float = 0.1,
    method: Literal["bh", "storey", "by"] = "bh",
    share: float = 0.5,
) -> Bools:
    r"""Call inputs anomalous so that at most a share ``level`` of the calls is false, on average.

    "bh" (Benjamini and Hochberg 1995): the k smallest p-values, k the largest with ``p_(k) <= level
    k / m``. "storey" (Storey 2002): the same at ``level / pi``, with the share of normal inputs
    ``pi = (1 + #{p > share}) / (m (1 - share))``, and no p above ``share`` is called. "by"
    (Benjamini and Yekutieli 2001): "bh" at ``level / (1 + 1/2 + ... + 1/m)``.

    Claim: E(false calls / calls, 0 where there are none) <= level. For conformal p-values by one
    calibration set, normal inputs being exchangeable with it and independent of one another, "bh"
    and "storey" hold (Bates et al. 2023, theorems 2 and 3: conformal p-values depend on one another
    positively). "by" holds for p-values that depend on one another in any way, such as
    ``worst_case_p_values``. The average is over calibration set and inputs.

    Args:
        p: ``[m]`` in [0, 1].
        level: In (0, 1).
        method: See above.
        share: Of "storey", in (0, 1).

    Returns:
        bool ``[m]``: called anomalous.

    Raises:
        InputError: An argument is none of that.

    Example:
        >>> from gradood.evaluation import control_fdr
        >>> control_fdr([0.01, 0.5, 0.02, 0.9], level=0.1)
        array([ True, False,  True, False])
    """
    values = _checked(p)
    level, share = number_between("level", level), number_between("share", share)
    m = len(values)
    if method == "by":
        level = level / float((1 / np.arange(1, m + 1)).sum() or 1)
    elif method == "storey":
        normal = (1 + np.count_nonzero(values > share)) / (max(m, 1) * (1 - share))
        level = level / normal
    ordered = np.sort(values)
    # p-values are fractions of n + 1: equality must not be lost to rounding.
    small = np.flatnonzero(ordered <= level * np.arange(1, m + 1) / max(m, 1) * (1 + 1e-12))
    limit = ordered[small[-1]] if len(small) else -1.0
    called: Bools = values <= (min(limit, share) if method == "storey" else limit)
    return called


@checked
def bound_false_discoveries(p: Scores, calibration: int, *, delta: float = 0.05) -> Ints:
    r"""For each input, how many of those with p-values up to its own are normal, at most.

    Claim: with probability at least ``1 - delta`` over calibration set and inputs, the bounds hold
    for all thresholds at once. So the threshold may be chosen after looking.
    Proof: of m0 <= m normal inputs, exchangeable with the n calibration ones, let V_k be the number
    with p <= k / (n + 1): without ties, those above the k-th largest calibration score; ties only
    make V_k smaller, and further normal inputs larger, so take m0 = m. All orders of n calibration
    and m normal scores are equally likely, hence P(V_k <= b_k for all k) is the share of lattice
    paths below a boundary, counted exactly, step by step. The boundary ``b_k = m q + l sqrt(m q (1
    - q) (n + 1 + m) / (n + 2) + 1)``, q = k / (n + 1), is mean and deviation of V_k; l is the
    smallest (to 1 / 64) for which that probability is at least 1 - delta. Between thresholds, V
    never falls, and grows by no more than the number of inputs. (The law is that of Polya's urn:
    Gazin, Blanchard, Roquain 2024, arXiv 2310.15825.)

    Args:
        p: ``[m]``, conformal p-values by one calibration set.
        calibration: N, the size of that set.
        delta: In (0, 1).

    Returns:
        int64 ``[m]``: divided by how many inputs have p-values up to this one, the largest share of
        false detections there.

    Raises:
        InputError: An argument is none of that.
    """
    values = _checked(p)
    at_least("calibration", calibration)
    number_between("delta", delta)
    m = len(values)
    if m == 0:
        return np.zeros(0, np.int64)
    limits = envelope(calibration, m, delta)
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    called = np.searchsorted(ordered, ordered, side="right")
    rank = np.clip(np.ceil(ordered * (calibration + 1) * (1 - 1e-12)), 1, calibration + 1)
    # V at a threshold is at most its limit, and at most an earlier bound and what came since.
    own = np.minimum(limits[rank.astype(np.int64) - 1], called)
    own = np.minimum.accumulate(own - called) + called
    result = np.empty(m, np.int64)
    result[order] = np.minimum.accumulate(own[::-1])[::-1]
    return result


@lru_cache(maxsize=64)
def envelope(n: int, m: int, delta: float) -> Ints:
    """``b_1 ... b_(n+1)`` of ``bound_false_discoveries``; the last one is m."""
    low, high = 0, 1
    while _stays_below(_boundary(n, m, high / 64), m) < 1 - delta:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = _stays_below(_boundary(n, m, middle / 64), m) >= 1 - delta
        low, high = (low, middle) if enough else (middle, high)
    return np.append(_boundary(n, m, high / 64), m)


def _boundary(n: int, m: int, deviations: float) -> Ints:
    q = np.arange(1, n + 1) / (n + 1)
    spread = np.sqrt(m * q * (1 - q) * (n + 1 + m) / (n + 2) + 1)
    limits = np.minimum(np.floor(m * q + deviations * spread), m)
    return np.maximum.accumulate(limits).astype(np.int64)


def _stays_below(limits: Ints, m: int) -> float:
    """P(V_k <= limits[k - 1] for all k): the share of lattice paths, all being equally likely.

    Paths to the k-th calibration score with V_k = v are those to the one before with at most v.
    """
    n = len(limits)
    paths, scale = np.zeros(m + 1), 0.0
    paths[0] = 1.0
    for limit in limits.tolist():
        paths = paths.cumsum()
        paths[limit + 1 :] = 0
        largest = paths[limit]
        paths /= largest
        scale += float(np.log(largest))
    all_paths = special.gammaln(n + m + 1) - special.gammaln(n + 1) - special.gammaln(m + 1)
    return float(np.exp(np.log(paths.sum()) + scale - all_paths))


@checked
def worst_case_p_values(calibration: QuantileCertificates, inputs: QuantileCertificates) -> Floats:
    r"""p-values of smoothed scores that hold for inputs moved by anyone within the radius.

    With upper bounds U_i of the smoothed scores of n normal inputs at radius 0, and the lower bound
    L of an input within the radius::

        p = (1 + #{U_i >= L}) / (n + 1) + alpha

    Claim: if the input lies within the radius of one that is exchangeable with the calibration
    inputs, ``P(p <= t) <= t`` for all t, whoever moved it, and whatever they knew but its noise.
    Proof: let x be where it was, and U(x) the bound that noise of its own would have given there.
    (U_1, ..., U_n, U(x)) are exchangeable, so p0 = (1 + #{U_i >= U(x)}) / (n + 1) is a p-value
    (``conformal_p_values``). L is at most the smoothed score of x but with probability alpha / 2,
    and U(x) is at least that but with probability alpha / 2; so L <= U(x), hence p - alpha >= p0,
    but with probability alpha: P(p <= t) <= P(p0 <= t - alpha) + alpha <= t.

    They depend on one another: for many inputs, ``control_fdr(..., method="by")``.

    Args:
        calibration: Of normal inputs that the score was not fitted on, at radius 0.
        inputs: With the same settings, and noise of their own.

    Returns:
        float64 ``[N, R]``, at most 1.

    Raises:
        InputError: Settings differ, radius 0 is missing, or inputs shared their noise.
    """
    ours, theirs = (part.evidence.common for part in (calibration, inputs))
    for name in ("settings", "tile", "shape", "model", "denoiser", "anytime"):
        mine, other = ours[name], theirs[name]
        if name == "settings":
            mine, other = ({**part, "seed": None} for part in (mine, other))
        if mine != other:
            raise InputError(f"calibration and inputs have other {name}; certify both alike")
    if calibration.q != inputs.q or 0 not in calibration.radius.tolist():
        raise InputError("calibration needs radius 0 and the same q as the inputs")
    check_noise(
        (calibration.evidence, inputs.evidence), (len(calibration.upper), len(inputs.lower))
    )
    column = calibration.radius.tolist().index(0.0)
    known = np.sort(calibration.upper[:, column].numpy())
    below = np.searchsorted(known, inputs.lower.numpy(), side="left")
    alpha = float(ours["settings"]["alpha"])
    p: Floats = np.minimum((1 + len(known) - below) / (len(known) + 1) + alpha, 1.0)
    return p


def _checked(p: Scores) -> Floats:
    values = as_numbers(p, "p")
    if values.ndim != 1 or not ((values >= 0) & (values <= 1)).all():
        raise InputError("p-values must be numbers in [0, 1], shape [m]")
    return values
