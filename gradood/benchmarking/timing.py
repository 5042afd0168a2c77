"""Times that can be compared: methods take turns, so that what disturbs one disturbs all."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

#: A measurement calls a fast method until this many seconds have passed.
MINIMUM_SECONDS = 0.05


def take_turns(
    calls: Mapping[str, Callable[[], object]],
    rounds: Mapping[str, int],
    minimum: float = MINIMUM_SECONDS,
) -> dict[str, list[float]]:
    """Seconds a call of each of ``calls``, one entry a round: A B C, A B C, and so on.

    A method with fewer rounds than others takes part in the first ones. Every method must have run
    before, so that nothing is set up in its time.
    """
    repeats = {name: _repeats(call, minimum) for name, call in calls.items()}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.collect()
    gc.disable()
    try:
        for turn in range(max(rounds.values(), default=0)):
            for name, call in calls.items():
                if turn < rounds[name]:
                    seconds[name].append(_seconds(call, repeats[name]))
            gc.collect()
    finally:
        gc.enable()
    return seconds


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """Median over rounds of the ratio within a round: a machine that slows down cancels."""
    return statistics.median(a / b for a, b in zip(numerator, denominator, strict=False))


def percentile(seconds: Sequence[float], share: float) -> float:
    """The nearest-rank percentile: with ``share`` 0.5, the median of an odd number."""
    ordered = sorted(seconds)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def _repeats(call: Callable[[], object], minimum: float) -> int:
    return max(1, min(1000, math.ceil(minimum / max(_seconds(call, 1), 1e-9))))


def _seconds(call: Callable[[], object], repeats: int) -> float:
    begin = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - begin) / repeats
