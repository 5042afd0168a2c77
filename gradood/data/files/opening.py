"""Paths, or any iterable -> a source of inputs."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gradood.arguments import checked
from gradood.data.files.arrays import ArraySource
from gradood.data.files.pictures import SUFFIXES, FolderSource, picture_in
from gradood.data.files.several import Several
from gradood.data.files.shards import ShardSource
from gradood.data.files.source import Chain, IterableSource, Share, Source, Stride
from gradood.data.files.tables import TableSource
from gradood.errors import InputError
from gradood.text import printable

_TAR = (".tar", ".tar.gz", ".tgz", ".tar.xz", ".txz", ".tar.bz2", ".tbz2", ".tbz")


@checked
def open_source(
    paths: Sequence[str | os.PathLike[str]],
    *,
    column: str | Sequence[str] | None = None,
    rank: int = 0,
    world: int = 1,
) -> Source:
    """The inputs in folders of pictures, ``.npy``, ``.npz``, Parquet, tar files and pictures.

    Args:
        paths: In the order in which their inputs come.
        column: Which array, column or member is the input, where there are several. Several of
            them, or ``"argument=column"``, are given to the model by name.
        rank: Of ``world`` processes that share the inputs: of several paths every ``world``-th, of
            one file every ``world``-th input from number ``rank`` on, of one folder those that a
            hash of their names says. Each input is taken once.
        world: Number of processes.

    Raises:
        InputError: No path is given, or one does not exist or is of no known kind.
    """
    if not paths:
        raise InputError("no inputs; give folders of pictures, .npy, .npz, .parquet or .tar files")
    if not 0 <= rank < world:
        raise InputError(f"rank = {rank}, world = {world}; expected 0 <= rank < world")
    several, columns = len(paths) > 1, by_argument(column)
    parts = [_columns_of(Path(path), columns, several) for path in paths]
    if several:
        return Chain(parts[rank::world], is_share=world > 1)
    if world == 1:
        return parts[0]
    share = Share if parts[0].file() is None else Stride
    return share(parts[0], rank, world)


def as_source(inputs: Any) -> Source:
    """A ``Source`` of itself, of a path or several, or of any iterable of inputs.

    Raises:
        InputError: There is nothing there to read.
    """
    if isinstance(inputs, Source):
        return inputs
    if isinstance(inputs, str | Path):
        return open_source([inputs])
    if isinstance(inputs, bytes | dict) or not isinstance(inputs, Iterable):
        raise InputError(
            f"cannot read inputs from {type(inputs).__name__}; give a path, a Source or an "
            "iterable of pictures, arrays or tensors"
        )
    return IterableSource(inputs)


def by_argument(column: str | Sequence[str] | None) -> dict[str | None, str | None]:
    """The column of each argument of a model; None is its only one, and stands for any column."""
    given = [column] if isinstance(column, str) else list(column or ())
    if not given:
        return {None: None}
    if len(given) == 1 and not _is_named(given[0]):
        return {None: given[0]}
    found: dict[str | None, str | None] = {}
    for one in given:
        argument, _, name = one.partition("=") if _is_named(one) else (one, "", one)
        if argument in found:
            raise InputError(f"--column {argument}: this argument of the model comes twice")
        found[argument] = name
    return found


def _is_named(column: str) -> bool:
    argument, separator, _ = column.partition("=")
    return bool(separator) and argument.isidentifier()


def _columns_of(path: Path, columns: dict[str | None, str | None], several: bool) -> Source:
    parts = {name: _open(path, column, several) for name, column in columns.items()}
    if None in parts:
        return parts[None]
    if next(iter(parts.values())).file() is None:
        raise InputError(
            f"{printable(str(path))} holds one picture an input, and no columns; inputs of several "
            "tensors come from .npz, .parquet or .tar files"
        )
    return Several({str(name): part for name, part in parts.items()})


def _open(path: Path, column: str | None, several: bool) -> Source:
    if path.is_dir():
        return FolderSource(path, f"{path}/" if several else "")
    name = path.name.lower()
    try:
        path.stat()
    except OSError as error:
        raise InputError(
            f"{printable(str(path))} "
            + (
                "does not exist"
                if isinstance(error, FileNotFoundError)
                else f"cannot be read ({error.strerror})"
            )
        ) from error
    if name.endswith((".npy", ".npz")):
        return ArraySource(path, column)
    if name.endswith((".parquet", ".pq")):
        return TableSource(path, column)
    if name.endswith(_TAR):
        return ShardSource(path, column)
    if path.suffix.lower() in SUFFIXES:
        return IterableSource([(printable(str(path)), str(path))], read=picture_in)
    raise InputError(
        f"{printable(str(path))} is of no known kind; give folders of pictures, .npy, .npz, "
        ".parquet or .tar files"
    )
