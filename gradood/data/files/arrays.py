"""Arrays in ``.npy`` and ``.npz`` files, a row at a time."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy

from gradood.data.files.source import LARGEST, Item, Source, broken, printable
from gradood.errors import InputError


class ArraySource(Source):
    """The rows ``[i]`` of one array ``[N, …]``; the file is never in memory as a whole.

    Args:
        path: ``.npy``, or ``.npz`` whose only array, or array ``column``, is read.
        column: Name of an array in ``.npz``.
    """

    def __init__(self, path: Path, column: str | None = None) -> None:
        self._path, self._column = path, column

    def file(self) -> Path:
        """The path."""
        return self._path

    def items(self, start: int = 0) -> Iterator[Item]:
        """One item a row, identified by the file and the number."""
        name, number = printable(str(self._path)), 0
        try:
            with self._opened() as (file, shape, dtype):
                size = int(np.prod(shape[1:])) * dtype.itemsize
                for number in range(shape[0]):
                    row = bytearray(size)
                    if _fill(file, row) < size:
                        raise InputError(f"the file ends after {number} of {shape[0]} rows")
                    if number >= start:
                        array = np.frombuffer(row, dtype).reshape(shape[1:])
                        yield Item(f"{name}:{number}", partial(_native, array))
                number = shape[0]  # what is wrong at the very end comes after all rows
        except (InputError, OSError, zipfile.BadZipFile, zlib.error, EOFError) as error:
            if number >= start:
                yield broken(f"{name}:{number}" if number else name, f"cannot be read ({error})")

    def count(self) -> int | None:
        """Rows, by the header."""
        try:
            with self._opened() as (_, shape, _):
                return int(shape[0])
        except (InputError, OSError, zipfile.BadZipFile, zlib.error, EOFError):
            return None

    @contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype[Any]]]:
        """The open file after its header, and what the header says."""
        if not self._path.is_file():
            raise InputError("there is no such file")
        if not zipfile.is_zipfile(self._path):
            with open(self._path, "rb") as file:
                yield (file, *_header(file))
            return
        with zipfile.ZipFile(self._path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            chosen = self._column or (names[0] if len(names) == 1 else None)
            if chosen not in names:
                raise InputError(f"name one of its arrays as --column: {', '.join(names[:20])}")
            with archive.open(f"{chosen}.npy") as member:
                yield (member, *_header(member))


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = npy.read_magic(file)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
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


def _native(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return array.astype(array.dtype.newbyteorder("="), copy=False)
