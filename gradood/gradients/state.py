"""Leave a model as it was: what its forward pass writes to its modules is written back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn


class Written(NamedTuple):
    """What a forward pass writes: values of buffers, and attributes of modules (caches)."""

    buffers: frozenset[str] = frozenset()
    modules: frozenset[str] = frozenset()


class _Snapshot:
    """Buffers by value, and attributes of modules by reference, one level into dictionaries."""

    def __init__(self, model: nn.Module, buffers: Iterable[str], modules: Iterable[str]) -> None:
        self._buffers = {name: model.get_buffer(name) for name in buffers}
        self._values = {name: (_version(b), b.clone()) for name, b in self._buffers.items()}
        self._modules = {name: model.get_submodule(name) for name in modules}
        self._attributes = {name: _attributes(m) for name, m in self._modules.items()}

    def restore(self) -> Written:
        """Write back what changed, and say what did."""
        buffers, modules = set(), set()
        for name, buffer in self._buffers.items():
            version, value = self._values[name]
            if _version(buffer) != version or (version is None and not buffer.equal(value)):
                buffers.add(name)
                buffer.detach().copy_(value)
        for name, module in self._modules.items():
            if _restore(module, self._attributes[name]):
                modules.add(name)
        return Written(frozenset(buffers), frozenset(modules))


@contextmanager
def kept(model: nn.Module, written: Written) -> Iterator[None]:
    """Write back afterwards what a forward pass is known to write."""
    snapshot = _Snapshot(model, written.buffers, written.modules)
    try:
        yield
    finally:
        snapshot.restore()


@contextmanager
def observed(model: nn.Module, found: list[Written]) -> Iterator[None]:
    """Write back afterwards whatever changed, and append to ``found`` what did."""
    buffers = (name for name, _ in model.named_buffers())
    snapshot = _Snapshot(model, list(buffers), [name for name, _ in model.named_modules()])
    try:
        yield
    finally:
        found.append(snapshot.restore())


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; inference tensors do not count."""
    return None if tensor.is_inference() else tensor._version


def _attributes(module: nn.Module) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    return {
        name: (value, dict(value) if isinstance(value, dict) else None)
        for name, value in vars(module).items()
    }


def _restore(module: nn.Module, attributes: dict[str, tuple[Any, dict[Any, Any] | None]]) -> bool:
    current = vars(module)
    changed = False
    for name in set(current) - set(attributes):
        del current[name]
        changed = True
    for name, (value, content) in attributes.items():
        if current.get(name) is not value:
            current[name] = value
            changed = True
        if content is not None and not _same(value, content):
            value.clear()
            value.update(content)
            changed = True
    return changed


def _same(a: dict[Any, Any], b: dict[Any, Any]) -> bool:
    return a.keys() == b.keys() and all(a[key] is b[key] for key in a)
