"""Noise, radii and budgets in pixels, for models that standardise their input.

Nearly every public model takes ``(pixels - mean) / std``. Noise that is added after that is in
units of a channel's standard deviation, four to five times a pixel's. So the standardisation moves
into the model, behind the noise, and inputs are pixels in [0, 1].
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradood.data.preprocessing import Preprocessing, Standardising
from gradood.errors import InputError

if TYPE_CHECKING:
    from gradood.detectors import Detector
    from gradood.scoring.models import LoadedModel

_OPAQUE = (
    "cannot tell how the model's preprocessing scales pixels, and so in which unit sigma, radius "
    "and epsilon are; give --preprocess, end the transform with a Normalize, or say --units input "
    "if they are meant in units of the model's input"
)
#: Modules of transforms that move pixels about but do not rescale them beyond [0, 1].
_GEOMETRY = ("torchvision.transforms", "timm.data")
_RESCALING = ("Lambda", "Normalize", "LinearTransformation")


def in_pixels(loaded: LoadedModel) -> tuple[LoadedModel, Callable[[Tensor], Tensor]]:
    """The model as a function of pixels in [0, 1], and what makes its former inputs those.

    Returns:
        The model, standardising by itself; and ``inputs -> pixels`` for inputs as they are read,
        through the transform or as arrays.
    """
    mean, std = standardisation(loaded.transform)
    if not (mean.any() or (std != 1).any()):
        return loaded, lambda inputs: inputs
    mean, std = (values.view(-1, 1, 1).to(loaded.device) for values in (mean, std))

    def pixels(inputs: Tensor) -> Tensor:
        found = inputs.double() * std.to(inputs.device) + mean.to(inputs.device)
        if found.numel() and not (-1e-3 <= float(found.min()) and float(found.max()) <= 1 + 1e-3):
            raise InputError(
                "the inputs are not pixels in [0, 1] that were standardised as the model's "
                "preprocessing says; say --units input if sigma and radius are meant in units of "
                "the model's input"
            )
        return found.clamp(0, 1).to(inputs.dtype)

    return replace(loaded, model=_standardised(loaded.model, mean, std)), pixels


def detector_in_pixels(
    detector: Detector, loaded: LoadedModel
) -> tuple[Detector, Callable[[Tensor], Tensor]]:
    """A fitted detector on the model, as one of pixels; see ``in_pixels``."""
    made, pixels = in_pixels(loaded)
    if made is not loaded:
        detector = copy.copy(detector)
        detector.model = made.model
    return detector, pixels


def _standardised(model: nn.Module, mean: Tensor, std: Tensor) -> nn.Module:
    """A copy with the same parameters, under the same names, that standardises first."""
    made = copy.copy(model)
    hooks = getattr(model, "_forward_pre_hooks", OrderedDict())
    made.__dict__["_forward_pre_hooks"] = OrderedDict(hooks)

    def standardise(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        x = arguments[0]
        return ((x - mean.to(x)) / std.to(x), *arguments[1:])

    made.register_forward_pre_hook(standardise, prepend=True)
    return made


def standardisation(transform: object) -> tuple[Tensor, Tensor]:
    """Mean and deviation, float64 ``[C]``, that a transform ends with; 0 and 1 for none."""
    if isinstance(transform, Preprocessing | Standardising):
        return _pair(transform.mean, transform.std)
    if {"mean", "std", "crop_size", "resize_size"} <= set(getattr(transform, "__dict__", ())):
        # A preset of torchvision's weights.
        return _pair(transform.mean, transform.std)  # type: ignore[attr-defined]
    steps = getattr(transform, "transforms", None)
    if steps is None:
        raise InputError(_OPAQUE)
    *before, last = steps
    if type(last).__name__ == "Normalize":
        found = _pair(last.mean, last.std)
    else:
        before, found = list(steps), _pair(0.0, 1.0)
    for step in before:
        known = type(step).__module__.startswith(_GEOMETRY)
        if not known or type(step).__name__ in _RESCALING:
            raise InputError(_OPAQUE)
    return found


def _pair(mean: Any, std: Any) -> tuple[Tensor, Tensor]:
    pair = (torch.as_tensor(v, dtype=torch.float64, device="cpu").flatten() for v in (mean, std))
    return tuple(pair)  # type: ignore[return-value]
