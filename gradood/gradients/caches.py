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
_CONTAINERS = (dict, list, set)
_ABSENT = object()


class Cache(NamedTuple):
    """An attribute of a module that the forward pass fills when it is empty."""

    module: str
    attribute: str
    #: Its value when empty; a copy if that is a container.
    empty: Any


def find(model: nn.Module, forward: Callable[[], object]) -> tuple[Cache, ...]:
    """Attributes with tensors that ``forward`` fills again when they are emptied.

    What it does not fill again, or cannot do without, is no cache.
    """
    candidates = [
        Cache(name, attribute, type(value)() if isinstance(value, _CONTAINERS) else None)
        for name, module in model.named_modules()
        for attribute, value in _attributes(module)
        if _holds_tensors(value)
    ]
    if not candidates or _filled(model, candidates, forward):
        return tuple(candidates)
    found: list[Cache] = []
    for cache in candidates:
        for empty in (cache.empty, _ABSENT):
            if _filled(model, [*found, cache._replace(empty=empty)], forward):
                found.append(cache._replace(empty=empty))
                break
    return tuple(found)


def filled_by(model: nn.Module, forward: Callable[[], object]) -> tuple[Cache, ...]:
    """Attributes that hold tensors after ``forward`` and did not before."""
    before = {
        (name, attribute): None if _holds_tensors(value) else Cache(name, attribute, _copy(value))
        for name, module in model.named_modules()
        for attribute, value in _attributes(module)
    }
    forward()
    found = [
        before.get((name, attribute), Cache(name, attribute, _ABSENT))
        for name, module in model.named_modules()
        for attribute, value in _attributes(module)
        if _holds_tensors(value)
    ]
    return tuple(cache for cache in found if cache is not None)


@contextmanager
def emptied(model: nn.Module, caches: Iterable[Cache]) -> Iterator[None]:
    """Have the forward pass fill the caches anew; what they held is put back afterwards."""
    before = []
    try:
        for name, attribute, empty in caches:
            attributes = vars(model.get_submodule(name))
            before.append((attributes, attribute, attributes.get(attribute, _ABSENT)))
            _set(attributes, attribute, _copy(empty))
        yield
    finally:
        for attributes, attribute, value in reversed(before):
            _set(attributes, attribute, value)


def _filled(model: nn.Module, caches: list[Cache], forward: Callable[[], object]) -> bool:
    """Whether a pass that starts with empty caches fills all of them with tensors."""
    with emptied(model, caches), observed(model, []):
        try:
            forward()
        except Exception:
            return False
        attributes = [vars(model.get_submodule(cache.module)) for cache in caches]
        return all(
            _holds_tensors(held.get(cache.attribute))
            for held, cache in zip(attributes, caches, strict=True)
        )


def _attributes(module: nn.Module) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in vars(module).items() if name not in _OWN]


def _set(attributes: dict[str, Any], name: str, value: Any) -> None:
    if value is _ABSENT:
        attributes.pop(name, None)
    else:
        attributes[name] = value


def _copy(value: Any) -> Any:
    """A copy of a container and of the containers inside it."""
    if isinstance(value, dict):
        return type(value)((key, _copy(item)) for key, item in value.items())
    return type(value)(map(_copy, value)) if type(value) in (list, set) else value


def _holds_tensors(value: Any, depth: int = 3) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and not isinstance(value, Parameter)
    if depth and isinstance(value, (*_CONTAINERS, tuple)):
        items = value.values() if isinstance(value, dict) else value
        return any(_holds_tensors(item, depth - 1) for item in items)
    return False
