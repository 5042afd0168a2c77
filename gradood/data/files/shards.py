"""WebDataset shards: tar files of pictures or arrays, read once from front to back."""

from __future__ import annotations

import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gradood.data.files.pictures import SUFFIXES, picture_from
from gradood.data.files.source import LARGEST, Item, Source, broken, printable


class ShardSource(Source):
    """The samples of one tar file, plain or compressed; nothing is unpacked to disk.

    Args:
        path: Of the tar file. A sample is the members with one name before the first dot.
        column: Which member of a sample is the input, by what follows that dot, such as ``"jpg"``
            or ``"left.png"``; None for whichever is a picture or ``npy``.
    """

    def __init__(self, path: Path, column: str | None = None) -> None:
        self._path, self._column = path, column

    def file(self) -> Path:
        """The path."""
        return self._path

    def items(self, start: int = 0) -> Iterator[Item]:
        """One item a sample, identified by the shard and the sample's name."""
        shard, number = printable(str(self._path)), 0
        try:
            if not self._path.is_file():
                raise OSError("there is no such file")
            with tarfile.open(self._path, "r|*") as archive:
                for member in archive:
                    if member.size > LARGEST:  # to pass over it would take for ever
                        raise tarfile.ReadError(f"a member claims {member.size:,} bytes")
                    kind = self._kind(member.name)
                    if kind is None or member.isdir():
                        continue
                    number += 1
                    if number > start:
                        yield _item(archive, member, kind, shard)
        except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
            reason = f"the shard cannot be read on after {number} samples ({error})"
            if number >= start:
                yield broken(shard, reason)
            return
        if number == start == 0:
            yield broken(shard, "the shard holds no inputs; pictures or .npy, or name --column")

    def _kind(self, name: str) -> str | None:
        """What follows the first dot of the name, if that is an input's."""
        kind = PurePosixPath(name).name.partition(".")[2].lower()
        if self._column is not None:
            return kind if kind == self._column.lower() else None
        return kind if kind == "npy" or f".{kind}" in SUFFIXES else None


def _item(archive: tarfile.TarFile, member: tarfile.TarInfo, kind: str, shard: str) -> Item:
    path = PurePosixPath(member.name)
    name = f"{shard}:{printable(str(path.parent / path.name.partition('.')[0]))}"
    if path.is_absolute() or ".." in path.parts:
        return broken(name, "its name leads out of the shard")
    if not member.isreg():
        return broken(name, "it is a link or a device, not a file")
    file = archive.extractfile(member)
    content = file.read() if file is not None else b""
    if len(content) < member.size:
        raise tarfile.ReadError("unexpected end of data")
    read = _array if os.path.splitext(kind)[1].lower() == ".npy" or kind == "npy" else _picture
    return Item(name, partial(read, content))


def _picture(content: bytes) -> Any:
    return picture_from(io.BytesIO(content))


def _array(content: bytes) -> Any:
    return np.load(io.BytesIO(content), allow_pickle=False)
