"""Run entries, one JSON line a row, and count the rows."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
import warnings
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tests.suites import backpack, models, modules, opacus, operators, table
from tests.suites.entry import Entry
from tests.suites.judge import Row, judge

SUITES: dict[str, Callable[[], list[Entry]]] = {
    "modules": modules.entries,
    "operators": operators.entries,
    "opacus": opacus.entries,
    "backpack": backpack.entries,
    "torchvision": models.of_torchvision,
    "transformers": models.of_transformers,
    "timm": models.of_timm,
}


def main() -> None:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="python -m tests.suites", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="judge every row; what the file holds is not run again")
    run.add_argument("suites", nargs="*", default=list(SUITES), help=", ".join(SUITES))
    run.add_argument("--out", type=Path, required=True, help="JSON lines, appended to")
    run.add_argument("--only", default="*", help="a pattern of suite/entry")
    run.add_argument("--shard", default="0/1", help="i/n: every n-th entry from the i-th")
    count = commands.add_parser("table", help="print the counts as a page")
    count.add_argument("files", type=Path, nargs="+")
    options = parser.parse_args()
    if options.command == "table":
        print(table.page([json.loads(line) for f in options.files for line in f.open()]))
        return
    first, of = map(int, options.shard.split("/"))
    chosen = [e for suite in options.suites for e in SUITES[suite]()]
    run_all([e for e in chosen if fnmatchcase(e.id, options.only)][first::of], options.out)


def run_all(entries: list[Entry], path: Path) -> None:
    """Append every row of every entry that the file does not hold yet; print those at fault."""
    lines = list(map(json.loads, path.open())) if path.exists() else []
    done = {line["entry"] for line in lines if line["case"] == table.END}
    with path.open("a") as out:
        for entry in entries:
            if entry.id in done:
                continue
            start = time.monotonic()
            for row in rows(entry):
                print(json.dumps(row.as_dict()), file=out, flush=True)
                if not row.right:
                    print(row.name, row.outcome, row.reason, flush=True)
            took = round(time.monotonic() - start, 2)
            end = {"entry": entry.id, "case": table.END, "seconds": took}
            print(json.dumps(end), file=out, flush=True)


def rows(entry: Entry) -> Iterator[Row]:
    """Judge every case of an entry; cases that cannot be built are a row as well."""
    return isolated(entry) if entry.seconds else here(entry)


def here(entry: Entry) -> Iterator[Row]:
    """In this process."""
    cases = entry.cases()
    while True:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                case = next(cases)
        except StopIteration:
            return
        except Exception as error:
            reason = f"it cannot be made: {type(error).__name__}: {str(error).strip()[:150]}"
            yield Row(entry.suite, entry.name, "", "no oracle", reason)
            return
        row = Row(entry.suite, entry.name, case.name)
        alone = case.name.endswith("float32")
        yield judge(row, case.model, case.x, entry.seconds or 60, alone)


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
