"""What a model keeps from one forward pass to the next: found, and emptied while it is scored.

A tensor made of parameters that an earlier pass has left in an attribute of a module (position
tables, attention biases gathered once) is a constant to autograd, or leads into a graph that is
gone. A pass that finds nothing kept makes it again, from the parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import Parameter

from gradood.gradients.state import observed

_OWN = frozenset(vars(nn.Module()))
_ABSENT = object()


class Cache(NamedTuple):
    """An attribute of a module that the forward pass fills when it is empty."""

    module: str
    attribute: str
    #: Whether empty means that there is no such attribute, rather than None or an empty container.
    absent: bool = False


def held(model: nn.Module) -> list[Cache]:
    """Attributes that hold floating-point tensors, neither parameters nor buffers."""
    return [
        Cache(name, attribute)
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if attribute not in _OWN and _holds_tensors(value)
    ]


def find(model: nn.Module, forward: Callable[[], object]) -> tuple[Cache, ...]:
    """Those attributes that ``forward`` fills again when they are emptied.

    What it does not fill again, or cannot do without, is no cache.
    """
    candidates = held(model)
    if not candidates:
        return ()
    if (all_filled := _filled(model, candidates, forward)) == candidates:
        return tuple(all_filled)
    found: list[Cache] = []
    for cache in candidates:
        for absent in (False, True):
            tried = [*found, cache._replace(absent=absent)]
            if _filled(model, tried, forward) == tried:
                found = tried
                break
    return tuple(found)


def filled_by(model: nn.Module, forward: Callable[[], object]) -> tuple[Cache, ...]:
    """Attributes that hold tensors after ``forward`` and did not before."""
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    before = set(held(model))
    forward()
    return tuple(
        cache._replace(absent=cache.attribute not in attributes.get(cache.module, ()))
        for cache in held(model)
        if cache not in before
    )


@contextmanager
def emptied(model: nn.Module, caches: Iterable[Cache]) -> Iterator[None]:
    """Have the forward pass fill the caches anew; what they held is put back afterwards."""
    before = [
        (vars(model.get_submodule(cache.module)), cache.attribute, cache.absent) for cache in caches
    ]
    values = [attributes.get(name, _ABSENT) for attributes, name, _ in before]
    try:
        for (attributes, name, absent), value in zip(before, values, strict=True):
            if absent:
                attributes.pop(name, None)
            elif value is not _ABSENT:
                attributes[name] = type(value)() if isinstance(value, (dict, list, set)) else None
        yield
    finally:
        for (attributes, name, _), value in zip(before, values, strict=True):
            if value is _ABSENT:
                attributes.pop(name, None)
            else:
                attributes[name] = value


def _filled(model: nn.Module, caches: list[Cache], forward: Callable[[], object]) -> list[Cache]:
    """Those of the caches that hold tensors after a pass which began without."""
    with emptied(model, caches), observed(model, []):
        try:
            forward()
        except Exception:
            return []
        return [
            cache
            for cache in caches
            if _holds_tensors(vars(model.get_submodule(cache.module)).get(cache.attribute))
        ]


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and not isinstance(value, Parameter)
    if depth and isinstance(value, (dict, list, tuple, set)):
        items = value.values() if isinstance(value, dict) else value
        return any(_holds_tensors(item, depth - 1) for item in items)
    return False
