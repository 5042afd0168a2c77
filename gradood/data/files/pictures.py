"""Pictures in folders, and pictures from bytes of unknown origin."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from gradood.data.files.source import Item, LeftOut, Source, broken
from gradood.data.optional import require
from gradood.errors import InputError
from gradood.text import printable

if TYPE_CHECKING:
    from PIL.Image import Image

#: Endings of pictures; other files in a folder are left out.
SUFFIXES = frozenset(
    (".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".bmp", ".dib", ".gif", ".pbm")
    + (".pgm", ".ppm", ".pnm", ".pfm", ".tif", ".tiff", ".webp")
)
#: Formats that Pillow decodes by itself: others, such as EPS, start other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "DIB", "GIF", "PPM", "TIFF", "WEBP")
#: Pixels of the largest picture: 10 000 x 10 000.
LARGEST_PICTURE = 100_000_000
#: Bytes that a pixel takes while it is decoded and converted, at most.
_PIXEL = 8


class FolderSource(Source):
    """All pictures in a folder and the folders in it, by name; links are followed.

    Args:
        folder: Identifiers are paths relative to it.
        prefix: Put before every identifier.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self._folder, self._prefix = folder, prefix
        self._count: int | None = None

    def items(self, start: int = 0) -> Iterator[Item]:
        left_out = LeftOut(printable(str(self._folder)))
        number = -1
        for number, (relative, found) in enumerate(self._walk(left_out)):
            if number >= start:
                name = printable(self._prefix + relative)
                if isinstance(found, OSError):
                    yield broken(name, _said(found))
                else:
                    yield Item(name, partial(picture_in, found))
        if number < 0 == start:
            name = printable(self._prefix or str(self._folder))
            known = ", ".join(sorted(SUFFIXES))
            yield broken(name, f"the folder holds no pictures; their names end in {known}")
        left_out.log()

    def count(self) -> int:
        if self._count is None:
            self._count = sum(1 for _ in self._walk(LeftOut(""))) or 1
        return self._count

    def _walk(self, left_out: LeftOut) -> Iterator[tuple[str, str | OSError]]:
        return _walk(str(self._folder), "", (), left_out)


def _walk(
    folder: str, relative: str, above: tuple[tuple[int, int], ...], left_out: LeftOut
) -> Iterator[tuple[str, str | OSError]]:
    """Names and paths of pictures below ``folder``; ``above`` are the folders that it lies in."""
    try:
        status = os.stat(folder)
        here = (status.st_dev, status.st_ino)
        if here in above:
            left_out.add(relative, "links to folders that they lie in")
            return
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        yield relative or folder, error
        return
    for entry in entries:
        name = f"{relative}/{entry.name}" if relative else entry.name
        ending = os.path.splitext(entry.name)[1].lower()
        if _is_folder(entry):
            yield from _walk(entry.path, name, (*above, here), left_out)
        elif ending in SUFFIXES:
            yield name, entry.path
        else:
            left_out.add(name, f"{ending} files" if ending else "files whose names have no ending")


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def picture_in(path: str) -> Image:
    """The picture in a file."""
    try:
        # Reading a pipe would block, reading a device would not end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError("it is no regular file")
        with open(path, "rb") as file:
            return picture_from(file)
    except OSError as error:
        raise InputError(_said(error)) from error


class Room:
    """So many bytes for pictures that are decoded at the same time: one alone always has enough."""

    def __init__(self, size: int) -> None:
        self._size = self._left = size
        self._changed = threading.Condition()
        self._own = threading.local()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Pictures that this thread decodes inside wait until there is room for them."""
        self._own.taken = 0
        try:
            yield
        finally:
            with self._changed:
                self._left += self._own.taken
                self._changed.notify_all()
            del self._own.taken

    def take(self, size: int) -> None:
        """Wait for room that is given back at the end of ``shared``; outside it, do not wait."""
        if getattr(self._own, "taken", None) == 0:
            size = min(size, self._size)
            with self._changed:
                self._changed.wait_for(lambda: self._left >= size)
                self._left -= size
            self._own.taken = size


#: Shared by all threads that read.
ROOM = Room(512 << 20)


def picture_from(file: IO[bytes]) -> Image:
    """The picture, or the first of several, that a file holds, decoded.

    As it is stored: an orientation in its metadata (EXIF) is not applied, as in torchvision.
    """
    pillow = require("PIL.Image", "data", "Reading pictures")
    try:
        image: Image = pillow.open(file, formats=_FORMATS)
        if image.width * image.height > LARGEST_PICTURE:
            raise InputError(
                f"{image.width} x {image.height} pixels, at most {LARGEST_PICTURE:,} are read"
            )
        ROOM.take(image.width * image.height * _PIXEL)
        image.load()
        return _eight_bits(image)
    except InputError:
        raise
    except Exception as error:  # Pillow raises a dozen kinds for damaged files
        reason = str(error) if not isinstance(error, pillow.UnidentifiedImageError) else ""
        raise InputError(
            f"no readable picture ({printable(reason) or 'unknown format'}); expected "
            f"{', '.join(_FORMATS)}"
        ) from error


def _eight_bits(image: Image) -> Image:
    """Pixels of 8 bits a channel, which is what conversions between modes expect."""
    # Pillow spreads the values of PGM over 16 bits, and reads PNG of 16 bits as 32 in old versions.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        pillow = require("PIL.Image")
        converted: Image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return converted
    if image.mode in ("I", "F"):
        raise InputError(f"pixels of 32 bits (mode {image.mode}); expected 8 or 16")
    # Conversions from a palette drop its transparency, with a warning, unless it goes this way.
    return image.convert("RGBA") if "transparency" in image.info else image


def _said(error: OSError) -> str:
    return f"cannot be read ({error.strerror or error})"
