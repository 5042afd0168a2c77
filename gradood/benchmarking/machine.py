"""What a measurement was made on: in every row of the results."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gradood.progress import cores as cores

#: Processor features on which the speed of these kernels depends.
_FEATURES = (
    "avx2 fma avx512f avx512bw avx512_vnni avx512_bf16 avx512_fp16 amx_tile amx_bf16 amx_int8 "
    "asimd bf16 sve"
).split()


def processor() -> tuple[str, str]:
    """The processor's name, and those of its features that matter here."""
    facts: dict[str, str] = {}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    model = facts.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in facts:
        model += f", family {facts['cpu family']} model {facts['model']}"
    flags = f"{facts.get('flags', '')} {facts.get('Features', '')}".split()
    return model, " ".join(f for f in _FEATURES if f in flags)


def load() -> float:
    """Processes that wanted to run over the last minute: how quiet the machine was."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")


def installed(package: str) -> str:
    """A package's version, empty if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def commit() -> str:
    """The commit of a source checkout, marked when edited; empty for an installed package."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return ""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
