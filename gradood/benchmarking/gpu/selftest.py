"""Is the CUDA path right on this machine? The same checks on a GPU as in the interpreter.

Every kernel against the float64 reference, the noise against its definition bit for bit, counts
against PyTorch's; on a GPU also the sizes of real layers beside the roofline, whole models against
the CPU, graphs, streams, a second GPU, autocast and TF32.

Checks run in a process of their own, which is started again after one that ends it or breaks the
GPU's context, so that one fault hides no other. The report is written after every check.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradood.benchmarking.gpu import whole_checks
from gradood.benchmarking.gpu.device_facts import facts
from gradood.benchmarking.gpu.isolation import Found, isolated, run_items
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

#: Samples of a large case that the reference looks at.
_COMPARED = 4

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


def checks(names: Sequence[str] | None = None) -> Iterator[Check]:
    """Everything that can be checked where this runs, each item safe from the others."""
    from gradood.kernels.launch import INTERPRETING

    device = "cpu" if INTERPRETING else "cuda"
    module = "gradood.benchmarking.gpu.selftest"
    command = [sys.executable, "-m", module, device]
    for found in isolated(list(items(device)) if names is None else names, command):
        yield as_check(found)


def as_check(found: Found) -> Check:
    """What an item found, or its failure, as a check."""
    content = found.content
    return Check(found.item, False, found.reason) if content is None else Check(**content)


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


def main() -> None:
    """Run the named items on a device; the parent reads what is printed."""
    device, *names = sys.argv[1:]
    todo = {name: partial(_contents, item) for name, item in items(device).items()}
    sys.exit(run_items(names, todo, lambda line: print(line, flush=True)))


def _contents(item: Item) -> Iterator[dict[str, Any]]:
    return (check._asdict() for check in item())


if __name__ == "__main__":
    main()
