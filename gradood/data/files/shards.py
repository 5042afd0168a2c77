"""WebDataset shards: tar files of pictures or arrays, read once from front to back."""

from __future__ import annotations

import bz2
import gzip
import io
import logging
import lzma
import os
import tarfile
import zlib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from functools import partial
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import numpy as np

from gradood.data.files.arrays import HEADERS
from gradood.data.files.pictures import SUFFIXES, picture_from
from gradood.data.files.source import LARGEST, Item, LeftOut, Source, broken
from gradood.text import printable

_LOG = logging.getLogger("gradood")
_DAMAGES = (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError, ValueError)
#: First bytes of compressed files, and what reads them, several streams in a row included.
_COMPRESSED = ((b"\x1f\x8b", gzip.open), (b"BZh", bz2.open), (b"\xfd7zXZ", lzma.open))


class Member(NamedTuple):
    """One file in a tar file, read where it may be an input.

    Attributes:
        key: Name of its sample: up to the first dot.
        kind: What follows that dot.
        path: Its name.
        content: What it holds, or None if it is no input.
        problem: Why it is none, though it looks like one.
        damage: Instead of all this, why nothing can be read from here on.
    """

    key: str
    kind: str
    path: str
    content: bytes | None
    problem: str | None
    damage: Exception | None = None


class ShardSource(Source):
    """The samples of one tar file, plain or compressed, or of several one after another in it.

    Nothing is unpacked to disk.

    Args:
        path: Of the tar file. A sample is the consecutive members with one name up to the first
            dot.
        column: Which member of a sample is the input, by what follows that dot, such as ``"jpg"``
            or ``"left.png"``; a pattern such as ``"*.png"`` makes a sample of every member that
            matches. None for the only picture or ``npy`` of a sample; several are an error.
    """

    def __init__(self, path: Path, column: str | None = None) -> None:
        self._path, self._column = path, None if column is None else column.lower()

    def file(self) -> Path:
        return self._path

    def items(self, start: int = 0) -> Iterator[Item]:
        shard, number = printable(str(self._path)), 0
        left_out = LeftOut(shard)
        for _, sample in groupby(self._members(), lambda member: (member.key, member.damage)):
            for item in self._items(shard, sample, number, left_out):
                number += 1
                if number > start:
                    yield item
        if number == start == 0:
            yield broken(shard, "the shard holds no inputs; pictures or .npy, or name --column")
        left_out.log()

    def _items(
        self, shard: str, sample: Iterator[Member], before: int, left_out: LeftOut
    ) -> Iterator[Item]:
        chosen: list[Member] = []
        others: list[Member] = []
        for member in sample:
            if member.damage is not None:
                reason = f"the shard cannot be read on after {before} samples ({member.damage})"
                yield broken(shard, reason)
            elif member.content is None and member.problem is None:
                others.append(member)
            else:  # of several none is read, so none but the first is kept
                chosen.append(member._replace(content=b"") if chosen else member)
        for member in others if not chosen else ():
            left_out.add(member.path, f".{member.kind} files" if member.kind else "files")
        for member in chosen:
            name = printable(member.key if len(chosen) == 1 else member.path)
            if member.problem is not None or member.content is None:
                yield broken(f"{shard}:{name}", member.problem or "")
            elif len(chosen) == 1:
                read = _array if member.path.lower().endswith(".npy") else _picture
                content = member.content
                yield Item(f"{shard}:{name}", partial(read, content), len(content))
            else:
                kinds = ", ".join(other.kind for other in chosen[:5])
                yield broken(
                    f"{shard}:{name}",
                    f"its sample holds several inputs ({kinds}); name one as --column, or all as "
                    f'--column "*{os.path.splitext(name)[1]}" if each is a sample of its own',
                )

    def _members(self) -> Iterator[Member]:
        """All readable members, and after them an error of the file."""
        try:
            yield from self._sound_members()
        except _DAMAGES as error:
            yield Member("", "", "", None, None, error)

    def _sound_members(self) -> Iterator[Member]:
        if not self._path.is_file():
            raise OSError("there is no such file")
        with _opened(self._path) as file:
            for archive in _archives(self._path, file):
                while (member := archive.next()) is not None:
                    archive.members.clear()  # type: ignore[attr-defined]  # of which none is read again
                    if member.size > LARGEST:  # to pass over it would take for ever
                        raise tarfile.ReadError(f"a member claims {member.size:,} bytes")
                    if not member.isdir():
                        yield self._read(archive, member)

    def _read(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> Member:
        path = PurePosixPath(member.name)
        first, _, rest = path.name[1:].partition(".")  # a name may begin with a dot
        key, kind = str(path.parent / (path.name[:1] + first)), rest.lower()
        if self._column is not None and "*" in self._column:
            key = str(path)
        content = problem = None
        if self._is_input(kind):
            if path.is_absolute() or ".." in path.parts:
                problem = "its name leads out of the shard"
            elif not member.isreg():
                problem = "it is a link or a device, not a file"
            else:
                file = archive.extractfile(member)
                content = file.read() if file is not None else b""
                if len(content) < member.size:
                    raise tarfile.ReadError("unexpected end of data")
        return Member(key, kind, str(path), content, problem)

    def _is_input(self, kind: str) -> bool:
        if self._column is not None:
            return kind == self._column or fnmatchcase(f".{kind}", self._column)
        ending = os.path.splitext(f"x.{kind}")[1]
        return ending == ".npy" or ending in SUFFIXES


def _opened(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        begin = file.read(6)
    for magic, read in _COMPRESSED:
        if begin.startswith(magic):
            return read(path, "rb")  # type: ignore[return-value]
    return open(path, "rb")


def _archives(path: Path, file: IO[bytes]) -> Iterator[tarfile.TarFile]:
    """The archives that lie one after another in a file; each must be read before the next."""
    while True:
        begin = file.tell()
        archive = tarfile.TarFile(fileobj=file, errorlevel=1)
        if begin > 0 and archive.firstmember is None:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"from byte {begin:,} on it is damaged, or no archive")
        yield archive
        file.seek(archive.offset)
        block = file.read(tarfile.BLOCKSIZE)
        if not block:
            _LOG.warning("%s has no end mark: it may have been cut short", printable(str(path)))
        while block and not block.strip(b"\0"):
            block = file.read(tarfile.BLOCKSIZE)
        if not block:
            return
        file.seek(-len(block), io.SEEK_CUR)


def _picture(content: bytes) -> Any:
    return picture_from(io.BytesIO(content))


def _array(content: bytes) -> Any:
    with HEADERS:
        return np.load(io.BytesIO(content), allow_pickle=False)
