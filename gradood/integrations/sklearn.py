"""Detectors as outlier detectors of scikit-learn: in pipelines, in cross-validation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from gradood.arguments import at_least, checked, one_of
from gradood.arrays import Floats, Ints
from gradood.detectors import DETECTORS, Detector, NormDetector, by_name
from gradood.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Self


class GradientOutlier(OutlierMixin, BaseEstimator):  # type: ignore[misc]
    """A detector with scikit-learn's signs: 1 and large values are normal, -1 and small are not.

    ``clone`` copies the model, as scikit-learn copies every parameter that is no estimator; it is
    in eval mode and not trained.

    Args:
        model: Classifier in eval mode.
        detector: As ``gradood fit --detector`` calls it, such as "gradient" or "gradient-knn".
        fpr: Accepted false positive rate of ``predict``.
        held_out: Every so many-th input of ``fit`` sets the threshold, and is not fitted on.
        input_shape: Of one input of the model; None for rows as they are. Steps of pipelines want
            rows ``[N, D]``.

    Attributes:
        detector_: The fitted detector.
        offset_: What ``score_samples`` must exceed, or equal, to be normal: minus the threshold.

    Example:
        >>> from sklearn.pipeline import make_pipeline
        >>> from sklearn.preprocessing import StandardScaler
        >>> rows = np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
        >>> outlier = GradientOutlier(network, detector="gradient-knn")
        >>> pipeline = make_pipeline(StandardScaler(), outlier)
        >>> pipeline.fit(rows).predict(rows + 50).tolist().count(-1) > 290
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        detector: str = "gradient",
        fpr: float = 0.05,
        held_out: int = 5,
        input_shape: Sequence[int] | None = None,
    ) -> None:
        self.model = model
        self.detector = detector
        self.fpr = fpr
        self.held_out = held_out
        self.input_shape = input_shape

    def fit(self, X: npt.ArrayLike, y: object = None) -> Self:
        """Learn what is normal; ``y`` is ignored.

        Raises:
            InputError: There is no such detector, or it needs anomalies; there are too few inputs.
        """
        inputs = self._inputs(X)
        self.detector_ = _fitted(
            self.model, inputs, detector=self.detector, fpr=self.fpr, held_out=self.held_out
        )
        self.offset_ = -self.detector_.threshold
        self.n_features_in_ = int(np.prod(inputs.shape[1:]))
        return self

    def score_samples(self, X: npt.ArrayLike) -> Floats:
        """How normal inputs are, ``[N]``: minus the detector's score."""
        check_is_fitted(self)
        scores: Tensor = self.detector_.score(self._inputs(X))
        found: Floats = -scores.double().cpu().numpy()
        return found

    def decision_function(self, X: npt.ArrayLike) -> Floats:
        """``score_samples`` less ``offset_``: negative for what is anomalous."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: npt.ArrayLike) -> Ints:
        """1 for normal inputs, -1 for anomalous ones, as ``Detector.predict`` has them."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def _inputs(self, X: npt.ArrayLike) -> Tensor:
        array = np.asarray(X)
        if array.dtype.kind not in "fiub":
            raise InputError(f"X holds {array.dtype}, expected numbers")
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        first = next(self.model.parameters(), None)
        if first is not None and tensor.is_floating_point():
            tensor = tensor.to(first.dtype)
        return tensor if self.input_shape is None else tensor.reshape(-1, *self.input_shape)


@checked
def _fitted(
    model: nn.Module, inputs: Tensor, *, detector: str, fpr: float, held_out: int
) -> Detector:
    known = [name for name in DETECTORS.named if name != "confounding"]
    named = by_name(detector)
    one_of("detector", detector.partition(":")[0] if named else detector, known)
    assert named is not None  # else it would not be known
    kind, options = named
    at_least("held_out", held_out, 2)
    found = kind(model, progress=False, **options)
    chosen = torch.arange(len(inputs), dtype=torch.int64, device="cpu") % held_out == 0
    if isinstance(found, NormDetector):
        found.fit(inputs[~chosen])
    return found.calibrate(inputs[chosen], fpr=fpr)
