"""The bytes of a tensor, for hashes."""

from __future__ import annotations

import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> Tensor:
    """Its elements' bytes in row-major order, uint8, of any dtype, strides and size, on the CPU.

    NumPy lacks bfloat16, so its own ``tobytes`` does not serve.
    """
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().flatten()
    # Cloned: a single element counts as contiguous whatever its stride, and has no view as bytes.
    return flat.clone(memory_format=torch.contiguous_format).view(torch.uint8)
