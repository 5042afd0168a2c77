"""Parquet files of pictures or arrays, a few rows at a time."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradood.data.files.pictures import picture_from
from gradood.data.files.source import Item, Source, broken
from gradood.data.optional import require
from gradood.errors import InputError
from gradood.text import printable

#: Names of input columns and of identifiers, in order of preference.
_INPUTS = ("image", "input", "x", "pixels", "array", "features", "jpg", "png")
_IDENTIFIERS = ("id", "path", "name", "key", "__key__")
_ROWS = 64


class TableSource(Source):
    """The rows of one Parquet file.

    Args:
        path: Of the file. A row's input is an encoded picture (bytes, or a structure with
            ``bytes`` as ``datasets`` writes it) or a list of numbers, nested for more dimensions.
        column: Holds the inputs; None for the first that is named image, input, x …
    """

    def __init__(self, path: Path, column: str | None = None) -> None:
        self._path, self._column = path, column

    def file(self) -> Path:
        return self._path

    def items(self, start: int = 0) -> Iterator[Item]:
        arrow, parquet = _arrow()
        name, number = printable(str(self._path)), 0
        try:
            # Opened here, since Arrow takes names of UTF-8 alone.
            with open(self._path, "rb") as raw, parquet.ParquetFile(raw) as file:
                column, identifier = self._columns(file.schema_arrow)
                read = partial(_value, shape=_shape(file.schema_arrow.field(column)))
                groups, number = _from(file.metadata, start)
                chosen = [column] if identifier is None else [column, identifier]
                for batch in file.iter_batches(_ROWS, row_groups=groups, columns=chosen):
                    for row in range(batch.num_rows):
                        if number >= start:
                            named = f"{name}:{number}"
                            if identifier is not None and batch[identifier][row].is_valid:
                                named = printable(str(batch[identifier][row].as_py()))
                            yield Item(named, partial(read, batch[column][row]))
                        number += 1
        except (InputError, OSError, arrow.ArrowException) as error:
            if number >= start:
                yield broken(f"{name}:{number}" if number else name, f"cannot be read ({error})")

    def count(self) -> int | None:
        arrow, parquet = _arrow()
        try:
            with open(self._path, "rb") as raw:
                return int(parquet.read_metadata(raw).num_rows)
        except (OSError, arrow.ArrowException):
            return None

    def _columns(self, schema: Any) -> tuple[str, str | None]:
        names = schema.names
        wanted = _INPUTS if self._column is None else (self._column,)
        column = next((name for name in wanted if name in names), None)
        if column is None:
            raise InputError(f"name its input as --column: {', '.join(names[:20])}")
        if names.count(column) > 1:
            raise InputError(f"{names.count(column)} of its columns are called {column}")
        naming = (name for name in _IDENTIFIERS if names.count(name) == 1 and name != column)
        kinds = ("string", "large_string", "string_view", "int", "uint")  # bytes are no names
        return column, next(
            (n for n in naming if str(schema.field(n).type).startswith(kinds)), None
        )


def _arrow() -> tuple[Any, Any]:
    what = "Reading and writing Parquet"
    return require("pyarrow", "files", what), require("pyarrow.parquet", "files", what)


def _from(metadata: Any, start: int) -> tuple[list[int], int]:
    """The row groups that hold row ``start`` and those after, and the number of their first row."""
    first = group = 0
    while (
        group < metadata.num_row_groups - 1 and first + metadata.row_group(group).num_rows <= start
    ):
        first += metadata.row_group(group).num_rows
        group += 1
    return list(range(group, metadata.num_row_groups)), first


def _shape(field: Any) -> list[int] | None:
    """The shape of every tensor in a column of Ray's, which is read without Ray as flat lists."""
    metadata = field.metadata or {}
    if not metadata.get(b"ARROW:extension:name", b"").startswith(b"ray.data.arrow_tensor"):
        return None
    found = json.loads(metadata[b"ARROW:extension:metadata"])
    return list(found["shape"] if isinstance(found, dict) else found)


def _value(scalar: Any, shape: list[int] | None = None) -> Any:
    """What one row holds: a picture, encoded or not, or numbers."""
    kind = scalar.type
    shape = getattr(kind, "shape", None) or shape  # of a tensor of a fixed shape
    order = getattr(kind, "permutation", None)
    if hasattr(kind, "storage_type"):
        scalar, kind = scalar.value, kind.storage_type
    content = None if scalar is None else scalar.as_py()
    if isinstance(content, dict):
        if {"data", "shape"} <= content.keys():  # Ray's tensors of many shapes
            kind, shape, content = kind.field("data").type, content["shape"], content["data"]
        else:
            content = content.get("bytes")
    if content is None:
        raise InputError("the row has no input")
    if isinstance(content, bytes):
        return picture_from(io.BytesIO(content))
    array = _array(content, kind)
    if shape is not None:
        array = array.reshape(list(shape))
        array = array if order is None else array.transpose(order)
    # Lists come as Python's floats; models take float32, which they were saved as.
    return array.astype(np.float32) if array.dtype == np.float64 else array


def _array(content: Any, kind: Any) -> np.ndarray[Any, Any]:
    """Nested lists as an array of what Arrow says is in them."""
    while hasattr(kind, "value_type"):
        kind = kind.value_type
    kind = getattr(kind, "storage_type", kind)
    try:
        wanted = np.dtype(kind.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        wanted = np.dtype(object)
    if wanted.kind not in "fiub":
        raise InputError(f"the row holds {kind}, not a picture or numbers alike")
    try:
        return np.asarray(content, wanted)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the row holds no array of numbers ({error})") from error
