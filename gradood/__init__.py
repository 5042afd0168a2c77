"""gradood: is this input anomalous for my network, and can I prove it?

Per-sample gradient norms, anomaly detectors on them, and certificates for PyTorch classifiers.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradood.gradients import Explanation, GradientNorms, explain, gradient_norms

__version__ = _version("gradood")

#: Where each public name lives: imported when it is first used, so that ``import gradood`` is fast.
_HOMES = {
    "Explanation": "gradood.gradients",
    "GradientNorms": "gradood.gradients",
    "explain": "gradood.gradients",
    "gradient_norms": "gradood.gradients",
}
__all__ = ["Explanation", "GradientNorms", "explain", "gradient_norms"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradood' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
