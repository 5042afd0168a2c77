"""Rows of score files: JSON lines or Parquet, written by ``gradood score`` or by others."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from gradood.data.optional import require
from gradood.errors import InputError

#: All fields of a row.
COLUMNS = ("id", "score", "decision", "layers", "error")
#: Rows of one group of a Parquet file, which are in memory to write it.
_GROUP = 16_384
#: Names whose ends ask for a format that scores are not written in.
_OTHERS = frozenset(
    (".csv", ".tsv", ".txt", ".xls", ".xlsx", ".ods", ".xml", ".html", ".yaml", ".yml", ".feather")
    + (".arrow", ".ipc", ".orc", ".avro", ".npy", ".npz", ".h5", ".hdf5", ".pkl", ".pickle", ".pt")
    + (".safetensors", ".tar", ".zip", ".gz", ".bz2", ".xz", ".zst", ".db", ".sqlite", ".png")
)


def check_format(path: Path) -> None:
    """Refuse a file name whose ending belongs to a format that scores are not written in."""
    if path.suffix.lower() in _OTHERS:
        raise InputError(
            f"scores are not written as {path.suffix}; --out takes .jsonl (JSON lines) or .parquet"
        )


def is_parquet(path: Path) -> bool:
    """Whether a file of this name holds Parquet."""
    return path.suffix.lower() in (".parquet", ".pq")


def is_score_file(path: Path) -> bool:
    """Whether a file holds scores rather than inputs, by what is in it."""
    if path.suffix.lower() in (".jsonl", ".json", ".ndjson"):
        return True
    if not path.is_file():
        return False
    if is_parquet(path):
        parquet = require("pyarrow.parquet", "files", "Reading Parquet")
        try:
            with open(path, "rb") as raw:
                return {"id", "score", "error"} <= set(parquet.read_schema(raw).names)
        except (OSError, ValueError):  # of Arrow's: whoever reads it will say what is wrong
            return False
    try:
        with open(path, "rb") as file:
            return file.read(64).lstrip().startswith(b"{")
    except OSError:
        return False


def read_rows(
    path: Path, columns: Sequence[str] = ("id", "score", "error")
) -> Iterator[dict[str, Any]]:
    """The rows of a finished score file, one at a time."""
    try:
        for number, row in enumerate(_rows(path, columns), 1):
            _check(row, number)
            yield row
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise InputError(f"cannot read scores from {path}: {_said(error)}") from error


def parsed(lines: Iterable[str], name: str) -> Iterator[dict[str, Any]]:
    """Rows of JSON lines as they come, or of bare numbers, which are scores."""
    number = 0
    try:
        for number, line in enumerate(lines, 1):
            row = json.loads(line)
            row = row if isinstance(row, dict) else {"score": row}
            _check({"score": row["score"], "id": row.get("id", "")}, number)
            yield row
    except (ValueError, LookupError, TypeError) as error:
        raise InputError(f"{name}, line {number}: {_said(error)}") from error


def read_ids(path: Path, size: int | None = None) -> Iterator[str]:
    """The identifiers in a score file, or in the first ``size`` bytes of one in the making."""
    if size is None:
        yield from (row["id"] for row in read_rows(path, ("id",)))
        return
    with open(path, "rb") as lines:
        while lines.tell() < size and (line := lines.readline()):
            yield json.loads(line)["id"]


def to_parquet(source: Path, target: Path) -> None:
    """JSON lines as Parquet."""
    arrow = require("pyarrow", "files", "Writing Parquet")
    parquet = require("pyarrow.parquet", "files", "Writing Parquet")
    layer = arrow.struct([("name", arrow.string()), ("deviation", arrow.float32())])
    fields = [
        ("id", arrow.string()),
        ("score", arrow.float32()),
        ("decision", arrow.int8()),
        ("layers", arrow.list_(layer)),
        ("error", arrow.string()),
    ]
    with open(source, encoding="utf-8") as lines:
        if "p_value" in json.loads(next(lines, "{}")):
            fields.append(("p_value", arrow.float64()))
    schema = arrow.schema(fields)
    with (
        open(target, "wb") as raw,  # by us, since Arrow takes names of UTF-8 alone
        parquet.ParquetWriter(raw, schema) as writer,
        open(source, encoding="utf-8") as lines,
    ):
        while group := [json.loads(line) for line in islice(lines, _GROUP)]:
            writer.write_table(arrow.Table.from_pylist(group, schema))


def _rows(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    if is_parquet(path):
        parquet = require("pyarrow.parquet", "files", "Reading Parquet")
        with open(path, "rb") as raw, parquet.ParquetFile(raw) as file:
            for batch in file.iter_batches(_GROUP, columns=list(columns)):
                yield from batch.to_pylist()
        return
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            yield {
                name: row[name] if name in ("id", "score") else row.get(name) for name in columns
            }


def _check(row: dict[str, Any], number: int) -> None:
    if not isinstance(row.get("id", ""), str):
        raise ValueError(f"the id of row {number} is {row['id']!r}, expected text")
    score = row.get("score")
    if score is None:
        return
    if isinstance(score, bool) or not isinstance(score, int | float) or math.isnan(score):
        raise ValueError(f"the score of row {number} is {score!r}, expected a number or null")


def _said(error: Exception) -> str:
    if isinstance(error, LookupError):
        return f"a row has no {error}"
    return str(getattr(error, "strerror", None) or error)
