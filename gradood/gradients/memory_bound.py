"""How much memory the activations of one micro-batch may take."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor

#: Activations of one micro-batch take about this much memory, or a quarter of what is free; on a
#: GPU half of what is free.
MEMORY_BOUND = 1 << 30


def memory_bound(x: Tensor) -> int:
    """Bytes on the device of ``x``."""
    if x.device.type == "cuda":
        # What PyTorch keeps for itself and does not use is free, too, whatever ran before.
        unused = torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
        return (torch.cuda.mem_get_info(x.device)[0] + unused) // 2
    return min(MEMORY_BOUND, _available_memory() // 4)


def _available_memory() -> int:
    """Bytes that can be had without swapping, as far as it matters to the bound."""
    enough = 4 * MEMORY_BOUND
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if free >= enough:  # a microsecond; the file takes a hundred
            return enough
        lines = Path("/proc/meminfo").read_text().splitlines()
    except (ValueError, OSError, AttributeError):  # a system that does not say
        return enough
    # Free pages leave out the page cache, which gives way and may be nearly everything.
    found = [int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")]
    return max([free, *found])
