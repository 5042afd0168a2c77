"""A hash of everything that makes a model answer as it does: weights, attributes and code."""

from __future__ import annotations

import functools
import hashlib
import types
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
import torch.fx
from torch import Tensor, nn

from gradood.detectors import Detector
from gradood.raw_bytes import raw_bytes

_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, PurePath, torch.dtype)
#: What every module has; parameters, buffers, modules and hooks are hashed by themselves.
_OF_MODULES = frozenset(vars(nn.Module()))
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
#: Attributes that hold the path of a model, which may change.
_PLACES = frozenset({"_name_or_path", "name_or_path"})
#: Entries of diffusers' configurations: lists in the order of a set, another in every process.
_UNORDERED = frozenset({"_use_default_values"})


def fingerprint(model: Any) -> str | None:
    """A hash of weights, attributes and code; the same in every process and on every device.

    Of modules: class, parameters, buffers, attributes such as ``flip=True``, hooks and submodules.
    Of detectors: class, settings, what was learned, and the model. Of functions: qualified name,
    code, defaults, and what they enclose; of other callables their class, its ``__call__`` and
    their attributes. Global variables that a function reads are not part of it.

    Returns:
        None if there is nothing to hash: An object of a compiled extension without attributes.
    """
    if model is None:
        return None
    hasher = _Hasher()
    known = hasher.add(model)
    return hasher.digest.hexdigest() if known else None


def weights(model: Any) -> str:
    """A hash of weights alone: attributes may change while a model runs, weights must not."""
    hasher = _Hasher()
    for value in _with_weights(model):
        hasher.add(value)
    return hasher.digest.hexdigest()


def _with_weights(model: Any) -> Iterable[Any]:
    if isinstance(model, Detector):
        yield dict(sorted(model.state.items()))
        yield from _with_weights(model.model)
    elif isinstance(model, nn.Module):
        yield dict(model.named_parameters())
        yield dict(model.named_buffers())


class _Hasher:
    """Feeds values to a digest, each once; a repeated value is hashed as its number."""

    def __init__(self) -> None:
        self.digest = hashlib.blake2b(digest_size=16)
        self._seen: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no address is used twice

    def add(self, value: Any) -> bool:
        """Hash a value; False if only its class is known."""
        if isinstance(value, _PLAIN):
            self._say(type(value).__name__, repr(value))
            return True
        if isinstance(value, torch.device):
            return True
        if isinstance(value, Tensor | np.ndarray | np.generic):
            self._add_numbers(value)
            return True
        if id(value) in self._seen:
            self._say("again", str(self._seen[id(value)]))
            return True
        self._seen[id(value)] = len(self._seen)
        self._kept.append(value)
        return self._add_object(value)

    def _add_object(self, value: Any) -> bool:
        if isinstance(value, Mapping):
            items = ((k, set(v) if k in _UNORDERED else v) for k, v in value.items())
            self._add_items("mapping", items)
        elif isinstance(value, list | tuple):
            self._add_items("sequence", enumerate(value))
        elif isinstance(value, set | frozenset):
            self._say("set", *sorted(map(repr, value)))
        elif isinstance(value, type | types.ModuleType):
            self._say("name", getattr(value, "__module__", "") or "", value.__name__)
        elif isinstance(value, Detector):
            parts = (value.settings(), dict(sorted(value.state.items())), value.model)
            self._add_items(type(value).__qualname__, enumerate(parts))
        elif isinstance(value, nn.Module):
            self._add_module(value)
        elif isinstance(value, types.FunctionType):
            self._add_function(value)
        elif isinstance(value, types.MethodType):
            self._add_items("method", enumerate((value.__func__, value.__self__)))
        elif isinstance(value, functools.partial):
            self._add_items("partial", enumerate((value.func, value.args, value.keywords)))
        elif isinstance(value, types.BuiltinFunctionType):
            self._say("builtin", value.__module__ or "", value.__qualname__)
            owner = value.__self__
            return owner is None or isinstance(owner, types.ModuleType) or self.add(owner)
        else:
            return self._add_instance(value)
        return True

    def _add_numbers(self, value: Tensor | np.ndarray[Any, Any] | np.generic) -> None:
        if isinstance(value, Tensor):
            self._say("tensor", str(value.dtype), str(list(value.shape)))
            value = raw_bytes(value).numpy()
        else:
            self._say("array", str(value.dtype), str(value.shape))
        if value.dtype == object:
            self._add_items("objects", enumerate(value.ravel().tolist()))
        else:
            self.digest.update(value.tobytes())

    def _add_module(self, module: nn.Module) -> None:
        own = {k: v for k, v in vars(module).items() if k not in _OF_MODULES}
        if isinstance(module, torch.fx.GraphModule):
            own = {"code": module.code}
        elif isinstance(module, torch.jit.ScriptModule):
            own = {"code": module.code} if hasattr(module, "code") else {}
        parts = (
            dict(module.named_parameters(recurse=False)),
            dict(module.named_buffers(recurse=False)),
        )
        hooks = [list(getattr(module, name, {}).values()) for name in _HOOKS]
        self._add_items(
            type(module).__qualname__,
            enumerate((*parts, module.training, own, hooks, dict(module.named_children()))),
        )
        self._add_method(module, "forward")

    def _add_function(self, function: types.FunctionType) -> None:
        self._say("function", function.__module__ or "", function.__qualname__)
        self._add_code(function.__code__)
        cells = []
        for cell in function.__closure__ or ():
            try:
                cells.append(cell.cell_contents)
            except ValueError:  # a name that is not bound yet
                cells.append(None)
        kept = function.__defaults__, function.__kwdefaults__, cells, vars(function)
        self._add_items("keeps", enumerate(kept))

    def _add_code(self, code: types.CodeType) -> None:
        self.digest.update(code.co_code)
        self._say("names", *code.co_names, *code.co_varnames)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                self._add_code(constant)
            else:
                self._say("constant", repr(constant))

    def _add_instance(self, value: Any) -> bool:
        """An object of any other class: its name, how it is called, and its attributes."""
        kind = type(value)
        self._say("object", kind.__module__, kind.__qualname__)
        if kind.__module__.split(".")[0] in ("torch", "threading", "_thread"):
            return False
        named = dict(vars(value)) if hasattr(value, "__dict__") else {}
        slots = [n for c in kind.__mro__ for n in np.atleast_1d(getattr(c, "__slots__", ()))]
        named |= {n: getattr(value, n) for n in map(str, slots) if hasattr(value, n)}
        named = {name: item for name, item in named.items() if name not in _PLACES}
        self._add_items("attributes", sorted(named.items()))
        return self._add_method(value, "__call__") or bool(named)

    def _add_method(self, value: Any, name: str) -> bool:
        method = getattr(type(value), name, None)
        if not isinstance(method, types.FunctionType):
            return False
        # The code of installed packages is what their versions say.
        if "site-packages" not in method.__code__.co_filename:
            self.add(method)
        return True

    def _add_items(self, what: str, items: Iterable[tuple[Any, Any]]) -> None:
        self._say(what)
        for key, item in items:
            self._say("item", repr(key) if isinstance(key, _PLAIN) else type(key).__qualname__)
            self.add(item)
        self._say("end")

    def _say(self, *words: str) -> None:
        # With lengths, so that no two lists of words run together.
        for word in words:
            raw = word.encode(errors="surrogateescape")
            self.digest.update(b"%d:" % len(raw) + raw)
