"""Restore a model: what its forward pass writes to its modules is undone."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class Written(NamedTuple):
    """What a forward pass writes: values of buffers, and attributes of modules (caches)."""

    buffers: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()


class Snapshot:
    """Buffers by value, and attributes of modules by reference, containers with their content."""

    @classmethod
    def of(cls, model: nn.Module) -> Snapshot:
        """Everything that a forward pass may write."""
        buffers = [name for name, _ in model.named_buffers()]
        return cls(model, buffers, [name for name, _ in model.named_modules()])

    def __init__(self, model: nn.Module, buffers: Iterable[str], modules: Iterable[str]) -> None:
        self._buffers = {name: model.get_buffer(name) for name in buffers}
        self._values = {name: (_version(b), b.clone()) for name, b in self._buffers.items()}
        self._contents = {
            name: list(_contents(vars(model.get_submodule(name)))) for name in modules
        }

    @contextmanager
    def kept(self, found: list[Written]) -> Iterator[None]:
        """Restore afterwards whatever changed, and append it to ``found``."""
        try:
            yield
        finally:
            found.append(self.restore())

    def restore(self) -> Written:
        """Restore what changed, and return it."""
        buffers, modules = set(), set()
        for name, buffer in self._buffers.items():
            version, value = self._values[name]
            # Some operators of PyTorch write without counting it.
            if _version(buffer) != version or not buffer.equal(value):
                buffers.add(name)
                buffer.detach().copy_(value)
        for name, contents in self._contents.items():
            for container, content in contents:
                if not _same(container, content):
                    modules.add(name)
                    _refill(container, content)
        return Written(frozenset(buffers), frozenset(modules))


@contextmanager
def kept(model: nn.Module, written: Written) -> Iterator[None]:
    """Restore afterwards what a forward pass is known to write."""
    with Snapshot(model, written.buffers, written.modules).kept([]):
        yield


@contextmanager
def observed(model: nn.Module, found: list[Written]) -> Iterator[None]:
    """Restore afterwards whatever changed, and append it to ``found``."""
    with Snapshot.of(model).kept(found):
        yield


def _version(tensor: Tensor) -> int | None:
    """The version counter of a tensor; inference tensors have none."""
    return None if tensor.is_inference() else tensor._version


def _contents(container: Any, depth: int = 3) -> Iterator[tuple[Any, Any]]:
    """Copies of a container and of the dictionaries, lists and sets in it, without their items."""
    yield container, container.copy() if container else ()  # most are empty
    if depth:
        for item in container.values() if isinstance(container, dict) else container:
            if isinstance(item, (dict, list, set)):
                yield from _contents(item, depth - 1)


def _same(a: Any, b: Any) -> bool:
    if not b:
        return not a
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(a[key] is b[key] for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(operator.is_, a, b))
    return bool(a == b)


def _refill(container: Any, content: Any) -> None:
    if not content:
        container.clear()
        return
    if not isinstance(container, dict):
        container.clear()
        (container.extend if isinstance(container, list) else container.update)(content)
        return
    # Item by item: other threads may be using the module.
    for key in container.keys() - content.keys():
        del container[key]
    for key, value in content.items():
        if key not in container or container[key] is not value:
            container[key] = value
