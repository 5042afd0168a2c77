"""What every detector can do: score, calibrate, predict, save."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from gradood.arguments import checked
from gradood.detectors.batches import AnyBatch, InputSource, count_of, iterate_batches
from gradood.detectors.checkpoint import Contents, pack
from gradood.detectors.conformal import conformal_p_values
from gradood.detectors.registry import Registry, refuse_old_names
from gradood.detectors.threshold import Calibration, conservative_threshold
from gradood.errors import InputError, ModelError, NotFittedError
from gradood.gradients import GradientNorms
from gradood.progress import is_shown, track
from gradood.writing import write_file

if TYPE_CHECKING:
    from typing_extensions import Self

#: What detectors read: inputs, or what ``gradood.gradient_norms`` made of them.
Source: TypeAlias = "InputSource | GradientNorms"


#: Every detector class that has been imported.
DETECTORS: Registry[Detector] = Registry()


class Detector(ABC):
    """Scores how anomalous inputs are for one classifier; higher = more anomalous.

    Args:
        model: Classifier ``[N, ...] -> logits [N, C]`` in eval mode. It is not changed.
        nan_policy: ``"raise"``, or ``"flag"`` to score inputs that hold NaN or Inf as +inf. Finite
            inputs of whose logits, features or norms the model makes NaN or Inf are never normal:
            their score is +inf whatever the policy.
        batch_size: Inputs in one pass through the model.
        progress: Show a progress bar on stderr; None shows it only on a terminal.
    """

    #: Names of the tensors that ``fit`` learns and ``save`` writes.
    LEARNED: frozenset[str] = frozenset()

    def __init_subclass__(cls, *, name: str | None = None, **keywords: Any) -> None:
        """Register the class; ``name`` is what the command line calls it, if it is to be there.

        Raises:
            TypeError: The class overrides a method under the name that it had before 0.2.
        """
        super().__init_subclass__(**keywords)
        refuse_old_names(cls)
        for method in vars(cls).keys() & {"__init__", "fit"}:
            setattr(cls, method, checked(vars(cls)[method]))
        DETECTORS.add(cls, name)

    @checked
    def __init__(
        self,
        model: nn.Module,
        *,
        nan_policy: str = "raise",
        batch_size: int = 256,
        progress: bool | None = None,
    ) -> None:
        if nan_policy not in ("raise", "flag"):
            raise InputError(f'nan_policy = {nan_policy!r}; expected "raise" or "flag"')
        if batch_size < 1:
            raise InputError(f"batch_size = {batch_size}; expected at least 1")
        self.model = model
        self.nan_policy = nan_policy
        self.batch_size = batch_size
        self.progress = progress
        self._learned: dict[str, Tensor] | None = None
        self._threshold: float | None = None
        self._calibration: Calibration | None = None
        self._calibration_scores: Tensor | None = None
        #: How many normal inputs ``fit`` saw, where it learns from any.
        self._fitted_count: int | None = None

    def __repr__(self) -> str:
        """What it is, for which model, what it was fitted on and where its threshold came from."""
        given = {n: v for n, v in self.settings().items() if n in self._options_shown()}
        parts = [f"{type(self.model).__name__}", *(f"{n}={v!r}" for n, v in given.items())]
        if self._learned is None:
            parts.append("not fitted")
        elif self._fitted_count is not None:
            parts.append(f"fitted on {self._fitted_count:,} inputs")
        if self._threshold is None:
            parts.append("no threshold")
        else:
            chosen = self._calibration
            how = f" (fpr {chosen.fpr:g} on {chosen.inputs:,} inputs)" if chosen else ""
            parts.append(f"threshold {self._threshold:.6g}{how}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _options_shown(self) -> set[str]:
        """Those of the settings that tell one detector of a class from another."""
        unsaid = {"nan_policy", "batch_size", "parameters"}
        return {n for n, v in self.settings().items() if n not in unsaid and v is not None}

    @abstractmethod
    def fit(self, *sources: Any, **options: Any) -> Self:
        """Learn what is normal, and forget the threshold.

        A detector says by its own signature what it learns from: normal inputs, or normal and
        anomalous ones. It leaves ``self._learned``, tensors by the names of ``LEARNED``.
        """

    @abstractmethod
    def score_batch(self, batch: AnyBatch) -> Tensor:
        """Scores ``[n]`` of the inputs ``batch`` ``[n, ...]``, which is on the model's device."""

    @abstractmethod
    def score_norms(self, norms: GradientNorms) -> Tensor:
        """Scores ``[n]`` of n inputs whose gradient norms and logits are known."""

    def settings(self) -> dict[str, Any]:
        """Keyword arguments that construct this detector again; ``save`` writes them."""
        return {"nan_policy": self.nan_policy, "batch_size": self.batch_size}

    @classmethod
    def from_earlier_version(cls, settings: dict[str, Any]) -> dict[str, Any]:
        """Translate the settings in a file of an earlier version into those of this one."""
        return settings

    def restore(self, learned: dict[str, Tensor]) -> None:
        """Take over what another detector with the same settings learned."""
        self._learned = learned

    @property
    def threshold(self) -> float:
        """Scores above it are anomalous; ``calibrate`` sets it, or an assignment.

        Raises:
            NotFittedError: ``calibrate`` has not been called since the last ``fit``.
        """
        if self._threshold is None:
            raise NotFittedError(
                f"this {type(self).__name__} has no threshold; "
                "call calibrate(normal, fpr=...) with normal inputs it was not fitted on"
            )
        return self._threshold

    @threshold.setter
    def threshold(self, value: float) -> None:
        if not math.isfinite(value):
            raise InputError(f"threshold = {value}; expected a number, in the unit of the scores")
        self._threshold, self._calibration = float(value), None

    @property
    def calibration(self) -> Calibration | None:
        """How the threshold was chosen; None where there is none, or it was assigned."""
        return None if self._threshold is None else self._calibration

    def score(self, x: Source) -> Tensor:
        """Score every input of ``x``; higher = more anomalous.

        Args:
            x: Tensor ``[N, ...]``, Dataset, DataLoader or iterable of batches; labels are ignored.
                Or the ``GradientNorms`` of N inputs, made before with the same label, loss and
                parameters: several detectors can share one pass through the model.

        Returns:
            float32 ``[N]`` on the model's device, in the order of ``x``.

        Raises:
            NotFittedError: Before ``fit``.
            InputError: ``x`` cannot be read, holds NaN or Inf under ``nan_policy="raise"``, or is
                ``GradientNorms`` of other parameters or labels.
        """
        self.require_fitted()
        if isinstance(x, GradientNorms):
            return self.score_norms(x)
        scores = [self.score_batch(batch) for batch in self._batches(x, "scoring")]
        return (
            torch.cat(scores)
            if scores
            else torch.empty(0, device=self._device, dtype=torch.float32)
        )

    def __call__(self, x: Source) -> Tensor:
        """Call ``score``."""
        return self.score(x)

    @checked
    def differentiable_score(self, x: Tensor) -> Tensor:
        """``score`` of one batch, with an autograd graph that leads back to ``x``.

        For attacks, and for anything else that follows a score's gradient. Rows with NaN or Inf are
        not looked for.

        Args:
            x: ``[N, ...]`` on the model's device.

        Returns:
            ``[N]``.

        Raises:
            NotFittedError: Before ``fit``.
            ModelError: This kind of detector has no derivative.
        """
        raise ModelError(
            f"{type(self).__name__} cannot be differentiated; overload differentiable_score"
        )

    @checked
    def calibrate(self, normal: Source, *, fpr: float = 0.05) -> Self:
        """Set the threshold so that a new normal input is called anomalous with rate ``<= fpr``.

        Args:
            normal: At least ``1 / fpr - 1`` normal inputs, disjoint from those ``fit`` saw; of any
                kind that ``score`` takes.
            fpr: Accepted false positive rate, in (0, 1); see ``conservative_threshold``.

        Raises:
            InputError: ``fpr`` is outside (0, 1), or there are too few inputs for it.
            NotFittedError: Before ``fit``.
        """
        return self.calibrate_by(self.score(normal), fpr=fpr)

    @checked
    def calibrate_by(self, scores: Tensor, *, fpr: float = 0.05) -> Self:
        """``calibrate`` by scores ``[N]`` of normal inputs that ``fit`` has not seen."""
        self._threshold = conservative_threshold(scores, fpr)
        self._calibration = Calibration(fpr, len(scores))
        self._calibration_scores = scores.detach().cpu().double().flatten()
        return self

    def p_values(self, x: Source) -> Tensor:
        """How probable scores as high as those of ``x`` are for normal inputs, float64 ``[N]``.

        By the inputs of ``calibrate``, see ``conformal_p_values``: valid for inputs exchangeable
        with those. For decisions about many inputs, see ``gradood.control_fdr``.

        Raises:
            NotFittedError: Before ``fit``, or before ``calibrate``.
        """
        return self.p_values_of(self.score(x))

    @checked
    def p_values_of(self, scores: Tensor) -> Tensor:
        """``p_values`` of inputs whose scores ``[N]`` are known."""
        known = self._calibration_scores
        if self.calibration is None or known is None:
            raise NotFittedError(
                f"this {type(self).__name__} has no calibration scores; "
                "call calibrate(normal, fpr=...) with normal inputs it was not fitted on"
            )
        return conformal_p_values(known, scores.cpu()).to(scores.device)

    def predict(self, x: Source) -> Tensor:
        """Decide for every input of ``x``: bool ``[N]``, True = anomalous (score > threshold).

        Raises:
            NotFittedError: Before ``fit`` or before ``calibrate``.
        """
        self.require_fitted()
        threshold = self.threshold
        return self.score(x) > threshold

    @checked
    def save(self, path: str | Path) -> None:
        """Write the fitted detector, without the model, as safetensors with a JSON header.

        ``gradood.load(path, model)`` reads it back.

        Raises:
            NotFittedError: Before ``fit``.
        """
        write_file(path, self.to_bytes())

    def to_bytes(self) -> bytes:
        """What ``save`` writes.

        Raises:
            NotFittedError: Before ``fit``.
        """
        contents = Contents(
            type(self).__name__,
            self.settings(),
            self.state,
            self._threshold,
            self.calibration,
            self._calibration_scores,
            self._fitted_count,
        )
        return pack(contents, self.model)

    @classmethod
    def from_contents(cls, contents: Contents, model: nn.Module) -> Self:
        """The detector that a file describes, on the device of ``model``."""
        detector = cls(model, **cls.from_earlier_version(contents.settings))
        device = detector._device
        detector.restore({name: t.to(device) for name, t in contents.learned.items()})
        detector._threshold, detector._calibration = contents.threshold, contents.calibration
        detector._calibration_scores = contents.calibration_scores
        detector._fitted_count = contents.fitted_count
        return detector

    def to(self, device: str | torch.device) -> Self:
        """Move the model, and what ``fit`` has learned, as ``torch.nn.Module.to`` does."""
        self.model.to(device)
        if self._learned is not None:
            self._learned = {name: tensor.to(device) for name, tensor in self._learned.items()}
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether ``score`` can be called: after ``fit``, or where there is nothing to learn."""
        return self._learned is not None

    def require_fitted(self) -> None:
        """Raise ``NotFittedError`` before ``fit``."""
        if not self.is_fitted:
            raise NotFittedError(f"this {type(self).__name__} is not fitted; call fit(...) first")

    @property
    def state(self) -> dict[str, Tensor]:
        """What ``fit`` learned: tensors by name, those of ``LEARNED``.

        Raises:
            NotFittedError: Before ``fit``.
        """
        self.require_fitted()
        learned = self._learned or {}
        if any(tensor.is_inference() for tensor in learned.values()):
            with torch.inference_mode(False):  # autograd cannot save what that mode made
                learned = {name: tensor.clone() for name, tensor in learned.items()}
            self._learned = learned
        return learned

    @property
    def _device(self) -> torch.device:
        tensors = itertools.chain(self.model.parameters(), self.model.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def _batches(self, source: InputSource, description: str) -> Iterator[AnyBatch]:
        batches = iterate_batches(source, self.batch_size)
        total = count_of(source) if is_shown(self.progress) else None
        for batch in track(batches, description, self.progress, total):
            if len(batch):
                yield batch.to(self._device)
