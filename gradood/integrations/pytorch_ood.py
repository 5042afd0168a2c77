"""gradood's detectors as detectors of pytorch-ood, for its benchmarks and metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from gradood.arguments import checked
from gradood.data.optional import require
from gradood.detectors import ConfoundingDetector, Detector, NormDetector
from gradood.errors import InputError, NotFittedError

if TYPE_CHECKING:
    from typing_extensions import Self


@checked
def pytorch_ood_detector(detector: Detector) -> Any:
    """``detector`` as a ``pytorch_ood.api.Detector``.

    The conventions are pytorch-ood's: ``predict`` gives scores, higher = more anomalous, as
    gradood's do; labels below zero mark anomalies. ``fit`` takes batches ``(x, y)`` and leaves
    anomalies out, except for the paper's detector, which learns from both. A detector that is
    fitted already needs no ``fit``.

    Args:
        detector: Any of gradood's; it keeps its ``calibrate`` and ``predict``.

    Returns:
        An instance of a subclass of ``pytorch_ood.api.Detector`` (of its ``GradientDetector`` for
        gradient norms) with ``fit``, ``predict``, ``to`` and ``device``.

    Raises:
        InputError: Pytorch-ood is not installed.

    Example:
        >>> detector = pytorch_ood_detector(gradood.GradientKNN(model))
        >>> loader = [(normal, torch.zeros(len(normal)))]  # of batches (x, y)
        >>> detector.fit(loader).predict(images).shape  # for pytorch_ood's metrics
        torch.Size([5])
    """
    api = require("pytorch_ood.api", "neighbours", "This integration")
    base = api.GradientDetector if isinstance(detector, NormDetector) else api.Detector
    adapter = type(
        f"Gradood{type(detector).__name__}",
        (_Adapter, base),
        {"requires_fit": not detector.is_fitted},
    )
    return adapter(detector, api.RequiresFittingException)


class _Adapter:
    """What the subclass adds to pytorch-ood's base class."""

    def __init__(self, detector: Detector, unfitted: Callable[[], Exception]) -> None:
        self.detector = detector
        self.model: nn.Module = detector.model  # where pytorch-ood looks for the device
        self._unfitted = unfitted

    def fit(self, data_loader: Iterable[tuple[Tensor, Tensor]]) -> Self:
        """Fit on the normal inputs among batches ``(x, y)``; y below zero marks anomalies."""
        sources = [_Chosen(data_loader, normal=True)]
        if isinstance(self.detector, ConfoundingDetector):
            sources.append(_Chosen(data_loader, normal=False))
        cast(Any, self.detector).fit(*sources)
        return self

    def predict(self, x: Tensor) -> Tensor:
        """Scores ``[B]`` of inputs ``[B, …]``, higher = more anomalous."""
        try:
            return self.detector.score(x)
        except NotFittedError as error:
            raise self._unfitted() from error

    def to(self, device: str | torch.device) -> Self:
        """Move the model, and what the detector has learned."""
        self.detector.to(device)
        return self


class _Chosen:
    """Batches of the normal inputs, or of the anomalies, of a loader; iterated as often as read."""

    def __init__(self, loader: Iterable[tuple[Tensor, Tensor]], normal: bool) -> None:
        self._loader, self._normal = loader, normal

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self._loader:
            if not isinstance(batch, tuple | list) or len(batch) < 2:
                raise InputError("fit needs batches (x, y) of inputs and labels")
            x, y = batch[:2]
            chosen = (y >= 0) == self._normal
            if bool(chosen.any()):
                yield x[chosen]
