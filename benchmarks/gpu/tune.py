"""Choose tile sizes for the Triton kernels on the GPU at hand, and write them to the launch table.

    python -m benchmarks.gpu.tune            # on a GPU: time, print, rewrite its column
    python -m benchmarks.gpu.tune --dry sm_90 --family outer    # none: registers and spills only

For every family, number type and bucket it tries the candidates around the entry in use, discards
those that spill or exceed shared memory, and keeps the fastest by ``do_bench``'s median. The column
of the GPU (``sm_90`` …) in ``kernels/launch_table.json`` is all that changes; run the resource gate
afterwards: ``python -m benchmarks.gpu.resources --out tests/kernels/resources.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Iterator

import torch
from triton.errors import TritonError

from benchmarks.gpu.dry_driver import TARGETS, dry
from benchmarks.gpu.resources import resources
from gradood.benchmarking.gpu.launch_cases import LaunchCase, launch_cases
from gradood.errors import BackendError
from gradood.kernels import launch, prepared
from gradood.kernels.launch import Settings
from gradood.ops import triton_backend
from gradood.ops.dispatch import load

#: The case that stands for an entry of the table.
STANDS_FOR = {
    ("outer", "small"): "outer, small",
    ("outer", "medium"): "outer, medium",
    ("outer", "large"): "outer, large",
    ("gram", "large"): "gram",
    ("conv", "small"): "conv, small",
    ("conv", "medium"): "conv, medium",
    ("conv", "large"): "conv, large",
    ("stem", "medium"): "stem",
    ("depthwise", "large"): "depthwise 3x3",
    ("affine", "large"): "batch norm, channels last",
    ("statistics", "large"): "layer norm",
}
NUMBERS = {"half": "bfloat16", "float": "float32"}


def candidates(used: Settings) -> Iterator[Settings]:
    """The entry itself, then halves and doubles of every size, and other warps and stages."""
    sizes = [(n, n // 2, 2 * n) if n else (0,) for n in used[:3]]
    for tokens, outputs, inputs in itertools.product(*sizes):
        if all(n == 0 or n >= 16 for n in (tokens, outputs, inputs)):
            for warps, stages in itertools.product((4, 8), (2, 3, 4)):
                yield Settings(tokens, outputs, inputs, warps, stages)


def compiled(case: LaunchCase, target: str, setting: Settings) -> str:
    """Why the setting in use cannot be had on a target; empty if it can, or if nobody knows."""
    if target not in TARGETS:  # such as sm_86: timing it will tell
        return ""
    try:
        with dry(target) as launches:
            getattr(triton_backend, case.operator)(*case.make())
    except BackendError as error:
        return str(error)
    except (RuntimeError, TritonError) as error:
        return f"does not compile: {(str(error).splitlines() or [type(error).__name__])[0]}"
    if all(one.compiled.metadata.num_warps != setting.warps for one in launches):
        raise AssertionError("the case does not launch what is tuned: mend STANDS_FOR")
    found = [resources(one, target) for one in launches]
    spilled = sum(row["spilled"] for row in found)
    registers = max(row["registers"] for row in found)
    print(f"    {registers} registers, {max(row['shared'] for row in found) >> 10} KiB")
    return f"spills {spilled}" if spilled else ""


def milliseconds(case: LaunchCase) -> float:
    """Median time on the GPU; infinite if it does not run there."""
    from triton.testing import do_bench

    arguments = case.make("cuda")
    function = getattr(triton_backend, case.operator)
    try:
        return float(do_bench(lambda: function(*arguments), return_mode="median"))
    except TritonError as error:
        print(f"    does not run: {error}")
        return float("inf")


def use(target: str, family: str, number: str, bucket: str, setting: Settings) -> None:
    """Make launchers take a setting."""
    column = launch._table().setdefault(target, {})
    column.setdefault(family, {}).setdefault(number, {})[bucket] = list(setting)
    launch._settings.cache_clear()
    prepared.forget()


def tune(target: str, family: str, number: str, bucket: str, real: bool, most: int) -> None:
    """Try the candidates of one entry; on a GPU leave the best in the table."""
    dtype = torch.float32 if number == "float" else torch.bfloat16
    case = launch_cases()[f"{STANDS_FOR[family, bucket]}, {NUMBERS[number]}"]
    size = {"small": 32, "medium": 64, "large": 1 << 30}[bucket]
    used = launch._settings(target, family, number, bucket)
    print(f"{family}, {dtype}, {bucket} (≤ {size}): now {list(used)}")
    best, best_time, fit = used, float("inf"), 0
    for setting in itertools.islice(candidates(used), most):
        use(target, family, number, bucket, setting)
        print(f"  {list(setting)}")
        reason = compiled(case, target, setting)
        fit += not reason
        if reason:
            print(f"    {reason}")
        elif real:
            time = milliseconds(case)
            print(f"    {time:.3f} ms")
            if time < best_time:
                best, best_time = setting, time
    use(target, family, number, bucket, best)
    chosen = f"best {list(best)}, {best_time:.3f} ms" if real else "none timed: that takes a GPU"
    print(f"  {fit} candidates can be had; {chosen}")


def main() -> None:
    """Tune every entry, or a family; on a GPU rewrite the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry", choices=TARGETS, help="compile only, for this GPU")
    parser.add_argument("--family", choices=sorted({family for family, _ in STANDS_FOR}))
    parser.add_argument("--most", type=int, default=1000, help="candidates an entry")
    chosen = parser.parse_args()
    missing = load("triton")[1] or (None if torch.cuda.is_available() else "no GPU is visible")
    if chosen.dry is None and missing is not None:
        sys.exit(f"nothing can be timed: {missing}. --dry sm_90 compiles the candidates for a GPU "
                 "that is not there, and says which fit; the table stays as it is")  # fmt: skip
    target = chosen.dry or launch.target()
    for family, bucket in STANDS_FOR:
        if chosen.family in (None, family):
            for number in NUMBERS:
                tune(target, family, number, bucket, chosen.dry is None, chosen.most)
    if chosen.dry is None:
        launch._TABLE.write_text(json.dumps(launch._table(), indent=1) + "\n")


if __name__ == "__main__":
    main()
