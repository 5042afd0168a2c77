"""Arrays in ``.npy`` and ``.npz`` files, a row at a time."""

from __future__ import annotations

import os
import threading
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from gradood.data.files.source import LARGEST, Item, Source, broken, itself
from gradood.errors import InputError
from gradood.text import printable

#: Held while NumPy reads a header, as Python: two threads at once may fail in CPython 3.11 ("AST
#: constructor recursion depth mismatch").
HEADERS = threading.Lock()
_DAMAGES = (InputError, OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError)


class ArraySource(Source):
    """The rows ``[i]`` of the arrays ``[N, …]`` that a file holds one after another.

    The file is never in memory as a whole.

    Args:
        path: ``.npy``, or ``.npz`` whose only array, or array ``column``, is read.
        column: Name of an array in ``.npz``.
    """

    def __init__(self, path: Path, column: str | None = None) -> None:
        self._path, self._column = path, column

    def file(self) -> Path:
        return self._path

    def items(self, start: int = 0) -> Iterator[Item]:
        name, number = printable(str(self._path)), 0
        try:
            with self._opened() as file:
                for shape, dtype in _arrays(file):
                    size, first = _row_size(shape, dtype), number
                    for number in range(first, first + shape[0]):
                        row = bytearray(size)
                        if _fill(file, row) < size:
                            of = f"{number - first} of {shape[0]}"
                            raise InputError(f"the file ends after {of} rows")
                        if number >= start:
                            array = np.frombuffer(row, dtype).reshape(shape[1:])
                            yield Item(f"{name}:{number}", partial(itself, array), size)
                    number = first + shape[0]  # what is wrong after it comes after all rows
        except _DAMAGES as error:
            if number >= start:
                yield broken(f"{name}:{number}" if number else name, f"cannot be read ({error})")

    def count(self) -> int | None:
        rows = 0
        try:
            with self._opened() as file:
                for shape, dtype in _arrays(file):
                    rows += int(shape[0])
                    file.seek(int(shape[0]) * _row_size(shape, dtype), os.SEEK_CUR)
        except _DAMAGES:
            return None
        return rows

    @contextmanager
    def _opened(self) -> Iterator[IO[bytes]]:
        if not self._path.is_file():
            raise InputError("there is no such file")
        if not zipfile.is_zipfile(self._path):
            with open(self._path, "rb") as file:
                yield file
            return
        with zipfile.ZipFile(self._path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            chosen = self._column or (names[0] if len(names) == 1 else None)
            if names.count(chosen or "") != 1:
                raise InputError(f"name one of its arrays as --column: {', '.join(names[:20])}")
            with archive.open(f"{chosen}.npy") as member:
                yield member


def _arrays(file: IO[bytes]) -> Iterator[tuple[tuple[int, ...], np.dtype[Any]]]:
    """The header of every array in a file; the rows must be read before the next one."""
    while True:
        begin = file.tell()
        if begin and not file.read(1):
            return
        file.seek(begin)
        try:
            yield _header(file)
        except InputError as error:
            if begin:
                raise InputError(f"after the array there is something else: {error}") from error
            raise


def _row_size(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    return int(np.prod(shape[1:])) * dtype.itemsize


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        with HEADERS:
            shape, fortran, dtype = read(file)
    except Exception as error:  # headers are parsed as Python, and fail in many ways
        raise InputError(f"it is no array of NumPy: {error}") from error
    if dtype.hasobject:
        raise InputError("it holds Python objects, and pickles are never loaded")
    if dtype.kind not in "fiub":
        raise InputError(f"it holds {dtype}, expected numbers")
    if not shape or any(side < 0 for side in shape):
        raise InputError(f"its shape is {shape}; expected rows, [N, …]")
    if fortran and len(shape) > 1:
        raise InputError("its rows are not contiguous; save numpy.ascontiguousarray(array)")
    if int(np.prod(shape[1:], dtype=object)) * dtype.itemsize > LARGEST:
        raise InputError(f"a row of shape {shape[1:]} is larger than {LARGEST:,} bytes")
    return shape, dtype


def _fill(file: IO[bytes], row: bytearray) -> int:
    """Read until ``row`` is full or the file ends; how many bytes were there."""
    view, done = memoryview(row), 0
    while done < len(row):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            break
        done += count
    return done
