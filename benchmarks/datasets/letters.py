"""Letters A to Z drawn from outline fonts, grouped by font family."""

from collections.abc import Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.datasets.building import from_array
from gradood.data.image_set import ImageSet, without_duplicates
from gradood.data.optional import require
from gradood.errors import InputError

DEBIAN_FONTS = {
    "fonts-lato": Path("/usr/share/fonts/truetype/lato"),
    "fonts-open-sans": Path("/usr/share/fonts/truetype/open-sans"),
    "fonts-roboto-unhinted": Path("/usr/share/fonts/truetype/roboto"),
    "fonts-vollkorn": Path("/usr/share/fonts/truetype/vollkorn"),
}
SIZE = 20
"""Font size in pixels: the widest letter of the heaviest of these fonts still fits into 28."""


LICENCE = "CC0-1.0, drawn with fonts under OFL-1.1 and Apache-2.0, which leave drawings free"

_SUFFIXES = {".ttf", ".otf"}


def _font_files(root: str | Path | Sequence[str | Path] | None) -> list[Path]:
    if root is None:
        missing = [package for package, folder in DEBIAN_FONTS.items() if not folder.is_dir()]
        if missing:
            raise InputError(
                f"The fonts of {', '.join(missing)} are not in /usr/share/fonts/truetype. Install "
                f"them with: apt-get install {' '.join(missing)}; or pass root=<font folder>."
            )
        roots = list(DEBIAN_FONTS.values())
    else:
        roots = [Path(r) for r in ([root] if isinstance(root, str | Path) else root)]
    files = [path for folder in roots for path in folder.rglob("*") if path.suffix in _SUFFIXES]
    if not files:
        raise InputError(f"No .ttf or .otf font was found under {', '.join(map(str, roots))}.")
    # By file name, so that the order does not depend on where the fonts are installed.
    return sorted(files, key=lambda path: (path.name, str(path)))


def family(path: Path) -> str:
    """Family of a font file: its name up to the first hyphen, widths counted as one family.

    ``RobotoCondensed-BoldItalic.ttf`` and ``Roboto-Thin.ttf`` are both ``Roboto``.
    """
    return path.stem.split("-")[0].removesuffix("Condensed")


def _draw(letter: str, font: Any) -> npt.NDArray[np.uint8]:
    """White on black, the letter's bounding box centred."""
    image = require("PIL.Image").new("L", (28, 28))
    left, top, right, bottom = font.getbbox(letter)
    corner = (14 - (left + right) / 2, 14 - (top + bottom) / 2)
    require("PIL.ImageDraw").Draw(image).text(corner, letter, fill=255, font=font)
    return np.asarray(image, dtype=np.uint8)


def glyphs(root: str | Path | Sequence[str | Path] | None = None) -> ImageSet:
    """Capital letters in every font under ``root``; the groups are the font families.

    Args:
        root: A folder of .ttf or .otf files, searched with its subfolders, or several; None means
            where Debian puts fonts-lato, fonts-open-sans, fonts-roboto-unhinted and fonts-vollkorn.

    Raises:
        InputError: No fonts are there, or pillow is not installed.
    """
    image_font = require("PIL.ImageFont")
    files = _font_files(root)
    families = sorted({family(path) for path in files})
    pixels, groups, labels = [], [], []
    for path in files:
        font = image_font.truetype(str(path), SIZE)
        for label, letter in enumerate(ascii_uppercase):
            pixels.append(_draw(letter, font))
            groups.append(families.index(family(path)))
            labels.append(label)
    return without_duplicates(
        from_array(
            "glyphs",
            np.stack(pixels),
            licence=LICENCE if root is None else "depends on the fonts given",
            source=f"letters A to Z of {', '.join(families)}",
            groups=groups,
            labels=labels,
        )
    )
