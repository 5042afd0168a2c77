"""What compiled kernels take: registers, spills, shared memory, instructions, widths of loads.

``python -m benchmarks.gpu.resources --out tests/kernels/resources.json`` compiles every
case for every target and writes the table that the tests hold the kernels to.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import triton

from benchmarks.gpu.dry_driver import DESCRIBED, Launch, dry, tool, usage
from gradood.benchmarking.gpu.launch_cases import launch_cases

#: The instruction that multiplies matrices, by target.
TENSOR_CORE = {
    "sm_80": "mma.sync",
    "sm_90": "wgmma",
    "sm_100": "tcgen05.mma",
    "sm_120": "mma.sync",
    "gfx942": "v_mfma",
    "gfx950": "v_mfma",
}
#: Kernels that only add up, or look up what is small.
SMALL = ("sum_kernel", "statistics_kernel")
#: Bits of a load by the suffix of its instruction; 32 without one.
_SASS_LOAD = re.compile(r"\b(?:LDG|LDGSTS)\.E((?:\.\w+)*)")
_SASS_WIDTHS = {"128": 128, "64": 64, "U16": 16, "S16": 16, "U8": 8}
_AMD_LOAD = re.compile(r"\b(?:global|buffer)_load_(\w+)")
_AMD_WIDTHS = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32}


def resources(launch: Launch, target: str, loads: bool = False) -> dict[str, Any]:
    """What one compiled kernel takes; for NVIDIA also the widths of loads, which takes longer."""
    found = _amd(launch.compiled) if target.startswith("gfx") else _nvidia(launch.compiled, loads)
    found["shared"] = launch.compiled.metadata.shared
    found["warps"] = launch.compiled.metadata.num_warps
    return found


def _nvidia(compiled: Any, loads: bool) -> dict[str, Any]:
    registers, spilled = usage(compiled.asm["cubin"])
    sass = ""
    if loads:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(compiled.asm["cubin"])
            file.flush()
            sass = tool("nvdisasm", "-c", file.name)
    ptx = compiled.asm["ptx"]
    widths = {"loads": _count(_nvidia_width(m) for m in _SASS_LOAD.findall(sass))} if loads else {}
    return {
        "registers": registers,
        "spilled": spilled,
        "tensor_core": _first(r"(?:wgmma|tcgen05\.mma|mma\.sync)", ptx),
        **widths,
        "fused": len(re.findall(r"\bfma\.|\.approx|\.ftz", ptx)),
    }


def _nvidia_width(suffixes: str) -> int:
    parts = suffixes.split(".")
    return next((bits for name, bits in _SASS_WIDTHS.items() if name in parts), 32)


def _amd(compiled: Any) -> dict[str, Any]:
    text = compiled.asm["amdgcn"]

    def number(key: str) -> int:
        match = re.search(rf"\.{key}:\s+(\d+)", text)
        return int(match[1]) if match else 0

    return {
        "registers": number("vgpr_count"),
        "spilled": number("vgpr_spill_count") + number("sgpr_spill_count"),
        "tensor_core": _first(r"v_mfma", text),
        "loads": _count(
            next((bits for key, bits in _AMD_WIDTHS.items() if name.startswith(key)), 16)
            for name in _AMD_LOAD.findall(text)
        ),
        "fused": len(re.findall(r"\bv_(?:fma|fmac|mad)_f32", text)),
    }


def _first(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    return match[0] if match else ""


def _count(widths: Any) -> dict[str, int]:
    return {str(bits): n for bits, n in sorted(Counter(widths).items(), reverse=True)}


def compile_case(name: str, target: str) -> dict[str, Any]:
    """Resources of every kernel that a case launches on a target."""
    from gradood.ops import triton_backend

    case = launch_cases()[name]
    with dry(target) as launches:
        getattr(triton_backend, case.operator)(*case.make())
    return {
        launch.kernel: resources(launch, target, case.wide and launch.kernel not in SMALL)
        for launch in launches
    }


def compile_all(
    names: Sequence[str], targets: Sequence[str], processes: int
) -> dict[str, dict[str, Any]]:
    """Resources by case, target and kernel."""
    tasks = [(name, target) for name in names for target in targets]
    with ProcessPoolExecutor(processes, get_context("spawn")) as pool:
        found = list(pool.map(compile_case, *zip(*tasks, strict=True)))
    table: dict[str, dict[str, Any]] = {}
    for (name, target), row in zip(tasks, found, strict=True):
        table.setdefault(name, {})[target] = row
    return table


def main() -> None:
    """Compile, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", nargs="*", choices=DESCRIBED, default=list(DESCRIBED))
    parser.add_argument("--case", nargs="*", default=None, help="parts of names")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    names = [
        name
        for name in launch_cases()
        if chosen.case is None or any(part in name for part in chosen.case)
    ]
    table = {
        "triton": triton.__version__,
        "cases": compile_all(names, chosen.target, chosen.processes),
    }
    chosen.out.write_text(_formatted(table))


def _formatted(table: dict[str, Any]) -> str:
    """JSON with one line a case and target, for legible differences."""
    lines = [f'{{\n "triton": {json.dumps(table["triton"])},\n "cases": {{']
    cases = table["cases"]
    for name, targets in cases.items():
        lines.append(f"  {json.dumps(name)}: {{")
        rows = [f"   {json.dumps(key)}: {json.dumps(row)}" for key, row in targets.items()]
        lines.append(",\n".join(rows))
        lines.append("  }" + ("," if name != list(cases)[-1] else ""))
    return "\n".join([*lines, " }", "}"]) + "\n"


if __name__ == "__main__":
    main()
