"""What detectors on gradient norms share: inputs -> norms -> standardised features -> score."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradood.detectors.base import Detector
from gradood.detectors.batches import AnyBatch
from gradood.detectors.features import Standardiser, log_norms
from gradood.errors import InputError
from gradood.gradients import GradientNorms, differentiable_norms, gradient_norms
from gradood.gradients.engine import full_precision
from gradood.gradients.labels import Label
from gradood.gradients.validation import Selection, not_finite

if TYPE_CHECKING:
    from gradood.detectors.base import Source


class NormDetector(Detector):
    """A detector that reads gradient norms, which it computes or is given.

    Args:
        model: Classifier in eval mode; see ``gradood.gradient_norms``.
        label: Confounding label, or a list of K labels for K features per parameter tensor.
        loss: ``"bce"``, ``"bce_softmax"`` or ``"ce"``, or a list, one for each label.
        parameters: Which parameters to use: None for all, names, glob patterns or a predicate.
        nan_policy: As in ``Detector``.
        batch_size: Inputs in one call of ``gradient_norms``.
        progress: Show a progress bar on stderr; None shows it only on a terminal.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        label: Label | Sequence[Label] = "all_hot",
        loss: str | Sequence[str] = "bce",
        parameters: Selection = None,
        nan_policy: str = "raise",
        batch_size: int = 256,
        progress: bool | None = None,
    ) -> None:
        super().__init__(model, nan_policy=nan_policy, batch_size=batch_size, progress=progress)
        self.label, self.loss, self.parameters = label, loss, parameters
        self._names: tuple[str, ...] | None = None

    def settings(self) -> dict[str, Any]:
        # The names, and not the selection: a predicate cannot be saved.
        parameters = None if self._names is None else list(self._names)
        own = {"label": self.label, "loss": self.loss, "parameters": parameters}
        return own | super().settings()

    def restore(self, learned: dict[str, Tensor]) -> None:
        super().restore(learned)
        names = self.parameters
        self._names = None if names is None or callable(names) else tuple(names)

    def _forget(self) -> None:
        """Begin a new ``fit``; if it fails, the detector is not fitted, rather than half."""
        self._learned = self._threshold = self._names = self._fitted_count = None

    def _norms(self, source: Source, description: str) -> GradientNorms:
        """Gradient norms of all of ``source``, on the model's device."""
        if isinstance(source, GradientNorms):
            parts = [self._checked(source)]
        else:
            parts = [self._norms_of(batch) for batch in self._batches(source, description)]
        parts = [part for part in parts if len(part.values)]
        if not parts:
            raise InputError("there are no inputs to fit on: the source is empty")
        if self._fitted_count is None:  # of those who learn from two sources, the normal one
            self._fitted_count = sum(len(part.values) for part in parts)
        return GradientNorms.join([part.to(self._device) for part in parts])

    def norms(self, batch: AnyBatch) -> GradientNorms:
        """Gradient norms of one batch ``[n, …]`` with this detector's label, loss and parameters.

        What ``score`` and ``deviations`` take: one pass through the model serves both.
        """
        return self._norms_of(batch.to(self._device))

    @property
    def knows_deviations(self) -> bool:
        """Whether ``deviations`` can tell: not where nothing was learned of normal inputs."""
        return self._learned is not None and self._fitted_on() is not None

    def _fitted_on(self) -> tuple[str, int] | None:
        """What the names of a standardiser of all norms begin with, and how many it reads."""
        kept = (self._learned or {}).get("kept")
        return None if kept is None else ("", len(kept))

    def deviations(self, norms: GradientNorms) -> Tensor:
        """How unusual each parameter's gradient is: ``(log norm - mean) / std`` of normal inputs.

        Returns:
            float32 ``[N, L]``, columns as ``norms.names``; positive where a gradient is larger than
            on the inputs that ``fit`` saw. Of several labels the one that deviates most. Zero for
            norms that do not vary on those.

        Raises:
            NotFittedError: Before ``fit``.
            InputError: ``norms`` are of other parameters or labels, or this kind of detector learns
                nothing of normal inputs.
        """
        self.require_fitted()
        if not self.knows_deviations:
            raise InputError(
                f"{type(self).__name__} learns nothing of normal inputs to deviate from; use "
                "another detector to see which layers react"
            )
        standardise = self._standardiser()
        features = log_norms(self._checked(norms).values.to(self._device))
        found = torch.zeros_like(features)
        found[:, standardise.kept] = standardise(features)
        by_label: Tensor = found.unflatten(1, (-1, len(norms.names)))
        most = by_label.abs().argmax(1, keepdim=True)
        return torch.take_along_dim(by_label, most, 1).squeeze(1)

    def differentiable_score(self, x: Tensor) -> Tensor:
        """``score`` of one batch, with a graph; see ``Detector.differentiable_score``.

        The norms are differentiated by a second backward pass; see ``differentiable_norms``.
        """
        self.require_fitted()
        norms = differentiable_norms(
            self.model, x, label=self.label, loss=self.loss, parameters=self.parameters
        )
        return self.score_norms(norms)

    def _standardiser(self) -> Standardiser:
        """The standardiser of log norms.

        Raises:
            NotFittedError: Before ``fit``.
        """
        learned, found = self.state, self._fitted_on()
        first = found[0] if found else ""
        return Standardiser(*(learned[first + name] for name in Standardiser._fields))

    def _norms_of(self, batch: AnyBatch) -> GradientNorms:
        not_finite(batch, self.nan_policy)
        # The policy is about inputs. What the model makes NaN or Inf of is no normal input.
        norms = gradient_norms(
            self.model,
            batch,
            label=self.label,
            loss=self.loss,
            parameters=self.parameters,
            nan_policy="flag",
        )
        return self._checked(norms)

    def _checked(self, norms: GradientNorms) -> GradientNorms:
        """``norms``, provided that they are of the parameters and labels fitted on."""
        if self._names is None:
            self._names = norms.names
        if norms.names != self._names:
            differing = ", ".join(sorted(set(norms.names) ^ set(self._names))[:5]) or "their order"
            raise InputError(
                f"gradient norms of {len(norms.names)} parameters were given, expected those of "
                f"the {len(self._names)} parameters fitted on; the difference: {differing}"
            )
        given, found = math.prod(norms.values.shape[1:]), self._fitted_on()
        if found and found[1] and given != found[1]:
            raise InputError(
                f"gradient norms with {given // len(norms.names)} labels were given, the "
                f"detector was fitted on {found[1] // len(norms.names)}"
            )
        return norms

    def score_batch(self, batch: AnyBatch) -> Tensor:
        return self.score_norms(self._norms_of(batch))


class LogNormDetector(NormDetector):
    """A detector on standardised log squared gradient norms; arguments as in ``NormDetector``."""

    LEARNED: frozenset[str] = frozenset(Standardiser._fields)

    @abstractmethod
    def _score_features(self, features: Tensor) -> Tensor:
        """Scores ``[n]`` of standardised log norms ``[n, d]``."""

    def score_norms(self, norms: GradientNorms) -> Tensor:
        standardise = self._standardiser()
        features = log_norms(self._checked(norms).values.to(self._device))
        usable = features.isfinite().all(1)
        # A flagged row must not reach the arithmetic, where Inf - Inf would make it NaN.
        finite = torch.where(usable[:, None], features, 0.0)
        with full_precision(self._device.type):
            scores = self._score_features(standardise(finite)).float()
        return torch.where(usable, scores, torch.inf)
