"""The arguments of an operator call: the tensors in them, and the constants beside those.

A plan compares the constants of a call with those of the probe's passes: they say where things lie.
"""

from __future__ import annotations

from operator import is_ as _is
from typing import Any

from torch import Tensor


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors in nested lists and tuples."""
    if isinstance(value, Tensor):
        return [value]
    if not isinstance(value, (list, tuple)):
        return []
    found: list[Tensor] = []
    for item in value:
        if isinstance(item, Tensor):
            found.append(item)
        elif isinstance(item, (list, tuple)):
            found += tensors_in(item)
    return found


def constants(value: Any) -> Any:
    """The constants among arguments: integers, flags, names and slices."""
    if isinstance(value, Tensor):
        return None
    if isinstance(value, (list, tuple)):
        found = tuple(map(constants, value))
        # Itself where it can be: what a module holds is recognised as the same the next time.
        return value if type(value) is tuple and all(map(_is, value, found)) else found
    if isinstance(value, slice):
        return constants((value.start, value.stop, value.step))
    return value if isinstance(value, (int, str)) else None


def same_constants(args: Any, kwargs: Any, expected: Any) -> bool:
    """Whether ``constants((args, *kwargs.values()))`` is what was expected, quickly."""
    first = expected[0]
    if len(args) != len(first) or len(kwargs) != len(expected) - 1:
        return False
    for value, known in zip(args, first, strict=True):
        if value is known or (known is None and isinstance(value, Tensor)):
            continue
        if constants(value) != known:
            return False
    if kwargs:
        for value, known in zip(kwargs.values(), expected[1:], strict=True):
            if value is not known and constants(value) != known:
                return False
    return True


def grow_alike(known: tuple[Any, Any], now: Any, samples: int) -> bool:
    """Whether constants lie on the line through those for two and for three samples."""
    two, three = known
    if isinstance(three, tuple):
        return (
            isinstance(two, tuple)
            and isinstance(now, tuple)
            and len(two) == len(three) == len(now)
            and all(grow_alike((a, b), c, samples) for a, b, c in zip(two, three, now, strict=True))
        )
    if type(two) is int and type(three) is int:
        return bool(now == two + (three - two) * (samples - 2))
    return bool(two == three == now)


def leads_nowhere(args: Any, kwargs: Any) -> bool:
    """Whether all tensors among the arguments are intermediate results of the graph.

    Such tensors are neither parameters nor made from parameters alone.
    """
    for value in (*args, *kwargs.values()) if kwargs else args:
        if value.is_leaf if type(value) is Tensor else isinstance(value, _MAY_HOLD):
            return False
    return True


_MAY_HOLD = (Tensor, list, tuple, dict)
