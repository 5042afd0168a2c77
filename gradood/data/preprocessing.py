"""Pictures of any size and mode -> the tensor a model expects."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from gradood.arguments import checked, one_of
from gradood.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

#: What turns a picture into the input ``[C, H, W]`` of a model.
Transform: TypeAlias = "Callable[[Image], Tensor]"

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
#: Pixels of a resized picture from which on only the crop is computed.
_LARGE = 4_000_000
#: Pixels on either side that an interpolation reads, at most.
_SUPPORT = 3
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@checked
@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """``(pixels / 255 - mean) / std`` of the centre of a resized picture, as timm describes it.

    Attributes:
        input_size: (C, H, W). None for H or W keeps the size of every picture.
        crop_pct: Share of the resized picture that the central crop keeps: the shorter side is
            resized to ``H / crop_pct`` first.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        mean: Per channel, of pixels in [0, 1]; one number for all.
        std: Per channel.

    Raises:
        InputError: A value means nothing.
    """

    input_size: tuple[int, int | None, int | None] = (3, None, None)
    crop_pct: float = 1.0
    interpolation: str = "bilinear"
    mean: float | Sequence[float] = 0.0
    std: float | Sequence[float] = 1.0

    def __post_init__(self) -> None:
        channels, *size = self.input_size
        if channels not in _MODES:
            raise InputError(f"input_size = {self.input_size}; expected (C, H, W), C of 1, 3 or 4")
        if any(side is not None and side < 1 for side in size) or None in size != [None, None]:
            raise InputError(f"input_size = {self.input_size}; expected positive H and W")
        if not 0 < self.crop_pct <= 1:
            raise InputError(f"crop_pct = {self.crop_pct}; expected a share in (0, 1]")
        one_of("interpolation", self.interpolation, _INTERPOLATIONS)
        for name in ("mean", "std"):
            if np.size(getattr(self, name)) not in (1, channels):
                raise InputError(f"{name} = {getattr(self, name)}; expected {channels} numbers")
        if not np.all(np.asarray(self.std) > 0):
            raise InputError(f"std = {self.std}; expected positive numbers")

    def __call__(self, image: Image) -> Tensor:
        """float32 ``[C, H, W]``."""
        channels, height, width = self.input_size
        if image.mode != _MODES[channels]:
            image = image.convert(_MODES[channels])
        if height is not None and width is not None and image.size != (width, height):
            image = self._resized(image, height, width)
        # NumPy, not torch: this runs in threads that must not each start a pool of threads.
        pixels = np.array(image, np.float32)
        pixels /= np.float32(255)
        if self._standardise:
            pixels -= np.asarray(self.mean, np.float32)
            pixels /= np.asarray(self.std, np.float32)
        if channels == 1:
            return torch.from_numpy(pixels[None])
        return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))

    @cached_property
    def _standardise(self) -> bool:
        return bool(np.any(np.asarray(self.mean) != 0) or np.any(np.asarray(self.std) != 1))

    def _resized(self, image: Image, height: int, width: int) -> Image:
        from PIL.Image import Resampling

        tall, wide = math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)
        if tall * image.width >= wide * image.height:  # the height decides
            size = max(wide, int(tall * image.width / image.height)), tall
        else:
            size = wide, max(tall, int(wide * image.height / image.width))
        if size[0] * size[1] > max(_LARGE, 4 * height * width):
            return self._resized_part(image, size, height, width)
        if size != image.size:
            image = image.resize(size, Resampling[self.interpolation.upper()])
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def _resized_part(self, image: Image, size: tuple[int, int], height: int, width: int) -> Image:
        """The same, computed for the crop alone: a thin picture would be resized to a huge one."""
        from PIL.Image import Resampling

        begins, boxes = [], []
        for whole, full, kept in zip(image.size, size, (width, height), strict=True):
            scale = whole / full
            first = round((full - kept) / 2) * scale
            margin = math.ceil(_SUPPORT * max(scale, 1)) + 1  # what the outermost pixels read
            begin, end = math.floor(first) - margin, math.ceil(first + kept * scale) + margin
            begin, end = max(begin, 0), min(end, whole)
            begins.append((begin, end))
            boxes.append((first - begin, min(first + kept * scale - begin, end - begin)))
        (left, right), (top, bottom) = begins
        box = (boxes[0][0], boxes[1][0], boxes[0][1], boxes[1][1])
        part = image.crop((left, top, right, bottom))
        return part.resize((width, height), Resampling[self.interpolation.upper()], box)


@dataclass(frozen=True)
class Standardising:
    """A transform of another package that ends with ``(pixels - mean) / std``, pixels in [0, 1].

    Attributes:
        apply: All of it.
        mean: Per channel.
        std: Per channel.
    """

    apply: Transform
    mean: float | Sequence[float]
    std: float | Sequence[float]

    def __call__(self, image: Image) -> Tensor:
        """The input ``[C, H, W]``."""
        return self.apply(image)


def read_preprocessing(text: str) -> Transform:
    """Preprocessing from a JSON file or JSON text, with the names of ``Preprocessing``.

    These are timm's: a file with the ``pretrained_cfg`` of a timm model does.

    Raises:
        InputError: It cannot be read, or says nothing of preprocessing.
    """
    try:
        content = text if text.lstrip().startswith("{") else Path(text).read_text(encoding="utf-8")
        given = json.loads(content)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--preprocess {text}: {error}; expected JSON or a file of JSON"
        ) from error
    return preprocessing(given)


def preprocessing(given: object) -> Preprocessing:
    """``Preprocessing`` of a mapping; names that concern other things are ignored."""
    given = given.get("pretrained_cfg", given) if isinstance(given, Mapping) else given
    names = {field.name for field in fields(Preprocessing)}
    known: dict[str, Any] = (
        {name: given[name] for name in names if name in given} if isinstance(given, Mapping) else {}
    )
    if not known:
        raise InputError(f"no preprocessing in {given!r}; expected some of {', '.join(names)}")
    return Preprocessing(**known)
