"""Pictures in folders, and pictures from bytes of unknown origin."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from gradood.data.files.source import Item, Source, broken, printable
from gradood.data.optional import require
from gradood.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

#: By the ends of their names; other files in a folder are no inputs.
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".pbm", ".pgm", ".ppm", ".tif", ".tiff", ".webp"}
)
#: Formats that Pillow decodes by itself: others, such as EPS, start other programs.
_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
#: Pixels of the largest picture: 10 000 x 10 000.
LARGEST_PICTURE = 100_000_000


class FolderSource(Source):
    """All pictures in a folder and the folders in it, by name; links to folders are not followed.

    Args:
        folder: Identifiers are paths relative to it.
        prefix: Put before every identifier.
    """

    def __init__(self, folder: Path, prefix: str = "") -> None:
        self._folder, self._prefix = folder, prefix
        self._count: int | None = None

    def items(self, start: int = 0) -> Iterator[Item]:
        """One item a picture."""
        number = -1
        for number, (relative, found) in enumerate(self._walk(str(self._folder), "")):
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

    def count(self) -> int:
        """Pictures in the folder, counted once."""
        if self._count is None:
            self._count = sum(1 for _ in self._walk(str(self._folder), "")) or 1
        return self._count

    def _walk(self, folder: str, relative: str) -> Iterator[tuple[str, str | OSError]]:
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            yield relative or folder, error
            return
        for entry in entries:
            name = f"{relative}/{entry.name}" if relative else entry.name
            if entry.is_dir(follow_symlinks=False):
                yield from self._walk(entry.path, name)
            elif os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                yield name, entry.path


class PictureSource(Source):
    """One picture."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def items(self, start: int = 0) -> Iterator[Item]:
        """The picture."""
        path = str(self._path)
        yield from [Item(printable(path), partial(picture_in, path))][start:]

    def count(self) -> int:
        """One."""
        return 1


def picture_in(path: str) -> Image:
    """The picture in a file.

    Raises:
        InputError: There is none that can be read.
    """
    try:
        # A pipe would be waited for, a device read for ever.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise InputError("it is no regular file")
        with open(path, "rb") as file:
            return picture_from(file)
    except OSError as error:
        raise InputError(_said(error)) from error


def picture_from(file: IO[bytes]) -> Image:
    """The picture, or the first of several, that a file holds, decoded.

    Raises:
        InputError: It is damaged, huge, or of a kind that is not read.
    """
    pillow = require("PIL.Image", "data", "Reading pictures")
    try:
        image: Image = pillow.open(file, formats=_FORMATS)
        if image.width * image.height > LARGEST_PICTURE:
            raise InputError(
                f"{image.width} x {image.height} pixels, at most {LARGEST_PICTURE:,} are read"
            )
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
    if image.mode.startswith("I;16"):
        pillow = require("PIL.Image")
        converted: Image = pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        return converted
    if image.mode in ("I", "F"):
        raise InputError(f"pixels of 32 bits (mode {image.mode}); expected 8 or 16")
    # Conversions from a palette drop its transparency, with a warning, unless it goes this way.
    return image.convert("RGBA") if "transparency" in image.info else image


def _said(error: OSError) -> str:
    return f"cannot be read ({error.strerror or error})"
