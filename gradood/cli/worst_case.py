"""Metrics of ``gradood evaluate`` for moved inputs: attacked, or with a guarantee."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gradood.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from gradood.detectors import Detector
    from gradood.evaluation import Guarantee, GuaranteedMetrics

_ALPHA = 1e-3
#: Steps from radius 0 to the largest.
_RADII = 10


class Moved(NamedTuple):
    """Metrics after the anomalous inputs have moved.

    Attributes:
        metrics: By what was done, ``"attacked linf:0.03"`` or ``"guaranteed l2:0.25"``.
        guarantees: ``"l2:0.25, sigma 0.25"``: at eleven radii, the last one that asked for.
    """

    metrics: dict[str, dict[str, float]]
    guarantees: dict[str, Guarantee]


@dataclass(frozen=True)
class WorstCase:
    """Which radii to attack and to guarantee, ``NORM:RADIUS``, and how hard.

    Without ``sigma`` the noise of the smoothed detector is the radius.
    """

    attacks: Sequence[str]
    guarantees: Sequence[str]
    steps: int
    restarts: int
    sigma: float | None
    samples: int

    def __bool__(self) -> bool:
        return bool(self.attacks or self.guarantees)

    def check(self) -> None:
        """Refuse a norm or radius that means nothing, before anything is computed."""
        for text in self.attacks:
            _parse("--attack", text, ("linf", "l2"))
        for text in self.guarantees:
            if _parse("--guarantee", text, ("l2",))[1] == 0:
                raise InputError("--guarantee l2:0 guarantees nothing; give a radius above 0")

    def of(
        self, detector: Detector, normal: Tensor, sets: Mapping[str, Tensor]
    ) -> dict[str, Moved]:
        """The metrics of every anomalous set after moving; one set at a time is on the device."""
        moved = {name: Moved({}, {}) for name in sets}
        for text in self.attacks:
            for name, metrics in self._attacked(detector, normal, sets, text):
                moved[name].metrics[f"attacked {text}"] = _last(metrics)
        for text in self.guarantees:
            for name, guarantee in self._guaranteed(detector, normal, sets, text):
                moved[name].metrics[f"guaranteed {text}"] = _last(guarantee.clean_normals)
                moved[name].guarantees[f"{text}, sigma {self._sigma(text):g}"] = guarantee
        return moved

    def _attacked(
        self, detector: Detector, normal: Tensor, sets: Mapping[str, Tensor], text: str
    ) -> Iterator[tuple[str, GuaranteedMetrics]]:
        from gradood.attacks import attack_score
        from gradood.evaluation import evaluate_adversarial

        norm, radius = _parse("--attack", text, ("linf", "l2"))
        options: dict[str, Any] = {"norm": norm, "steps": self.steps, "restarts": self.restarts}
        of_normal = detector.score(normal)
        for name, anomalous in sets.items():
            x = anomalous.to(normal.device)
            attacked = attack_score(detector, x, epsilon=radius, **options)
            scores = {"apgd": attacked.score}
            found = evaluate_adversarial(of_normal, attacked.clean, radius, scores)
            yield name, found.clean_normals

    def _guaranteed(
        self, detector: Detector, normal: Tensor, sets: Mapping[str, Tensor], text: str
    ) -> Iterator[tuple[str, Guarantee]]:
        from gradood.evaluation import evaluate_guaranteed
        from gradood.smoothing import Smoothing, certify_quantile

        radius = _parse("--guarantee", text, ("l2",))[1]
        radii = [radius * step / _RADII for step in range(_RADII)] + [radius]  # the same samples
        # Small enough for the largest set: the normal inputs' bounds then serve all of them.
        point_alpha = _ALPHA / (len(normal) + max(map(len, sets.values())))
        smoothing = Smoothing(sigma=self._sigma(text), n=self.samples, alpha=point_alpha)
        upper = certify_quantile(detector, normal, settings=smoothing).upper[:, 0]
        for name, anomalous in sets.items():
            ids = range(len(normal), len(normal) + len(anomalous))  # noise of their own
            x = anomalous.to(normal.device)
            lower = certify_quantile(detector, x, settings=smoothing, radius=radii, ids=ids).lower
            found = evaluate_guaranteed(upper, lower, radii, point_alpha=point_alpha, alpha=_ALPHA)
            yield name, found

    def _sigma(self, text: str) -> float:
        return _parse("--guarantee", text, ("l2",))[1] if self.sigma is None else self.sigma


def _last(by_radius: GuaranteedMetrics) -> dict[str, float]:
    """The metrics at the last radius."""
    return {field: float(value[-1]) for field, value in by_radius.asdict().items()}


def _parse(option: str, text: str, norms: Sequence[str]) -> tuple[str, float]:
    norm, _, number = text.partition(":")
    try:
        radius = float(number)
    except ValueError:
        radius = math.nan
    if norm not in norms or not (math.isfinite(radius) and radius >= 0):
        expected = " or ".join(f"{known}:RADIUS" for known in norms)
        raise InputError(f"{option} {text}: expected {expected}, as in {norms[-1]}:0.25")
    return norm, radius
