"""What ``gradood evaluate`` says of inputs that somebody moves: by an attack, or by any means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gradood.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from gradood.detectors import Detector
    from gradood.evaluation import GuaranteedMetrics

_ALPHA = 1e-3


@dataclass(frozen=True)
class WorstCase:
    """Which radii to attack and to guarantee, and how hard.

    Args:
        attacks: ``NORM:RADIUS``, norm linf or l2, in units of the input.
        guarantees: ``l2:RADIUS``.
        steps: Of APGD.
        restarts: Of APGD.
        sigma: Of the noise of the smoothed detector; None for the radius.
        samples: Of the smoothed detector.
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
        """Refuse a norm or radius that means nothing, before anything is computed.

        Raises:
            InputError: There is one.
        """
        for text in self.attacks:
            _parse("--attack", text, ("linf", "l2"))
        for text in self.guarantees:
            if _parse("--guarantee", text, ("l2",))[1] == 0:
                raise InputError("--guarantee l2:0 guarantees nothing; give a radius above 0")

    def metrics(self, detector: Detector, normal: Tensor, anomalous: Tensor) -> dict[str, Any]:
        """Metrics by what was done, ``"attacked linf:0.03"`` or ``"guaranteed l2:0.25"``."""
        found = {f"attacked {text}": self._attacked(detector, normal, anomalous, text)
                 for text in self.attacks}  # fmt: skip
        for text in self.guarantees:
            found[f"guaranteed {text}"] = self._guaranteed(detector, normal, anomalous, text)
        return {
            name: {field: float(value[0]) for field, value in metrics._asdict().items()}
            for name, metrics in found.items()
        }

    def _attacked(
        self, detector: Detector, normal: Tensor, anomalous: Tensor, text: str
    ) -> GuaranteedMetrics:
        from gradood.attacks import attack_score
        from gradood.evaluation import evaluate_adversarial

        norm, radius = _parse("--attack", text, ("linf", "l2"))
        options: dict[str, Any] = {"norm": norm, "steps": self.steps, "restarts": self.restarts}
        attacked = attack_score(detector, anomalous, epsilon=radius, **options)
        of_normal = detector.score(normal)
        scores = {"apgd": attacked.score}
        return evaluate_adversarial(of_normal, attacked.clean, radius, scores).clean_normals

    def _guaranteed(
        self, detector: Detector, normal: Tensor, anomalous: Tensor, text: str
    ) -> GuaranteedMetrics:
        from gradood.evaluation import evaluate_guaranteed
        from gradood.smoothing import Smoothing, certify_quantile

        radius = _parse("--guarantee", text, ("l2",))[1]
        point_alpha = _ALPHA / (len(normal) + len(anomalous))
        sigma = radius if self.sigma is None else self.sigma
        smoothing = Smoothing(sigma=sigma, n=self.samples, alpha=point_alpha)
        ids = range(len(normal), len(normal) + len(anomalous))  # noise of their own
        upper = certify_quantile(detector, normal, smoothing).upper[:, 0]
        lower = certify_quantile(detector, anomalous, smoothing, radius=radius, ids=ids).lower
        bound = evaluate_guaranteed(upper, lower, radius, point_alpha=point_alpha, alpha=_ALPHA)
        return bound.clean_normals


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
