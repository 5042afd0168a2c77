"""What detectors on gradient norms share: from inputs, or norms computed before, to features."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

import torch
from torch import Tensor, nn

from gradood.detectors.base import Detector
from gradood.detectors.batches import InputSource
from gradood.detectors.features import Standardiser, log_norms
from gradood.errors import InputError
from gradood.gradients import GradientNorms, gradient_norms

if TYPE_CHECKING:
    from typing_extensions import Self

#: Inputs, or what ``gradood.gradient_norms`` made of them: then the model is not run again.
NormSource: TypeAlias = "InputSource | GradientNorms"


class GradientDetector(Detector):
    """A detector on standardised log squared gradient norms, one feature per parameter tensor.

    Wherever a subclass takes inputs, it also takes the ``GradientNorms`` of these inputs, made with
    the same label, loss and parameters, so that several detectors can share one pass.

    Args:
        model: Classifier in eval mode; see ``gradood.gradient_norms``.
        label: Confounding label, or a list of K labels for K features per parameter tensor.
        loss: ``"bce"``, ``"bce_softmax"`` or ``"ce"``.
        parameters: Which parameters to use: None for all, names, glob patterns or a predicate.
        nan_policy: ``"raise"``, or ``"flag"`` to score inputs that hold NaN or Inf as +inf.
        batch_size: Inputs in one call of ``gradient_norms``.
        progress: Show a progress bar on stderr; None shows it only on a terminal.
    """

    LEARNED: ClassVar[frozenset[str]] = frozenset(Standardiser._fields)

    def __init__(
        self,
        model: nn.Module,
        *,
        label: Any = "all_hot",
        loss: str = "bce",
        parameters: Any = None,
        nan_policy: str = "raise",
        batch_size: int = 256,
        progress: bool | None = None,
    ) -> None:
        super().__init__(model, nan_policy=nan_policy, batch_size=batch_size, progress=progress)
        self.label, self.loss, self.parameters = label, loss, parameters
        self._names: tuple[str, ...] | None = None

    @abstractmethod
    def _score_features(self, features: Tensor) -> Tensor:
        """Scores ``[n]`` of standardised log norms ``[n, d]``."""

    def score(self, x: NormSource) -> Tensor:
        """Score every input of ``x``; higher = more anomalous.

        Args:
            x: Tensor ``[N, ...]``, Dataset, DataLoader, iterable of batches (labels are ignored),
                or the ``GradientNorms`` of N inputs.

        Returns:
            float32 ``[N]`` on the model's device, in the order of ``x``.

        Raises:
            NotFittedError: Before ``fit``.
            InputError: ``x`` cannot be read, holds NaN or Inf under ``nan_policy="raise"``, or is
                ``GradientNorms`` of other parameters or labels.
        """
        if not isinstance(x, GradientNorms):
            return super().score(x)
        self._require_fitted()
        return self._score_log_norms(self._checked_log(x))

    def calibrate(self, normal: NormSource, fpr: float = 0.05) -> Self:
        """See ``Detector.calibrate``; also takes ``GradientNorms``."""
        return super().calibrate(normal, fpr)

    def predict(self, x: NormSource) -> Tensor:
        """See ``Detector.predict``; also takes ``GradientNorms``."""
        return super().predict(x)

    def _settings(self) -> dict[str, Any]:
        # The names, and not the selection: a predicate cannot be saved.
        parameters = None if self._names is None else list(self._names)
        own = {"label": self.label, "loss": self.loss, "parameters": parameters}
        return own | super()._settings()

    def _restore(self, learned: dict[str, Tensor]) -> None:
        super()._restore(learned)
        self._names = tuple(self.parameters)

    def _forget(self) -> None:
        """Begin a new ``fit``; if it fails, the detector is not fitted, rather than half."""
        self._learned = self._threshold = self._names = None

    def _log_norms(self, source: NormSource, description: str) -> Tensor:
        """Log norms ``[N, F]`` of all of ``source``, on the model's device."""
        if isinstance(source, GradientNorms):
            return self._checked_log(source)
        rows = [self._log_norms_of(batch) for batch in self._batches(source, description)]
        if not rows:
            raise InputError("there are no inputs to fit on: the source yields no batch")
        return torch.cat(rows)

    def _log_norms_of(self, batch: Tensor) -> Tensor:
        norms = gradient_norms(
            self.model,
            batch,
            label=self.label,
            loss=self.loss,
            parameters=self.parameters,
            nan_policy=self.nan_policy,
        )
        return self._checked_log(norms)

    def _checked_log(self, norms: GradientNorms) -> Tensor:
        """Log norms ``[N, F]``, provided that they are of the parameters and labels fitted on."""
        names, features = tuple(norms.names), log_norms(norms.values).to(self._device)
        if self._names is None:
            self._names = names
        if names != self._names:
            differing = ", ".join(sorted(set(names) ^ set(self._names))[:5]) or "their order"
            raise InputError(
                f"gradient norms of {len(names)} parameters were given, expected those of the "
                f"{len(self._names)} parameters fitted on; the difference: {differing}"
            )
        if self._learned is not None and features.shape[1] != len(self._learned["kept"]):
            raise InputError(
                f"gradient norms with {features.shape[1] // len(names)} labels were given, "
                f"the detector was fitted on {len(self._learned['kept']) // len(names)}"
            )
        return features

    def _score_batch(self, batch: Tensor) -> Tensor:
        return self._score_log_norms(self._log_norms_of(batch))

    def _score_log_norms(self, features: Tensor) -> Tensor:
        learned = self._require_fitted()
        standardise = Standardiser(*(learned[name] for name in Standardiser._fields))
        usable = features.isfinite().all(1)
        # A flagged row must not reach the arithmetic, where Inf - Inf would make it NaN.
        finite = torch.where(usable[:, None], features, 0.0)
        return torch.where(usable, self._score_features(standardise(finite)).float(), torch.inf)
