"""The random state that a model can draw from, and no other."""

from __future__ import annotations

import torch
from torch import Tensor


def restart(x: Tensor) -> None:
    """Seed the generators of the CPU and of ``x``'s device.

    ``torch.manual_seed`` would seed those of every device, which nobody puts back.
    """
    torch.default_generator.manual_seed(0)
    if x.device.type == "cuda":
        with torch.cuda.device(x.device):
            torch.cuda.manual_seed(0)
