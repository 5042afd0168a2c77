"""gradood: is this input anomalous for my network, and can I prove it?

Per-sample gradient norms, anomaly detectors on them, and certificates for PyTorch classifiers.
Public names stand in ``__init__.pyi``; each is imported when it is first used.
"""

from __future__ import annotations

from typing import Any

import lazy_loader

_find, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("gradood")
    return _find(name)
