"""Is the CUDA path right on this machine? The same checks on a GPU as in the interpreter.

Every kernel against the float64 reference, the noise against its definition bit for bit, counts
against PyTorch's; on a GPU also the sizes of real layers, what the compiled kernels spill, and how
long they take beside the roofline.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gradood.benchmarking.gpu.launch_cases import launch_cases
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


def large_checks(device: str) -> Iterator[Check]:
    """Real layers on a GPU: right on some samples, and timed on all."""
    from triton.testing import do_bench

    rates = peaks(torch.cuda.get_device_name(device))
    for name, case in launch_cases().items():
        arguments = case.make(device)
        function = getattr(triton_backend, case.operator)
        if case.operator.endswith("_sqnorm"):
            few = tuple(a[:_COMPARED] if i < 2 and isinstance(a, Tensor) else a
                        for i, a in enumerate(arguments))  # fmt: skip
            check = compare(triton_backend, name, case.operator, few, case.dtype)
        else:
            function(*arguments)
            check = Check(name, True, "runs")
        milliseconds = do_bench(lambda f=function, a=arguments: f(*a), return_mode="median")
        share = None
        if rates is not None and case.operator.endswith("_sqnorm"):
            share = 1e3 * least_seconds(case.operator, arguments, rates) / milliseconds
        yield check._replace(milliseconds=milliseconds, share_of_roofline=share)


def checks() -> Iterator[Check]:
    """Everything that can be checked where this runs: on a GPU, or in the interpreter."""
    from gradood.kernels.launch import INTERPRETING

    device = "cpu" if INTERPRETING else "cuda"
    yield from small_checks(triton_backend, device)
    yield from noise_checks(triton_backend, device)
    yield from vote_checks(triton_backend, device)
    if device == "cuda":
        yield from large_checks(device)


def report(found: list[Check], out: Path) -> dict[str, Any]:
    """Write all checks to a file that can be attached to an issue; return its content."""
    import triton

    from gradood.kernels.launch import target

    there = torch.cuda.is_available()
    content = {
        "device": torch.cuda.get_device_name() if there else "Triton's interpreter on the CPU",
        "target": target(),
        "measured on a GPU": there,
        "versions": {"torch": torch.__version__, "triton": triton.__version__,
                     "python": platform.python_version(), "cuda": torch.version.cuda},
        "failed": [check.name for check in found if not check.passed],
        "checks": [check._asdict() for check in found],
    }  # fmt: skip
    out.write_text(json.dumps(content, indent=1) + "\n")
    return content
