"""What a report must say of the GPU that made it: driver, clocks, versions."""

from __future__ import annotations

import platform
import shutil
import subprocess
from typing import Any

import torch

_ASKED = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,memory.total"
)


def facts() -> dict[str, Any]:
    """By name, as JSON values; on a machine without a GPU what there is."""
    import triton

    from gradood.kernels.launch import target

    there = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if there else "no GPU",
        "devices": torch.cuda.device_count(),
        "target": target() if there else "",
        "measured on a GPU": there,
        "nvidia-smi": smi(),
        "versions": {"torch": torch.__version__, "triton": triton.__version__,
                     "python": platform.python_version(), "cuda": torch.version.cuda,
                     "cudnn": torch.backends.cudnn.version() if there else None},
    }  # fmt: skip


def smi() -> list[dict[str, str]]:
    """Driver, clocks, temperature and power of every NVIDIA GPU, as its tool says them."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, f"--query-gpu={_ASKED}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    rows = [line.split(", ") for line in done.stdout.splitlines() if line]
    return [dict(zip(_ASKED.split(","), row, strict=False)) for row in rows]
