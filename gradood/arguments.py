"""Arguments of public functions, checked against the types that the functions declare."""

from __future__ import annotations

import inspect
import os
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from operator import index
from typing import Any, Literal, TypeVar, get_args, get_origin

import numpy as np
from torch import Tensor, nn

from gradood.errors import InputError
from gradood.inputs import require_one_tensor

_Function = TypeVar("_Function", bound=Callable[..., Any])

#: Types in the words of an error.
_WORDS: dict[Any, str] = {
    bool: "True or False",
    int: "an integer",
    float: "a number",
    str: "a string",
    os.PathLike: "a path",
    types.NoneType: "None",
    Tensor: "a Tensor",
    nn.Module: "a torch.nn.Module",
    Callable: "a callable",
    Mapping: "a mapping",
    Sequence: "a sequence",
}
#: What conversions raise.
_NO = (TypeError, ValueError, RuntimeError, OverflowError, StopIteration)
_KINDS = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


def checked(function: _Function) -> _Function:
    """A function, or the constructor of a class, that refuses arguments of undeclared types.

    Scalars of NumPy and PyTorch count as numbers, and reach the function as Python's own. What an
    annotation says that cannot be checked, such as the elements of an iterable, is not checked.

    Raises:
        InputError: An argument has another type; the message names it, and what was expected.
    """
    if isinstance(function, type):
        made: Any = function
        made.__init__ = checked(made.__init__)
        return function
    parameters = inspect.signature(function).parameters
    places = [p.name for p in parameters.values() if p.kind in _KINDS]

    @cache
    def expected() -> dict[str, Any]:
        return {name: _resolved(p.annotation, function) for name, p in parameters.items()}

    def accepted(name: str, value: Any) -> Any:
        annotation = expected().get(name, Any)
        if name == "x":  # whatever a batch may be; the errors are of its own
            return require_one_tensor(value) if annotation is Tensor else value
        try:
            return _as(annotation, value)
        except _NO as error:
            words = _words(annotation)
            raise InputError(f"{name} = {_shown(value)}; expected {words}") from error

    @wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        first = map(accepted, places, given)
        others = {name: accepted(name, value) for name, value in named.items()}
        return function(*first, *given[len(places) :], **others)

    return call  # type: ignore[return-value]


def number(name: str, value: Any) -> float:
    """``value`` as a float.

    Raises:
        InputError: It is no number.
    """
    try:
        return float(_as_number(float, value))
    except _NO as error:
        raise InputError(f"{name} = {_shown(value)}; expected a number") from error


def number_between(name: str, value: float, low: float = 0.0, high: float = 1.0) -> float:
    """``value``, which lies in ``(low, high)``.

    Raises:
        InputError: It does not, or is NaN.
    """
    if not low < value < high:
        raise InputError(f"{name} = {value}; expected a number in ({low:g}, {high:g})")
    return float(value)


def at_least(name: str, value: int, least: int = 1) -> int:
    """``value``, which is ``least`` or more.

    Raises:
        InputError: It is less.
    """
    if value < least:
        raise InputError(f"{name} = {value}; expected at least {least}")
    return value


def one_of(name: str, value: str, known: Iterable[str]) -> str:
    """``value``, which is among the ``known`` names.

    Raises:
        InputError: It is not.
    """
    if value not in known:
        raise InputError(f"{name} = {value!r}; expected one of {', '.join(known)}")
    return value


def _resolved(annotation: Any, function: Callable[..., Any]) -> Any:
    """The type that an annotation is; Any where that is known to type checkers alone."""
    names = vars(typing) | getattr(inspect.unwrap(function), "__globals__", {})
    try:
        while isinstance(annotation, str):
            annotation = eval(annotation, names)
    except (NameError, AttributeError, TypeError):
        return Any
    return Any if annotation is inspect.Parameter.empty else annotation


def _as(annotation: Any, value: Any) -> Any:
    """``value`` as what the annotation says; raises what conversions raise if it is not."""
    if annotation is Any or getattr(annotation, "_is_protocol", False):
        return value
    if annotation in (bool, int, float):
        return _as_number(annotation, value)
    if annotation in (None, types.NoneType):
        return _if(value is None, value)
    origin, members = get_origin(annotation), get_args(annotation)
    if origin is os.PathLike or getattr(annotation, "__module__", "").startswith("pathlib"):
        return _if(isinstance(value, str | os.PathLike), value)
    if isinstance(annotation, type) and not members:
        return _if(isinstance(value, annotation), value)
    if origin in (typing.Union, types.UnionType):
        return _as_any_of(members, value)
    if origin is Literal:
        return next(m for m in members if _is_same(value, m))
    if origin is tuple and members[-1] is not Ellipsis:
        _if(not isinstance(value, str) and len(value) == len(members), value)
        return tuple(map(_as, members, value))
    if origin is Sequence:
        return _as_sequence(members[0], value)
    if origin is Callable:
        return _if(callable(value), value)
    if isinstance(origin, type) and issubclass(origin, Mapping | Iterable):
        return _if(isinstance(value, origin), value)
    return value


def _as_any_of(members: Sequence[Any], value: Any) -> Any:
    """``value`` as the first member that takes it: those of which it is an instance come first."""
    for member in sorted(members, key=lambda m: not (isinstance(m, type) and type(value) is m)):
        try:
            return _as(member, value)
        except _NO:
            continue
    raise TypeError


def _as_sequence(member: Any, value: Any) -> Any:
    if isinstance(value, np.ndarray | Tensor):
        return _if(value.ndim > 0, value)
    _if(isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping), value)
    items = value if isinstance(value, Sequence) else list(value)
    converted = items if isinstance(items, range) else [_as(member, item) for item in items]
    return converted if member in (int, float) else items


def _as_number(kind: type, value: Any) -> Any:
    plain: Any = value.item() if isinstance(value, Tensor | np.ndarray | np.generic) else value
    if kind is bool:
        return _if(isinstance(plain, bool), plain)
    _if(not isinstance(plain, bool | str | bytes), plain)
    return index(plain) if kind is int else float(plain)


def _is_same(value: Any, known: Any) -> bool:
    """Whether a value is a member of a Literal: 1 and True are two of them."""
    alike = isinstance(value, type(known)) and isinstance(value, bool) == isinstance(known, bool)
    return alike and bool(value == known)


def _if(condition: bool, value: Any) -> Any:
    if not condition:
        raise TypeError
    return value


def _words(annotation: Any) -> str:
    members = get_args(annotation)
    origin = get_origin(annotation)
    if origin is Literal:
        said = [f'"{m}"' if isinstance(m, str) else str(m) for m in members]
    elif origin in (typing.Union, types.UnionType):
        said = list(dict.fromkeys(map(_words, members)))
    elif origin is tuple:
        said = [f"{len(members)} of {_words(members[0])}"]
    else:
        name = getattr(annotation, "__name__", str(annotation))
        said = [_WORDS.get(origin or annotation, f"a {name}")]
    return " or ".join([", ".join(said[:-1]), said[-1]] if len(said) > 1 else said)


def _shown(value: Any) -> str:
    """Short values as they are, of others their type."""
    text = repr(value) if isinstance(value, str | int | float | list | tuple) else ""
    return text if 0 < len(text) <= 60 else f"an object of type {type(value).__name__}"
