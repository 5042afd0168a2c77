"""Items that run in a process of their own, which is started again after one that breaks it.

A kernel may end its process, never return, or leave the GPU's context of no use for whatever
follows: one such item hides no other.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from gradood.ops.dispatch import told

#: Seconds that a process may take to begin, and for one item.
STARTING, PATIENCE = 300, 300
#: Exit status of a process whose GPU context is of no more use.
_BROKEN = 3

Item = Callable[[], Iterator[dict[str, Any]]]


class Found(NamedTuple):
    """Something that an item found, or why it found no more."""

    item: str
    content: dict[str, Any] | None
    reason: str = ""


def run_items(names: Sequence[str], todo: Mapping[str, Item], say: Callable[[str], None]) -> int:
    """Run items one after the other; say a line of JSON for each begin, find, failure and the end.

    Returns the exit status of a process that ran them: a GPU context may be broken for good.
    """
    for name in names:
        say(json.dumps({"begin": name}))
        try:
            for content in todo[name]():
                say(json.dumps({"found": content}))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        except Exception as error:  # of any kind: the report says which
            say(json.dumps({"failed": told(error)}))
            if torch.cuda.is_available() and not _works():
                return _BROKEN
    say(json.dumps({"end": True}))
    return 0


def isolated(names: Sequence[str], command: Sequence[str]) -> Iterator[Found]:
    """Run ``command`` with the names of items, again after each that ends its process."""
    left = list(names)
    while left:
        begun, status, last = "", 0, ""
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                [*command, *left], stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            alarm = _alarm(process, STARTING)
            try:
                for line in process.stdout or ():
                    said = _read(line)
                    if "begin" in said:
                        alarm.cancel()
                        alarm = _alarm(process, PATIENCE)
                        begun = said["begin"]
                        left = left[left.index(begun) + 1 :]
                    elif "found" in said:
                        yield Found(begun, said["found"])
                    elif "failed" in said:
                        yield Found(begun, None, said["failed"])
                    elif "end" in said:
                        return
                status = process.wait()
            finally:  # nobody may want more of it
                alarm.cancel()
                process.kill()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [""])[-1]
        if status != _BROKEN or not begun:
            name = begun or left.pop(0)
            yield Found(name, None, f"ended its process with status {status}: {last}")


def _alarm(process: subprocess.Popen[str], seconds: float) -> threading.Timer:
    """Ends the process unless cancelled: a kernel may never return."""
    timer = threading.Timer(seconds, process.kill)
    timer.daemon = True
    timer.start()
    return timer


def _works() -> bool:
    try:
        torch.cuda.synchronize()
        return bool(torch.ones(1, dtype=torch.float32, device="cuda").sum() == 1)
    except Exception:
        return False


def _read(line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except ValueError:  # somebody else's print
        return {}
    return found if isinstance(found, dict) else {}
