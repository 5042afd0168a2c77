"""The page on a stream that is watched: shares of alarms and the evidence against the rate."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gradood.evaluation.reports import figures
from gradood.evaluation.reports.html import facts, soft, tiles
from gradood.evaluation.reports.page import Page


def watch_page(
    now: Mapping[str, Any],
    history: Sequence[tuple[int, float, float, float]],
    renew: int | None = None,
) -> Page:
    """A page on how the test of an alarm rate stands.

    Args:
        now: "seen", "alarms", "unscored", "share", "interval", "recent", "rate", "capital",
            "needed", "risen" and "risen_at".
        history: For some of the scores their number, the share of alarms so far and recently, and
            the capital.
        renew: Seconds after which a browser loads the page again; None for never.
    """
    said = (
        f"The rate of alarms has risen: after {now['risen_at']:,} scores it was proven."
        if now["risen"]
        else "The rate of alarms has not been found to rise."
    )
    unscored = f"; {now['unscored']:,} inputs have none, and count as alarms"
    gained = now["capital"]
    page = Page("Watching the rate of alarms", said, renew=renew)
    low, high = now["interval"]
    page.add(
        tiles(
            [
                (f"{now['seen']:,}", f"scores{unscored if now['unscored'] else ''}"),
                (f"{now['share']:.2%}", f"alarms so far: {now['alarms']:,}"),
                (f"{now['recent']:.2%}", "alarms among the last 1,000"),
                (
                    f"{gained:.3g}" if gained < 1e6 else f"10^{np.log10(gained):.0f}",
                    f"evidence of a rise; {now['needed']:,.0f} prove it",
                ),
            ]
        )
    )
    seen, share, recent, capital = (np.array(column) for column in zip(*history, strict=True))
    shares = figures.curves(
        "alarms",
        {"recent": (seen, recent), "so far": (seen, share)},
        x="scores",
        y="share of alarms",
        level=("normal rate", now["rate"]),
        limits=False,
    )
    evidence = figures.curves(
        "evidence",
        {"evidence": (seen, np.log10(np.maximum(capital, 1e-12)))},
        x="scores",
        y="evidence, powers of ten",
        level=("proof", float(np.log10(now["needed"]))),
        limits=False,
    )
    page.section(
        "Alarms",
        page.plots([shares, evidence]),
        soft(
            "Evidence is the capital of a player who bets, from 1 on, that the rate has risen. "
            "While it has not, the capital ever reaches what proves a rise with the probability of "
            "error alone, however often one looks."
        ),
    )
    known = {
        "As of": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "Normal rate": f"{now['rate']:.4g}",
        "Rate, if it is constant": f"between {low:.4g} and {high:.4g}",
        "Probability of error": f"{1 / now['needed']:.3g} over all time",
    }
    page.section("How it stands", facts(known))
    return page
