"""Detectors by name, fitted and calibrated on streams."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gradood.data.files import Item, Source
from gradood.data.files.source import Chosen
from gradood.detectors import (
    DETECTORS,
    ConfoundingDetector,
    Detector,
    NormDetector,
    by_name,
    load,
    needs_fit,
)
from gradood.detectors.presets import PRESETS
from gradood.errors import InputError
from gradood.gradients import GradientNorms
from gradood.gradients.wrappers import refuse_script
from gradood.scoring.scores import require_finite
from gradood.scoring.stream import Stream

if TYPE_CHECKING:
    from gradood.scoring.models import LoadedModel


def make_detector(name: str, loaded: LoadedModel, compiled: bool = False) -> Detector:
    """A detector that is not fitted; ``gradient:PRESET`` is another preset of the default."""
    named = by_name(name)
    if named is None:
        raise InputError(
            f"--detector {name}: expected one of {', '.join(DETECTORS.named)}, or gradient:PRESET, "
            f"of {', '.join(PRESETS)}"
        )
    kind, options = named
    check_visible(kind, loaded, compiled)
    return kind(loaded.model, progress=False, **options)


def ready_detector(name: str, loaded: LoadedModel, compiled: bool = False) -> Detector:
    """A detector from a file that ``gradood fit`` wrote, or one that needs no fitting by name."""
    if needs_fit(name):
        raise InputError(f"--detector {name} must be fitted: gradood fit --detector {name}")
    if name.partition(":")[0] in DETECTORS.named:
        return make_detector(name, loaded, compiled)
    detector = load(name, loaded.model)
    check_visible(type(detector), loaded, compiled)
    detector.progress = False
    return detector


def check_visible(kind: type[Detector], loaded: LoadedModel, compiled: bool) -> None:
    """Refuse gradient norms of models whose operators cannot be seen."""
    if not issubclass(kind, NormDetector):
        return
    if compiled:
        raise InputError(
            "--compile hides the operators whose gradient norms this detector reads; leave it "
            "out, or use --detector max-softmax or energy"
        )
    refuse_script(loaded.model)


def require_kinds(detector: Detector, anomalous: Source | None) -> None:
    """Refuse anomalous inputs that a detector does not learn from, or lacks."""
    wants_both = isinstance(detector, ConfoundingDetector)
    if wants_both != (anomalous is not None):
        needs = "needs" if wants_both else "takes no"
        raise InputError(f"{type(detector).__name__} {needs} --anomalous inputs")


def fit(
    detector: Detector,
    normal: Source,
    anomalous: Source | None,
    stream: Callable[[Any], Stream],
    advance: Callable[[int], None],
) -> int:
    """Fit ``detector`` on streams; returns how many normal inputs it saw."""
    require_kinds(detector, anomalous)
    if not isinstance(detector, NormDetector):
        return 0
    norms = [_norms(detector, source, stream, advance) for source in (normal, anomalous) if source]
    detector.fit(*norms)
    return len(norms[0].values)


def calibrate(
    detector: Detector,
    held_out: Source,
    fpr: float,
    stream: Callable[[Any], Stream],
    advance: Callable[[int], None],
) -> int:
    """Set the threshold by normal inputs that ``fit`` has not seen; returns how many."""
    scores = [
        _advanced(batch.results[0], batch.ids, advance)
        for batch in stream(lambda x: (require_finite(detector.score(x)),)).run(held_out)
        if batch.results
    ]
    if not scores:
        raise InputError("no input to calibrate with could be scored")
    found = torch.cat(scores)
    detector.calibrate_by(found, fpr=fpr)
    return len(found)


def _norms(
    detector: NormDetector,
    source: Source,
    stream: Callable[[Any], Stream],
    advance: Callable[[int], None],
) -> GradientNorms:
    last: GradientNorms

    def compute(batch: Tensor) -> tuple[Tensor, ...]:
        nonlocal last
        last = detector.norms(batch)
        require_finite(last.values)
        return tuple(last.tensors.values())

    parts = [
        (_advanced(batch.results[0], batch.ids, advance), *batch.results[1:])
        for batch in stream(compute).run(source)
        if batch.results
    ]
    if not parts:
        raise InputError("no input to fit on could be scored")
    return last.with_tensors(map(torch.cat, zip(*parts, strict=True)))


def _advanced(result: Tensor, ids: list[str], advance: Callable[[int], None]) -> Tensor:
    advance(len(ids))
    return result


class Fold(Chosen):
    """Every ``folds``-th input of a source, or all the others: disjoint, whatever their order."""

    def __init__(self, whole: Source, folds: int, held_out: bool) -> None:
        super().__init__(whole)
        self._folds, self._held_out = folds, held_out

    def chosen(self) -> Iterator[Item]:
        """This part's items."""
        for place, item in enumerate(self._whole.items()):
            if (place % self._folds == 0) == self._held_out:
                yield item

    def count(self) -> int | None:
        """How many there are in this part."""
        whole = self._whole.count()
        if whole is None:
            return None
        first = len(range(0, whole, self._folds))
        return first if self._held_out else whole - first
