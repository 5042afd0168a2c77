"""Is the CUDA path right on this machine? The same checks on a GPU as in the interpreter.

Every kernel against the float64 reference, the noise against its definition bit for bit, counts
against PyTorch's; on a GPU also the sizes of real layers beside the roofline, whole models against
the CPU, graphs, streams, a second GPU, autocast and TF32.

Checks run in a process of their own, which is started again after one that ends it or breaks the
GPU's context, so that one fault hides no other. The report is written after every check.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradood.benchmarking.gpu import whole_checks
from gradood.benchmarking.gpu.device_facts import facts
from gradood.benchmarking.gpu.launch_cases import LaunchCase, launch_cases
from gradood.benchmarking.gpu.roofline import least_seconds, peaks
from gradood.benchmarking.operators import (
    Check,
    compare,
    noise_checks,
    small_checks,
    vote_checks,
)
from gradood.ops import triton_backend
from gradood.ops.dispatch import told

#: Samples of a large case that the reference looks at.
_COMPARED = 4
#: Seconds that a process may take for one item.
PATIENCE = 300
#: Exit status of a process whose GPU context is of no more use.
_BROKEN = 3

Item = Callable[[], Iterator[Check]]


def items(device: str) -> dict[str, Item]:
    """What is checked, by name: on a GPU, or, without large sizes, in the interpreter."""
    found: dict[str, Item] = {
        "operators": partial(small_checks, triton_backend, device),
        "noise": partial(noise_checks, triton_backend, device),
        "noise, every option": partial(whole_checks.noise_options_check, triton_backend, device),
        "votes": partial(vote_checks, triton_backend, device),
    }
    if device == "cpu":
        return found
    found |= {
        f"kernel: {name}": partial(large_check, name, case, device)
        for name, case in launch_cases().items()
    }
    found |= {
        f"model: {name}": partial(whole_checks.model_check, name, device)
        for name in whole_checks.MODELS
    }
    return found | {
        "graph": partial(whole_checks.graph_check, device),
        "side stream": partial(whole_checks.stream_check, device),
        "second device": partial(whole_checks.second_device_check, device),
        "autocast": partial(whole_checks.autocast_check, device),
        "TF32": partial(whole_checks.tf32_check, device),
    }


def large_check(name: str, case: LaunchCase, device: str) -> Iterator[Check]:
    """A real layer on a GPU: right on some samples, and timed on all."""
    from triton.testing import do_bench

    rates = peaks(torch.cuda.get_device_name(device))
    arguments = case.make(device)
    function = getattr(triton_backend, case.operator)
    if case.operator.endswith("_sqnorm"):
        few = tuple(a[:_COMPARED] if i < 2 and isinstance(a, Tensor) else a
                    for i, a in enumerate(arguments))  # fmt: skip
        check = compare(triton_backend, name, case.operator, few, case.dtype)
    else:
        function(*arguments)
        check = Check(name, True, "runs")
    milliseconds = do_bench(lambda: function(*arguments), return_mode="median")
    share = None
    if rates is not None and case.operator.endswith("_sqnorm"):
        share = 1e3 * least_seconds(case.operator, arguments, rates) / milliseconds
    yield check._replace(milliseconds=milliseconds, share_of_roofline=share)


def run_items(names: Sequence[str], todo: dict[str, Item], say: Callable[[str], None]) -> int:
    """Run items one after the other, and say a line of JSON for each begin and each check.

    Returns the exit status of a process that ran them: a GPU context may be broken for good.
    """
    for name in names:
        say(json.dumps({"begin": name}))
        try:
            for check in todo[name]():
                say(json.dumps({"check": check._asdict()}))
            if torch.cuda.is_available():
                torch.cuda.synchronize()
        except Exception as error:  # of any kind: the report says which
            failed = Check(name, False, told(error))
            say(json.dumps({"check": failed._asdict()}))
            if torch.cuda.is_available() and not _works():
                return _BROKEN
    return 0


def isolated(names: Sequence[str], command: Sequence[str]) -> Iterator[Check]:
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
            alarm = _alarm(process)
            for line in process.stdout or ():
                said = _read(line)
                if "begin" in said:
                    alarm.cancel()
                    alarm = _alarm(process)
                    begun = said["begin"]
                    left = left[left.index(begun) + 1 :]
                elif "check" in said:
                    yield Check(**said["check"])
            status = process.wait()
            alarm.cancel()
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [""])[-1]
        if status == 0:
            return
        if status != _BROKEN or not begun:
            name = begun or left.pop(0)
            yield Check(name, False, f"ended its process with status {status}: {last}")


def _alarm(process: subprocess.Popen[str]) -> threading.Timer:
    """Ends the process unless cancelled: a kernel may never return."""
    timer = threading.Timer(PATIENCE, process.kill)
    timer.daemon = True
    timer.start()
    return timer


def checks(names: Sequence[str] | None = None) -> Iterator[Check]:
    """Everything that can be checked where this runs, each item safe from the others."""
    from gradood.kernels.launch import INTERPRETING

    device = "cpu" if INTERPRETING else "cuda"
    module = "gradood.benchmarking.gpu.selftest"
    command = [sys.executable, "-m", module, device]
    yield from isolated(list(items(device)) if names is None else names, command)


def report(found: Sequence[Check], out: Path, finished: bool = True) -> dict[str, Any]:
    """Write all checks so far to a file that can be attached to an issue; return its content."""
    content = _facts() | {
        "finished": finished,
        "failed": [check.name for check in found if not check.passed],
        "checks": [check._asdict() for check in found],
    }
    if not content["measured on a GPU"]:
        content["device"] = "Triton's interpreter on the CPU"
    written = out.with_name(out.name + ".part")
    written.write_text(json.dumps(content, indent=1) + "\n")
    written.replace(out)
    return content


@cache
def _facts() -> dict[str, Any]:
    return facts()


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


def main() -> None:
    """Run the named items on a device; the parent reads what is printed."""
    device, *names = sys.argv[1:]
    sys.exit(run_items(names, items(device), lambda line: print(line, flush=True)))


if __name__ == "__main__":
    main()
