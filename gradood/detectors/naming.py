"""Detectors by the names that the command line and scikit-learn's parameters use."""

from __future__ import annotations

from typing import Any

from gradood.arguments import checked
from gradood.detectors.base import DETECTORS, Detector
from gradood.detectors.gradient import GradientDetector
from gradood.detectors.norm_detector import NormDetector


@checked
def by_name(name: str) -> tuple[type[Detector], dict[str, Any]] | None:
    """The class that a name means and its options, or None.

    ``gradient:PRESET`` is another preset of the default.
    """
    kind_name, _, preset = name.partition(":")
    kind = DETECTORS.named.get(kind_name)
    if kind is None or (preset and kind is not GradientDetector):
        return None
    return kind, {"preset": preset} if preset else {}


def needs_fit(name: str) -> bool:
    """Whether a name is of a detector that learns before it scores."""
    kind = DETECTORS.named.get(name.partition(":")[0])
    return kind is not None and issubclass(kind, NormDetector)
