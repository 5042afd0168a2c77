"""Peak memory of one call, from the kernel's own count of resident pages (Linux)."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_bytes(call: Callable[[], object]) -> int:
    """Bytes by which the process grows during the call, at most, above what it holds before.

    The high-water mark of resident memory (``VmHWM``) is reset before the call; nothing is sampled.
    Every page counts, also what PyTorch's profiler does not see; the kernel counts in steps, so
    that a fraction of a megabyte means nothing. Freed memory must go back at once
    for this to be exact: start the process with ``MALLOC_MMAP_THRESHOLD_=65536``.

    Raises:
        OSError: This system does not let a process reset its high-water mark.
    """
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    _CLEAR.write_text("5")
    before = _resident("VmRSS")
    call()
    return max(0, _resident("VmHWM") - before)


def _resident(field: str) -> int:
    found = re.search(rf"^{field}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} has no {field}")
    return 1024 * int(found.group(1))
