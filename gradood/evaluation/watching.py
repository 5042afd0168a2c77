"""A sequential test of whether the rate of alarms has risen, valid after every score."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import betaln
from scipy.stats import beta

from gradood.arguments import checked, number_between
from gradood.arrays import Bools, Floats
from gradood.detectors.threshold import Calibration
from gradood.errors import InputError

#: Alternative rates to bet on, in multiples of the normal rate.
_FACTORS = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
#: The capital is clipped here, so that it does not overflow.
_MOST = 1e280


@checked
class AlarmRateTest:
    """Bets that a rate has risen above ``rate``; a capital of ``1 / alpha`` proves it.

    With alarms a_1, a_2 … of 0 or 1, for every alternative rate q and every beginning j of the
    rise, the capital of a player who has bet on both since j is

        K[q, j] = product over i = j … t of (q / rate if a_i else (1 - q) / (1 - rate)).

    While the conditional rate of alarms, whatever came before, is at most ``rate``, each is a
    supermartingale, and so is the mean over alternatives and, with weights w_j that sum to 1, over
    beginnings: ``M_t = mean_q sum_{j <= t} w_j K[q, j] + sum_{j > t} w_j``. By Ville's inequality
    ``P(M_t >= 1 / alpha for any t) <= alpha``: the test may be read after every alarm, and stopped
    or gone on with as one likes. Sums over j take constant time, ``S_t[q] = (S_{t-1}[q] + w_t)
    K[q, t]``, with ``w_t = 1 / (1 + ln t) - 1 / (1 + ln(t + 1))``, so that a rise after t normal
    scores costs a factor of about t (1 + ln t)^2.

    Alarms need neither be independent nor of one distribution. Sources: Ville, 1939; Shafer and
    Vovk, Game-Theoretic Foundations for Probability and Finance, 2019; Shin, Ramdas and Rinaldo,
    E-detectors, 2022 (arXiv 2203.03532), whose sum over beginnings this weights.

    Args:
        rate: Largest rate of alarms that is normal, in (0, 1).
        alpha: Probability of ever calling a normal rate risen.
        streams: How many streams are tested side by side.

    Attributes:
        seen: Scores so far.
        alarms: Alarms among them, ``[streams]``.
        risen_at: Number of the score after which the capital first reached ``1 / alpha``, or 0,
            ``[streams]``.

    Raises:
        InputError: ``rate`` or ``alpha`` lies outside (0, 1).

    Example:
        >>> test = AlarmRateTest(rate=0.05, alpha=0.01)
        >>> for alarm in [False] * 500 + [True, False] * 50:
        ...     test.update(alarm)
        >>> bool(test.risen), int(test.risen_at)
        (True, 517)
    """

    def __init__(self, rate: float, alpha: float = 0.01, streams: tuple[int, ...] = ()) -> None:
        self.rate, self.alpha = number_between("rate", rate), number_between("alpha", alpha)
        # The largest bets stay below 1: half way there, where a multiple of the rate does not.
        rates = [factor * rate for factor in _FACTORS if factor * rate < (1 + rate) / 2]
        alternatives = np.array([*rates, (1 + rate) / 2])
        self._if_alarm = alternatives / rate
        self._if_none = (1 - alternatives) / (1 - rate)
        self._capital = np.zeros((*streams, len(alternatives)))
        self.seen = 0
        self.alarms = np.zeros(streams, np.int64)
        self.risen_at = np.zeros(streams, np.int64)

    def update(self, alarm: npt.ArrayLike) -> None:
        """Take note of one more score of every stream: was it above the threshold?"""
        alarm = np.asarray(alarm, bool)
        self.seen += 1
        weight = _left(self.seen) - _left(self.seen + 1)
        self._capital += weight
        self._capital *= np.where(alarm[..., None], self._if_alarm, self._if_none)
        np.minimum(self._capital, _MOST, out=self._capital)
        self.alarms = self.alarms + alarm
        new = (self.capital >= 1 / self.alpha) & (self.risen_at == 0)
        self.risen_at = np.where(new, self.seen, self.risen_at)

    @property
    def capital(self) -> Floats:
        """M_t, ``[streams]``: 1 at first; how strongly the alarms speak against ``rate``."""
        found: Floats = self._capital.mean(-1) + _left(self.seen + 1)
        return found

    @property
    def risen(self) -> Bools:
        """Whether the rate was found to have risen at any time so far, ``[streams]``."""
        return self.risen_at > 0

    def state(self) -> dict[str, Any]:
        """What ``restored`` goes on from, as JSON values; of one stream."""
        return {
            "rate": self.rate,
            "alpha": self.alpha,
            "seen": self.seen,
            "alarms": int(self.alarms),
            "risen_at": int(self.risen_at),
            "capital": self._capital.tolist(),
        }

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> AlarmRateTest:
        """The test that had this ``state``.

        Raises:
            InputError: It is no such state.
        """
        try:
            test = cls(state["rate"], state["alpha"])
            capital = np.array(state["capital"], np.float64)
            if capital.shape != test._capital.shape or not np.all(capital >= 0):
                raise ValueError("the capital is not that of this test")
            test.seen, test._capital = int(state["seen"]), capital
            test.alarms = np.array(int(state["alarms"]))
            test.risen_at = np.array(int(state["risen_at"]))
        except (LookupError, TypeError, ValueError) as error:
            raise InputError(f"this is no state of gradood watch ({error})") from error
        return test


def rate_interval(alarms: int, seen: int, alpha: float = 0.01) -> tuple[float, float]:
    """A confidence sequence for a rate that is constant: right at all times, but for ``alpha``.

    All p with ``B(k + 1/2, n - k + 1/2) / B(1/2, 1/2) < p^k (1 - p)^(n - k) / alpha``, of k alarms
    among n scores: the capital of bets on every other rate (Robbins, 1970) is below ``1 / alpha``.

    Returns:
        Lower and upper limit.
    """
    if seen == 0:
        return 0.0, 1.0
    gained = betaln(alarms + 0.5, seen - alarms + 0.5) - betaln(0.5, 0.5) + math.log(alpha)
    share = alarms / seen

    def excess(p: float) -> float:
        lost = alarms * math.log(p) if alarms else 0.0
        lost += (seen - alarms) * math.log1p(-p) if alarms < seen else 0.0
        return float(gained - lost)

    tiny = 1e-300
    low = brentq(excess, tiny, share) if alarms and excess(tiny) > 0 else 0.0
    high = brentq(excess, share or tiny, 1 - 1e-16) if alarms < seen else 1.0
    return float(low), float(high)


def calibrated_rate(calibration: Calibration, alpha: float) -> float:
    """The rate of alarms that a threshold keeps with probability ``1 - alpha``.

    A threshold that is the k-th smallest of n normal scores keeps the rate of alarms below ``fpr``
    on average over the draw of these n. For one draw the rate is Beta(n + 1 - k, k) distributed, or
    smaller where scores are tied; this is that distribution's upper quantile.
    """
    above = math.floor((calibration.inputs + 1) * calibration.fpr)  # as conservative_threshold
    return float(beta.isf(alpha, above, calibration.inputs + 1 - above))


def _left(first: int) -> float:
    """The weight of all beginnings from ``first`` on."""
    return 1 / (1 + math.log(first))
