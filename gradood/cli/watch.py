"""``gradood watch``: has the share of alarms in a stream of scores risen?"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from gradood.cli.report import check_folder
from gradood.errors import InputError
from gradood.writing import Output, write_file

if TYPE_CHECKING:
    from gradood.evaluation.watching import AlarmRateTest

#: Exit status where the rate of alarms has risen.
RISEN = 4
#: Seconds between two looks at a file that grows, and between two pages.
_LOOK, _PAGE = 0.2, 2.0
#: Scores of the recent share, and points of the figure.
_RECENT, _POINTS = 1000, 400


def watch(
    scores: Annotated[
        list[str],
        typer.Argument(
            help="Files of gradood score, in order; - for JSON lines on standard input.",
            show_default=False,
        ),
    ],
    detector: Annotated[
        Path | None, typer.Option(help="File of gradood fit: its threshold and its calibration.")
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Largest normal rate of alarms; the detector's if none.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="For scores without decisions; the detector's if none.")
    ] = None,
    alpha: Annotated[
        float, typer.Option(help="Probability of ever calling a normal rate risen.")
    ] = 0.01,
    every: Annotated[int, typer.Option(min=1, help="Scores between two JSON lines.")] = 1000,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for more at the end of the last file.")
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="End as soon as the rate has risen.")
    ] = False,
    state: Annotated[
        Path | None, typer.Option(help="File that carries the test over to the next call.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Folder for a page that renews itself while this runs.")
    ] = None,
) -> None:
    """Test, after every score, whether more inputs are called anomalous than when calibrated.

    The test errs with probability --alpha over all time, however often it is looked at. The normal
    rate is --rate, or what the detector's calibration proves with probability 1 - alpha / 2, the
    test then having the other half. Inputs without a score count as alarms. JSON lines on stdout.

    Exit status: 0; 4 if the rate has risen; 2 after an error.
    """
    from gradood.evaluation.watching import AlarmRateTest

    check_folder(page, "--page")
    normal, share, threshold = _normal_rate(detector, rate, threshold, alpha)
    with ExitStack() as stack:
        kept = stack.enter_context(Output(state)) if state is not None else None
        test = AlarmRateTest(normal, share)
        if state is not None and state.exists():
            test = _restored(state, test)
        watching = _Watching(test, page)
        try:
            for row in _rows(scores, follow):
                fresh = not test.risen
                watching.add(_is_alarm(row, threshold), row.get("score") is None)
                if fresh and test.risen:
                    watching.say("risen")
                elif test.seen % every == 0:
                    watching.say("watch")
                if stop and test.risen:
                    break
        except KeyboardInterrupt:
            pass  # ends --follow
        if not test.seen:
            raise InputError("there are no scores to watch")
        if kept is not None:
            kept.write(json.dumps(test.state()) + "\n")
        watching.say("done")
    if test.risen:
        raise typer.Exit(RISEN)


def _normal_rate(
    detector: Path | None, rate: float | None, threshold: float | None, alpha: float
) -> tuple[float, float, float | None]:
    """The rate to test against, the test's alpha, and the threshold if there is one."""
    from gradood.arguments import number_between
    from gradood.detectors.checkpoint import read_header
    from gradood.detectors.threshold import Calibration
    from gradood.evaluation.watching import calibrated_rate

    number_between("--alpha", alpha)
    if threshold is not None and math.isnan(threshold):
        raise InputError("--threshold nan: expected a number; no score would be above it")
    header = {} if detector is None else read_header(detector)
    if threshold is None:
        threshold = header.get("threshold")
    if rate is not None:
        return rate, alpha, threshold
    if not header.get("calibration"):
        raise InputError(
            "give --rate, or --detector with a file of gradood fit, which says how its threshold "
            "was calibrated"
        )
    return calibrated_rate(Calibration(**header["calibration"]), alpha / 2), alpha / 2, threshold


def _restored(path: Path, wanted: AlarmRateTest) -> AlarmRateTest:
    from gradood.evaluation.watching import AlarmRateTest

    try:
        found = AlarmRateTest.restored(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read --state {path}: {error}") from error
    if (found.rate, found.alpha) != (wanted.rate, wanted.alpha):
        raise InputError(
            f"--state {path} tests a rate of {found.rate:g} with alpha {found.alpha:g}, not "
            f"{wanted.rate:g} with {wanted.alpha:g}; take another file to begin again"
        )
    return found


def _rows(paths: list[str], follow: bool) -> Iterator[dict[str, Any]]:
    from gradood.scoring.rows import COLUMNS, is_parquet, parsed, read_rows

    for number, name in enumerate(paths):
        path, last = Path(name), number == len(paths) - 1
        if name == "-":
            yield from parsed(sys.stdin, "standard input")
        elif follow and last and not is_parquet(path):
            try:
                with open(path, encoding="utf-8") as file:
                    yield from parsed(_followed(file), name)
            except OSError as error:
                raise InputError(f"cannot read scores from {name}: {error.strerror}") from error
        else:
            yield from read_rows(path, COLUMNS)


def _followed(file: IO[str]) -> Iterator[str]:
    """Whole lines, as they come, until the program is interrupted."""
    begun = ""
    while True:
        line = file.readline()
        begun += line
        if begun.endswith("\n"):
            yield begun
            begun = ""
        elif not line:
            time.sleep(_LOOK)


def _is_alarm(row: dict[str, Any], threshold: float | None) -> bool:
    """Whether an input counts as an alarm; one without a score does."""
    score, decision = row.get("score"), row.get("decision")
    if score is None:
        return True
    if threshold is not None:
        return bool(score > threshold)
    if decision is None:
        raise InputError("the scores come without decisions; give --threshold, or --detector")
    return bool(decision == 1)


class _Watching:
    """The output of ``gradood watch``: JSON lines and a page."""

    def __init__(self, test: AlarmRateTest, page: Path | None) -> None:
        self._test, self._page = test, page
        self._unscored = 0
        self._recent: deque[bool] = deque(maxlen=_RECENT)
        self._history: list[tuple[int, float, float, float]] = []
        self._stride, self._drawn = 1, 0.0

    def add(self, alarm: bool, unscored: bool) -> None:
        """One more score."""
        test = self._test
        test.update(alarm)
        self._recent.append(alarm)
        self._unscored += unscored
        if test.seen % self._stride == 0:
            share, capital = int(test.alarms) / test.seen, float(test.capital)
            self._history.append((test.seen, share, self._share, capital))
        if len(self._history) > _POINTS:
            del self._history[::2]
            self._stride *= 2
        if self._page is not None and time.monotonic() - self._drawn > _PAGE:
            self._draw(renew=True)

    @property
    def _share(self) -> float:
        return sum(self._recent) / max(len(self._recent), 1)

    def facts(self) -> dict[str, Any]:
        """The state of the test."""
        from gradood.evaluation.watching import rate_interval

        test = self._test
        alarms = int(test.alarms)
        return {
            "seen": test.seen,
            "alarms": alarms,
            "unscored": self._unscored,
            "share": alarms / test.seen,
            "interval": rate_interval(alarms, test.seen, test.alpha),
            "recent": self._share,
            "rate": test.rate,
            "capital": float(test.capital),
            "needed": 1 / test.alpha,
            "risen": bool(test.risen),
            "risen_at": int(test.risen_at) or None,
        }

    def say(self, event: str) -> None:
        """One JSON line, and at the end or at a rise the page."""
        line = {"event": event, "time": round(time.time(), 3), **self.facts()}
        print(json.dumps(line), flush=True)
        if self._page is not None and event != "watch":
            self._draw(renew=event != "done")

    def _draw(self, renew: bool) -> None:
        from gradood.evaluation.reports.watching import watch_page

        assert self._page is not None
        content = str(watch_page(self.facts(), self._history, renew=2 if renew else None))
        write_file(self._page / "index.html", content)
        self._drawn = time.monotonic()
