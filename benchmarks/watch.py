"""``gradood watch``: false alarms over long streams, and the delay until a rise is found.

``python benchmarks/watch.py`` writes ``benchmarks/results/watch.csv``: for each normal rate, of
all streams in which it never rose, those it was ever said to have (at most alpha); for each time
of a rise and factor the number of scores until it was found.
"""

import argparse
import csv
import math
import time
from pathlib import Path

import numpy as np

from gradood.evaluation.watching import AlarmRateTest

RATES = (0.01, 0.05, 0.2)
ALPHA = 0.01
RESULTS = Path(__file__).parent / "results" / "watch.csv"

_ABOUT = """\
# `gradood watch`: false alarms and delays

Simulated streams of independent alarms, alpha {alpha}; `python benchmarks/watch.py`, 20 minutes on
one core beside other work; rows in [`watch.csv`](watch.csv).

While the rate stays what it was calibrated to, a share alpha of streams at most may ever be said to
have risen:

| normal rate | streams | scores each | said to have risen | allowed |
| ---: | ---: | ---: | ---: | ---: |
"""
_DELAYS = """
Where it rises, it takes so many scores from the rise on until that is proven: median of 200
streams (10 % to 90 %). The longer the rate was normal before, the longer it takes. Streams that
were said to rise before they did are left out.

| normal rate | rises | from the first score | after 1,000 | after 100,000 |
| ---: | --- | ---: | ---: | ---: |
"""


def false_alarms(rate, streams, scores, seed):
    test, random = AlarmRateTest(rate, ALPHA, (streams,)), np.random.default_rng(seed)
    for _ in range(scores):
        test.update(random.random(streams, np.float32) < rate)
    return int(test.risen.sum())


def delays(rate, factor, after, streams, seed):
    """Scores from the rise on until it was found; and how many streams said so before it."""
    test, random = AlarmRateTest(rate, ALPHA, (streams,)), np.random.default_rng(seed)
    for _ in range(after):
        test.update(random.random(streams, np.float32) < rate)
    early = int(test.risen.sum())
    while not test.risen.all() and test.seen < after + 100_000:
        test.update(random.random(streams, np.float32) < factor * rate)
    return test.risen_at[test.risen_at > after] - after, early


def page(rows):
    """The rows, as ``csv.DictReader`` gives them too, in words."""
    rows = [{name: value for name, value in row.items() if value != ""} for row in rows]
    normal = [row for row in rows if int(row["factor"]) == 1]
    lines = [*_ABOUT.format(alpha=ALPHA).splitlines()]
    for row in normal:
        lines.append(
            f"| {float(row['rate']):g} | {int(row['streams']):,} | {int(row['scores']):,} | "
            f"{int(row['risen'])} | {ALPHA * int(row['streams']):.0f} |"
        )
    lines += _DELAYS.splitlines()
    for rate in (row["rate"] for row in normal):
        for factor, words in ((2, "to twice"), (4, "to four times")):
            cells = [
                f"{float(r['delay']):,.0f} ({float(r['delay 10 %']):,.0f} to "
                f"{float(r['delay 90 %']):,.0f})"
                for r in rows
                if r["rate"] == rate and int(r["factor"]) == factor
            ]
            lines.append(f"| {float(rate):g} | {words} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--streams", type=int, default=10_000)
    parser.add_argument("--scores", type=int, default=100_000)
    parser.add_argument("--rates", type=float, nargs="*", default=RATES)
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    rows = []
    for rate in chosen.rates:
        begin = time.monotonic()
        count = false_alarms(rate, chosen.streams, chosen.scores, seed=0)
        allowed = ALPHA * chosen.streams
        allowed += 3 * math.sqrt(allowed * (1 - ALPHA))
        rows.append({"rate": rate, "factor": 1, "after": 0, "streams": chosen.streams,
                     "scores": chosen.scores, "risen": count})  # fmt: skip
        seconds = time.monotonic() - begin
        print(f"rate {rate}: {count} of {chosen.streams} false, {seconds:.0f} s", flush=True)
        assert count <= allowed, (rate, count)
        for factor in (2, 4):
            for after in (0, 1000, 100_000):
                found, early = delays(rate, factor, after, streams=200, seed=1)
                low, median, high = np.quantile(found, (0.1, 0.5, 0.9))
                rows.append({"rate": rate, "factor": factor, "after": after, "streams": 200,
                             "scores": "", "risen": len(found), "early": early, "delay 10 %": low,
                             "delay": median, "delay 90 %": high})  # fmt: skip
                print(f"  x {factor} after {after}: {low:.0f} {median:.0f} {high:.0f}", flush=True)
    chosen.out.with_suffix(".md").write_text(page(rows), encoding="utf-8")
    with open(chosen.out, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[-1]), restval="")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
