"""From batches to rows: scores, decisions and the layers that reacted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

import torch
from torch import Tensor

from gradood.detectors import Detector, NormDetector
from gradood.errors import InputError, NotFittedError
from gradood.scoring.stream import Batch


class RowScorer:
    """Turns batches of inputs into tensors, and those into rows to be written.

    Args:
        detector: Fitted; decisions are made if it is calibrated.
        layers: How many of the parameters that deviate most are named with each score.
        p_values: Whether rows have conformal p-values, by the scores it was calibrated with.
    """

    def __init__(self, detector: Detector, layers: int = 3, p_values: bool = False) -> None:
        self.detector = detector
        self._p_values = p_values
        if p_values:
            detector.p_values_of(torch.zeros(0, dtype=torch.float32, device="cpu"))
        self._threshold: float | None = None
        with suppress(NotFittedError):
            self._threshold = detector.threshold
        known = isinstance(detector, NormDetector) and detector.knows_deviations
        self._layers = layers if known else 0
        self._names: Sequence[str] = ()

    def __call__(self, batch: Tensor) -> Sequence[Tensor]:
        """Scores ``[n]``, and deviations and numbers ``[n, layers]`` of the layers that reacted."""
        if self._layers == 0 or not isinstance(self.detector, NormDetector):
            return (require_finite(self.detector.score(batch)),)
        norms = self.detector.norms(batch)
        self._names = [json.dumps(name) for name in norms.names]
        deviations = self.detector.deviations(norms)
        most = deviations.abs().topk(min(self._layers, deviations.shape[1])).indices
        return require_finite(self.detector.score(norms)), deviations.gather(1, most), most

    def lines(self, batch: Batch) -> list[str]:
        """One JSON object an input: id, score, decision, layers and error."""
        # Formatted by hand: json.dumps takes as long as reading a small picture.
        rows = zip(*(result.tolist() for result in batch.results), strict=True)
        chances = iter(
            self.detector.p_values_of(batch.results[0]).tolist() if self._p_values else ()
        )
        lines = []
        for name, error in zip(batch.ids, batch.errors, strict=True):
            if error is not None:
                line, chance = _line(name, None, None, "", error), None
            else:
                line, chance = self._scored(name, *next(rows)), next(chances, None)
            if self._p_values:
                line = f'{line[:-2]}, "p_value": {"null" if chance is None else repr(chance)}}}\n'
            lines.append(line)
        return lines

    def _scored(
        self, name: str, score: float, deviations: Sequence[float] = (), most: Sequence[int] = ()
    ) -> str:
        decision = None
        if self._threshold is not None:
            decision = 1 if score > self._threshold else -1
        layers = ", ".join(
            f'{{"name": {self._names[i]}, "deviation": {z!r}}}'
            for i, z in zip(most, deviations, strict=True)
        )
        return _line(name, score, decision, layers, None)


def require_finite(values: Tensor) -> Tensor:
    """``values`` ``[n, …]``; a stream then reports the inputs whose values are not finite."""
    if not bool(values.isfinite().all()):
        raise InputError("its score is not finite: the model makes NaN or Inf of it")
    return values


def _line(
    name: str, score: float | None, decision: int | None, layers: str, error: str | None
) -> str:
    return (
        f'{{"id": {json.dumps(name)}, "score": {"null" if score is None else repr(score)}, '
        f'"decision": {"null" if decision is None else decision}, "layers": [{layers}], '
        f'"error": {"null" if error is None else json.dumps(error)}}}\n'
    )


def __getattr__(name: str) -> NoReturn:
    if name == "Scorer":
        raise AttributeError("gradood.scoring.scores.Scorer is now RowScorer")
    raise AttributeError(f"module 'gradood.scoring.scores' has no attribute {name!r}")
