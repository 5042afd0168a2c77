"""Inputs as small pictures inside the page, with captions."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradood.data.files.source import Item, Source
from gradood.data.optional import require
from gradood.evaluation.reports.digest import Ranked, Row
from gradood.evaluation.reports.html import Html, html, tag

#: Largest side of pictures on the page; the browser enlarges smaller ones.
_SIDE = 192
#: Pictures below this side are shown with visible pixels.
_FEW_PIXELS = 64


def inputs_at(source: Source, wanted: Mapping[int, str]) -> dict[int, Item]:
    """The inputs with these numbers, not read yet; passes over the others without reading them.

    Where another input has the number, since some were added or removed, it is looked for by name.
    """
    items = islice(source.items(), max(wanted, default=-1) + 1)
    found = {n: item for n, item in enumerate(items) if wanted.get(n) == item.id}
    missing = {name: number for number, name in wanted.items() if number not in found}
    elsewhere = source.items() if missing else ()
    return found | {missing[item.id]: item for item in elsewhere if item.id in missing}


def gallery(ranked: Sequence[Ranked], source: Source | None) -> Html:
    """Inputs with their scores and the layers that reacted, as pictures if there is a source."""
    items = {} if source is None else inputs_at(source, {n: row["id"] for n, row in ranked})
    figures = []
    for place, row in ranked:
        shown = _reread(items.get(place), row["id"]) if source is not None else Html()
        kind = {1: "anomalous", -1: "normal"}.get(row.get("decision") or 0)
        figures.append(tag("figure", shown, tag("figcaption", *_said(row)), class_=kind))
    return tag("div", *figures, class_="gallery")


def captioned(value: Any, alt: str, *caption: Any, kind: str | None = None) -> Html:
    """One input that is at hand as a figure."""
    return tag("figure", picture(value, alt), tag("figcaption", *caption), class_=kind)


def picture(value: Any, alt: str) -> Html:
    """A picture, an array or a tensor as an image; floats outside [0, 1] fill their own range.

    Of several tensors the first that is one.
    """
    parts = value.values() if isinstance(value, Mapping) else (value,)
    image = next((made for made in map(_image, parts) if made is not None), None)
    if image is None:
        return tag("div", "not a picture", class_="none")
    image.thumbnail((_SIDE, _SIDE))
    few = max(image.size) <= _FEW_PIXELS
    buffer = io.BytesIO()
    # Encoded again, so that nothing but pixels comes from the file.
    image.save(buffer, *(("PNG",) if few else ("JPEG",)), **({} if few else {"quality": 85}))
    content = base64.b64encode(buffer.getvalue()).decode()
    uri = f"data:image/{'png' if few else 'jpeg'};base64,{content}"
    return tag("img", src=uri, alt=alt, class_="pixels" if few else None)


def _reread(item: Item | None, name: str) -> Html:
    if item is None or item.id != name:
        return tag("div", "no longer there: the inputs have changed", class_="none")
    try:
        return picture(item.load(), name)
    except Exception as error:  # files may be damaged in every way there is
        return tag("div", f"cannot be read again: {error}", class_="none")


def _said(row: Row) -> list[Html]:
    layers: Sequence[Mapping[str, Any]] = row.get("layers") or ()
    listed = [tag("li", f"{layer['name']} {layer['deviation']:+.1f}σ") for layer in layers]
    chance = row.get("p_value")
    beside = "" if chance is None else f" (p = {chance:.3g})"
    away = f", {row['distance']:.2f} σ away" if "distance" in row else ""
    said = [tag("b", f"{row['score']:.4g}{beside}"), html(row["id"] + away)]
    return [*said, tag("ul", *listed)] if listed else said


def _image(value: Any) -> Any:
    """An RGB or grey picture of Pillow's, or None for what is no picture."""
    if hasattr(value, "convert"):
        return value.convert("L" if value.mode in ("1", "L", "LA") else "RGB")
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if not isinstance(value, Tensor) or value.dim() not in (2, 3):
        return None
    pixels = value.detach().cpu()
    if pixels.dim() == 3 and pixels.shape[2] in (1, 3, 4) and pixels.shape[0] not in (1, 3, 4):
        pixels = pixels.permute(2, 0, 1)
    pixels = pixels if pixels.dim() == 3 else pixels[None]
    if pixels.shape[0] not in (1, 3, 4) or 0 in pixels.shape:
        return None
    levels = _levels(pixels[:3])
    array = levels.permute(1, 2, 0).squeeze(2) if len(levels) == 1 else levels.permute(1, 2, 0)
    image = require("PIL.Image", "data", "A report with pictures")
    return image.fromarray(array.contiguous().numpy())


def _levels(pixels: Tensor) -> Tensor:
    """uint8."""
    if pixels.dtype == torch.uint8:
        return pixels
    pixels = pixels.double().nan_to_num()
    low, high = pixels.min(), pixels.max()
    if low < 0 or high > 1:
        pixels = (pixels - low) / (high - low).clamp_min(1e-12)
    return (pixels * 255).round().to(torch.uint8)
