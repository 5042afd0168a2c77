"""Run entries and write one JSON line a row; a run goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.suites import models, modules, neighbours, operators
from tests.suites.entry import Entry
from tests.suites.judge import Row, judge

SUITES: dict[str, Callable[[], list[Entry]]] = {
    "modules": modules.entries,
    "operators": operators.entries,
    "neighbours": neighbours.entries,
    "models": models.entries,
}
#: What a line says that closes an entry.
END = "end"


def main() -> None:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description=__doc__)
    parser.add_argument("command", choices=["run"])
    parser.add_argument("suites", nargs="+", choices=list(SUITES))
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    parser.add_argument("--only", default="*", help="a pattern of entries")
    parser.add_argument("--shard", default="0/1", help="i/n: every n-th entry from the i-th")
    options = parser.parse_args()
    first, of = map(int, options.shard.split("/"))
    done = set()
    if options.out.exists():
        done = {r["entry"] for r in map(json.loads, options.out.open()) if r["case"] == END}
    chosen = [e for suite in options.suites for e in SUITES[suite]()]
    chosen = [e for e in chosen if fnmatchcase(e.id, options.only)][first::of]
    with options.out.open("a") as out:
        for entry in chosen:
            if entry.id not in done:
                start = time.monotonic()
                for row in rows(entry):
                    print(json.dumps(row.as_dict()), file=out, flush=True)
                    if not row.right:
                        print(row.name, row.outcome, row.reason, flush=True)
                took = round(time.monotonic() - start, 2)
                end = {"entry": entry.id, "case": END, "seconds": took}
                print(json.dumps(end), file=out, flush=True)


def rows(entry: Entry) -> Iterator[Row]:
    """Judge every case of an entry; cases that cannot be built are a row as well."""
    return isolated(entry) if entry.seconds else here(entry)


def here(entry: Entry) -> Iterator[Row]:
    """In this process."""
    cases = entry.cases()
    while True:
        try:
            case = next(cases)
        except StopIteration:
            return
        except Exception as error:
            reason = f"it cannot be made: {type(error).__name__}: {str(error).strip()[:150]}"
            yield Row(entry.suite, entry.name, "", "no oracle", reason)
            return
        row = Row(entry.suite, entry.name, case.name)
        yield judge(row, case.model, case.x, entry.seconds or 60)


def isolated(entry: Entry) -> Iterator[Row]:
    """In a process of its own, which may crash, or be stopped when its time is over."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.suites.preload"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(entry.suite, entry.name, sender))
    process.start()
    sender.close()
    end = time.monotonic() + entry.seconds
    try:
        while receiver.poll(max(0.0, end - time.monotonic())):
            row = receiver.recv()
            if row is None:
                return
            yield row
        reason = f"more than {entry.seconds} s"
        yield Row(entry.suite, entry.name, "", "time limit", reason)
    except EOFError:
        process.join()
        yield Row(entry.suite, entry.name, "", "crash", f"exit status {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _send(suite: str, name: str, sender: Any) -> None:
    (entry,) = (e for e in SUITES[suite]() if e.name == name)
    for row in here(entry):
        sender.send(row)
    sender.send(None)
