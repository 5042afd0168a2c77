"""Processor time that the norms' own launches take of a pass, without a GPU.

``python -m benchmarks.gpu.host_time --model resnet50`` records the operator calls of a model, and
repeats what the Triton backend does for each with the driver's launcher left out: choosing a
kernel, room for sums, arguments. Nothing runs on a GPU; the launcher in C takes some 3 µs more.
"""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.dry_driver import TARGETS, dry
from benchmarks.gpu.model_launches import MODELS, model
from gradood import pending
from gradood.benchmarking.gpu.operator_calls import Shape, record

Calls = list[tuple[str, list[Any]]]
_SAMPLES = 2


def once(calls: Calls) -> None:
    """What the backend does for the calls of one pass."""
    from gradood.ops import triton_backend

    sums: dict[Any, pending.Sums] = {}
    with pending.held(sums):
        for operator, arguments in calls:
            assert triton_backend.reject(operator, *arguments) is None
            getattr(triton_backend, operator)(*arguments)
        pending.finish(sums)


def milliseconds(name: str, target: str, passes: int = 60) -> tuple[float, int, int]:
    """Least processor time of several passes, their operator calls and their launches."""
    from triton.compiler.compiler import CompiledKernel
    from triton.runtime.jit import JITFunction

    from gradood.ops import triton_backend

    calls: Calls = []
    for operator, arguments in record(*model(name)):
        made = [_in_memory(a, i < 2) if isinstance(a, Shape) else a
                for i, a in enumerate(arguments)]  # fmt: skip
        calls.append((operator, made))
    plain = JITFunction.run, CompiledKernel.__getitem__
    with patch.object(triton_backend, "_dry", lambda: True), dry(target) as launches:
        once(calls)
        count = len(launches)
        JITFunction.run, CompiledKernel.__getitem__ = plain  # records nothing
        times = []
        for _ in range(passes):
            begin = time.process_time()
            once(calls)
            times.append(time.process_time() - begin)
    return 1e3 * min(times), len(calls), count


def _in_memory(shape: Shape, of_samples: bool) -> torch.Tensor:
    half = of_samples and shape.dtype.is_floating_point
    size = (_SAMPLES, *shape.size[1:]) if of_samples else shape.size
    dtype = torch.bfloat16 if half else shape.dtype
    return torch.empty_strided(size, shape.stride, dtype=dtype, device="cpu")


def main() -> None:
    """Measure and print a line a model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", nargs="*", choices=MODELS, default=["resnet50"])
    parser.add_argument("--target", choices=TARGETS, default="sm_90")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    for name in chosen.model:
        taken, calls, launches = milliseconds(name, chosen.target)
        print(f"{name}: {taken:.2f} ms a pass, {1e3 * taken / calls:.1f} µs a call "
              f"({calls} calls, {launches} launches)")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
