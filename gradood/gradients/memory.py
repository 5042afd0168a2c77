"""What operators write to, and which tensors share memory."""

from __future__ import annotations

from functools import cache
from typing import Any

from torch import Tensor

from gradood.gradients.capture import Function, name_of


def changes_a_view(function: Function, args: Any) -> bool:
    """Whether an operator writes to a view of another tensor."""
    name = name_of(function)
    in_place = name.endswith("_") and not name.endswith("__") or name.startswith("__i")
    return in_place and isinstance(args[0], Tensor) and args[0]._is_view()


@cache
def writes(function: Function) -> bool:
    """Whether an operator changes its first argument."""
    name = name_of(function)
    if name.startswith("__"):
        return name in _WRITES or function == Tensor.data.__set__  # type: ignore[attr-defined]
    return name.endswith("_") and name not in ("requires_grad_", "share_memory_", "detach_")


_WRITES = {"__setitem__"} | {
    f"__i{kind}__" for kind in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow")
}


def memory(t: Tensor) -> int:
    """A key that views of one tensor share, and other tensors do not."""
    try:
        return int(t.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):  # sparse, or inside torch.func
        return id(t)
