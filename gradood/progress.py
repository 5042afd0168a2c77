"""The progress of long runs: a bar for people, or JSON lines for machines."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from types import TracebackType
from typing import IO, Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

_LOG = logging.getLogger("gradood")
#: Seconds between two JSON lines on progress.
_INTERVAL = 1.0
#: Points of a history, at most: every other one goes when there are more.
_MOST_POINTS = 128


_Sized = TypeVar("_Sized", bound=Sized)


def bar(*columns: ProgressColumn, show: bool | None = None) -> Progress:
    """A bar on stderr with a description, those columns and the time that is left.

    Args:
        *columns: Between bar and time; how many of how many without any.
        show: None shows it only where stderr is a terminal.
    """
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        *(columns or (MofNCompleteColumn(),)),
        TimeRemainingColumn(),
        console=console,
        transient=console.is_terminal,
        disable=not is_shown(show),
    )


def is_shown(show: bool | None) -> bool:
    """Whether to show a bar: as asked, or only on a terminal for None."""
    return sys.stderr.isatty() if show is None else show


def track(
    batches: Iterable[_Sized], description: str, show: bool | None, total: int | None = None
) -> Iterator[_Sized]:
    """Pass ``batches`` through, with a bar that counts their rows; ``show`` as in ``bar``."""
    if not is_shown(show):
        yield from batches
        return
    with bar(show=show) as progress:
        task = progress.add_task(description, total=total)
        for batch in batches:
            yield batch
            progress.advance(task, len(batch))


@dataclass(frozen=True)
class Throughput:
    """Inputs that one run was through with, and when.

    Attributes:
        inputs: How many.
        seconds: From the start, after the model was loaded, to the end.
        history: Seconds and inputs so far, at most 128 times.
    """

    inputs: int
    seconds: float
    history: tuple[tuple[float, int], ...] = ()

    @property
    def per_second(self) -> float:
        """Inputs a second."""
        return self.inputs / max(self.seconds, 1e-9)


class Reporter:
    """Counts inputs, and says how many a second, how long it will take and how much memory it uses.

    Messages of the logger "gradood" from WARNING on are shown as well.

    Args:
        description: Of what is done.
        total: Inputs in all, if known.
        done: Inputs done by an earlier run.
        as_json: One JSON object a line on stdout, instead of a bar on stderr.
    """

    def __init__(
        self, description: str, total: int | None, done: int = 0, as_json: bool = False
    ) -> None:
        self._description, self._total, self._done = description, total, done
        self._as_json = as_json
        self._begin = self._said = time.monotonic()
        self._begin_cpu = time.process_time()
        self._fresh = 0
        self._history: list[tuple[float, int]] = []
        self._stride = self._calls = 1
        self._handler: logging.Handler | None = None
        self._bar = bar(
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]:,.0f} inputs/s"),
            TextColumn("{task.fields[memory]:,.0f} MB"),
            show=False if as_json else None,
        )
        self._console = self._bar.console
        self._task = TaskID(0)

    def __enter__(self) -> Reporter:
        """Begin to show."""
        self._handler = _Messages(self)
        _LOG.addHandler(self._handler)
        self._bar.start()
        self._task = self._bar.add_task(
            self._description, total=self._total, completed=self._done, speed=0.0, memory=memory()
        )
        self.event("start", description=self._description, total=self._total, done=self._done)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop showing."""
        self._bar.stop()
        if self._handler is not None:
            _LOG.removeHandler(self._handler)

    def advance(self, count: int) -> None:
        """So many more inputs are done."""
        self._done += count
        self._fresh += count
        now = time.monotonic()
        self._remember(now - self._begin)
        speed = self._fresh / max(now - self._begin, 1e-9)
        if not self._bar.disable:
            self._bar.update(self._task, completed=self._done, speed=speed, memory=memory())
        elif self._as_json and now - self._said >= _INTERVAL:
            self._said = now
            left = None if self._total is None else max(0, self._total - self._done) / speed
            self.event("progress", done=self._done, total=self._total, per_second=round(speed, 1),
                       seconds_left=left and round(left, 1), memory_mb=round(memory()))  # fmt: skip

    def _remember(self, seconds: float) -> None:
        self._calls += 1
        if self._calls % self._stride == 0:
            self._history.append((seconds, self._fresh))
        if len(self._history) > _MOST_POINTS:
            del self._history[::2]
            self._stride *= 2

    @property
    def throughput(self) -> Throughput:
        """Of this run so far."""
        seconds = time.monotonic() - self._begin
        last = (
            []
            if self._history and self._history[-1][1] == self._fresh
            else [(seconds, self._fresh)]
        )
        return Throughput(self._fresh, seconds, (*self._history, *last))

    def event(self, name: str, **facts: Any) -> None:
        """Under JSON, one line; otherwise nothing."""
        if self._as_json:
            _write(sys.stdout, {"event": name, "time": round(time.time(), 3), **facts})

    def message(self, level: str, text: str) -> None:
        """A line of text above the bar, or a JSON line."""
        if self._as_json:
            self.event("log", level=level, message=text)
        else:
            self._console.print(text, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def done(self, **facts: Any) -> None:
        """The last JSON line: with the time that was taken, and that all threads computed."""
        seconds = round(time.monotonic() - self._begin, 3)
        cpu = round(time.process_time() - self._begin_cpu, 3)
        self.event("done", **facts, seconds=seconds, cpu_seconds=cpu, memory_mb=round(memory()))


class _Messages(logging.Handler):
    """Log records -> the reporter."""

    def __init__(self, reporter: Reporter) -> None:
        super().__init__(logging.WARNING)
        self._reporter = reporter

    def emit(self, record: logging.LogRecord) -> None:
        self._reporter.message(record.levelname.lower(), record.getMessage())


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def memory() -> float:
    """Megabytes that this process keeps in memory now, or at most so far where only that is known.

    0 where neither is.
    """
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except (OSError, ValueError, IndexError):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 1e6 if sys.platform == "darwin" else largest / 1e3


def _write(stream: IO[str], facts: dict[str, Any]) -> None:
    print(json.dumps(facts), file=stream, flush=True)
