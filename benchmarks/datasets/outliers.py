"""Outliers to train on: scripts, icons and shapes that no test set is made of."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.datasets.building import from_array
from gradood.data.image_set import ImageSet, without_duplicates
from gradood.data.optional import require
from gradood.errors import InputError

DEBIAN_FONTS = {
    "fonts-noto-core": "truetype/noto",
    "fonts-font-awesome": "opentype/font-awesome",
    "fonts-materialdesignicons-webfont": "truetype/materialdesignicons-webfont",
}
"""Where Debian puts the fonts, below ``/usr/share/fonts``."""

_ROOT = Path("/usr/share/fonts")
_NO_SCRIPTS = ("NotoSans-", "NotoSansDisplay", "NotoSerif-", "NotoSerifDisplay", "NotoSansMath")
"""Fonts of Latin, Greek and Cyrillic."""

_FIRST_CHARACTER = 0x0530
"""Latin, Greek and Cyrillic letters come before it, Armenian first after it."""


def _font_files(root: Path) -> list[Path]:
    missing = [name for name, folder in DEBIAN_FONTS.items() if not (root / folder).is_dir()]
    if missing:
        raise InputError(
            f"The fonts of {', '.join(missing)} are not in {root}. Install them with: apt-get "
            f"install {' '.join(missing)}"
        )
    files = [p for folder in DEBIAN_FONTS.values() for p in (root / folder).glob("*-Regular.ttf")]
    files += [p for folder in DEBIAN_FONTS.values() for p in (root / folder).glob("*[a-z].[ot]tf")]
    kept = {path for path in files if not path.name.startswith(_NO_SCRIPTS)}
    return sorted(
        (p for p in kept if "-" not in p.name or "Regular" in p.name), key=lambda p: p.name
    )


def _draw(character: str, font: Any) -> npt.NDArray[np.uint8]:
    image = require("PIL.Image").new("L", (28, 28))
    left, top, right, bottom = font.getbbox(character)
    corner = (14 - (left + right) / 2, 14 - (top + bottom) / 2)
    require("PIL.ImageDraw").Draw(image).text(corner, character, fill=255, font=font)
    return np.asarray(image, dtype=np.uint8)


def foreign_glyphs(count_per_font: int = 60, seed: int = 0, root: str | Path = _ROOT) -> ImageSet:
    """Characters of non-Latin scripts, and icons; the groups are the fonts.

    Args:
        count_per_font: Characters drawn at random from each font, in sizes from 16 to 30 pixels;
            fonts of icons give ten times as many.
        seed: Of the draw.
        root: Folder of the fonts in ``DEBIAN_FONTS``.

    Raises:
        InputError: Fonts are missing, or pillow is not installed.
    """
    image_font, tables = require("PIL.ImageFont"), require("fontTools.ttLib")
    rng = np.random.default_rng(seed)
    pixels, groups = [], []
    files = _font_files(Path(root))
    for group, path in enumerate(files):
        with tables.TTFont(path, lazy=True) as table:
            known = sorted(c for c in table.getBestCmap() if c >= _FIRST_CHARACTER)
        count = count_per_font * (1 if path.name.startswith("Noto") else 10)
        for code in rng.permutation(known)[:count].tolist():
            drawn = _draw(chr(code), image_font.truetype(str(path), int(rng.integers(16, 31))))
            if drawn.std() > 8:  # blanks, and marks of a few pixels
                pixels.append(drawn)
                groups.append(group)
    return without_duplicates(
        from_array(
            "foreign-glyphs",
            np.stack(pixels),
            licence="CC0-1.0, drawn with fonts under OFL-1.1, which leaves drawings free",
            source=f"{len(files)} fonts of {', '.join(DEBIAN_FONTS)}",
            groups=groups,
        )
    )


def _grid() -> tuple[Tensor, Tensor]:
    axis = (torch.arange(28, dtype=torch.int64, device="cpu") - 13.5) / 14
    return axis[:, None], axis[None, :]


def _uniform(count: int, low: float, high: float, generator: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(
        count, 1, 1, generator=generator, dtype=torch.float32, device="cpu"
    )


def _waves(count: int, generator: torch.Generator) -> Tensor:
    """Sine gratings of 1 to 8 periods in any direction."""
    y, x = _grid()
    angle, phase = (_uniform(count, 0, 2 * math.pi, generator) for _ in range(2))
    frequency = _uniform(count, 1, 8, generator) * math.pi
    return 0.5 + 0.5 * (frequency * (x * angle.cos() + y * angle.sin()) + phase).sin()


def _squares(count: int, generator: torch.Generator) -> Tensor:
    """Turned chequerboards."""
    return (_waves(count, generator) > 0.5).float().sub(_waves(count, generator).round()).abs()


def _discs(count: int, generator: torch.Generator) -> Tensor:
    """Ellipses with soft edges, one or two of them."""
    y, x = _grid()
    total = torch.zeros(count, 28, 28, dtype=torch.float32, device="cpu")
    for _ in range(2):
        across, down = (_uniform(count, -0.6, 0.6, generator) for _ in range(2))
        wide, high = (_uniform(count, 0.15, 0.9, generator) for _ in range(2))
        distance = (((x - across) / wide).square() + ((y - down) / high).square()).sqrt()
        total = torch.maximum(total, (8 * (1 - distance)).sigmoid())
    return total


def _clouds(count: int, generator: torch.Generator) -> Tensor:
    """Coarse random grids, blown up smoothly: 2 x 2 up to 13 x 13 numbers."""
    parts = []
    for size in range(2, 14):
        share = -(-count // 12)
        coarse = torch.rand(
            share, 1, size, size, generator=generator, dtype=torch.float32, device="cpu"
        )
        parts.append(F.interpolate(coarse, size=(28, 28), mode="bicubic", align_corners=True))
    mixed = torch.cat(parts)[:, 0]
    return mixed[
        torch.randperm(len(mixed), generator=generator, dtype=torch.int64, device="cpu")[:count]
    ]


_FORMULAS: tuple[Callable[[int, torch.Generator], Tensor], ...] = (
    _waves, _squares, _discs, _clouds,
)  # fmt: skip


def textures(count: int = 8000, seed: int = 0) -> ImageSet:
    """Gratings, chequerboards, ellipses and clouds by formula; the groups are these kinds."""
    generator = torch.Generator().manual_seed(seed)
    share = count // len(_FORMULAS)
    made = torch.cat([formula(share, generator) for formula in _FORMULAS])
    return ImageSet(
        "textures",
        (255 * made.clamp(0, 1)).round().byte().unsqueeze(1),
        torch.arange(len(_FORMULAS), dtype=torch.int64, device="cpu").repeat_interleave(share),
        "CC0-1.0",
        "computed",
    )


def augmented(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Outliers ``[N, 1, 28, 28]`` in [0, 1] with random contrast, a third of them inverted.

    Turned and mirrored at random as well, so that few pictures go a long way.
    """
    count = len(pixels)
    images = pixels.float() / 255
    turned = torch.randint(4, (count,), generator=generator, dtype=torch.int64, device="cpu")
    images = torch.stack(
        [image.rot90(int(k), (1, 2)) for image, k in zip(images, turned, strict=True)]
    )
    draw = torch.rand(3, count, 1, 1, 1, generator=generator, dtype=torch.float32, device="cpu")
    images = torch.where(draw[0] < 1 / 3, 1 - images, images)
    return (0.4 + 0.6 * draw[1]) * images + 0.2 * draw[2] * (1 - images) * (draw[0] > 2 / 3)
