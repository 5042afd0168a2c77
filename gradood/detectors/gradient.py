"""``GradientDetector``: several measures of novelty from one pass, fused; three presets."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradood.detectors.features import Standardiser
from gradood.detectors.norm_detector import NormDetector
from gradood.detectors.novelty import Learned
from gradood.detectors.presets import PRESETS, Part
from gradood.errors import InputError
from gradood.gradients import GradientNorms, gradient_norms
from gradood.gradients.decision import predicted

if TYPE_CHECKING:
    from typing_extensions import Self

    from gradood.detectors.base import Source

_LOG = logging.getLogger("gradood")

#: Normal inputs from which the presets are good detectors (``benchmarks/results/experiments.md``).
FEW = 200
#: Of so many normal inputs, one standardises the scores of the measures that the others fit.
_HELD_BACK = 5
#: Normal inputs that differ, at least, of which four are held back: the deviation of fewer scores
#: may be next to nothing by accident.
FEWEST = 20
#: Scores that deviate by less than so many times their rounding say nothing.
_ROUNDINGS = 10


class GradientDetector(NormDetector):
    """Mean of several standardised measures of novelty; needs no anomalies.

    ``score = mean_i (s_i - m_i) / σ_i``: s_i says how unlike those of normal inputs the vectors of
    an input are; m_i and σ_i are its mean and standard deviation on every fifth normal input, which
    the measure is not fitted on. The vectors are log squared gradient norms and, beside them,
    penultimate features (logits for ``"best"``), both from the same pass through the model. A
    measure that is the same for all normal inputs, up to rounding, is left out.

    * ``"fast"``: one backward pass, norms under the all-hot label.
    * ``"adversarial"``: two, norms of the largest logit's gradient and of half of the logits' sum,
      alone and in one vector with the features; better on attacked inputs, worse on others.
    * ``"best"``: one backward pass a class, norms of every logit's own gradient.

    Args:
        model: Classifier in eval mode; its last layer is linear.
        preset: ``"fast"``, ``"adversarial"`` or ``"best"``.
        parameters: Which parameters to use, the last layer's among them: None for all, names, glob
            patterns or a predicate.
        **options: As in ``Detector``.

    Raises:
        InputError: There is no such preset.

    Example:
        >>> detector = gradood.GradientDetector(model).fit(normal)
        >>> scores = detector.score(images)
    """

    FITTED_ON = "0.kept"

    def __init__(
        self, model: nn.Module, preset: str = "fast", *, parameters: Any = None, **options: Any
    ) -> None:
        if preset not in PRESETS:
            raise InputError(f"preset = {preset!r}; expected one of {', '.join(PRESETS)}")
        super().__init__(model, label=None, parameters=parameters, **options)
        self.preset = preset
        self._parts = PRESETS[preset].parts
        self.LEARNED = frozenset(
            f"{i}.{name}" for i, part in enumerate(self._parts) for name in _names(part)
        )

    def _settings(self) -> dict[str, Any]:
        settings = super()._settings() | {"preset": self.preset}
        return {name: value for name, value in settings.items() if name not in ("label", "loss")}

    def fit(self, normal: Source) -> Self:
        """Learn every measure, and its scale; forgets the threshold.

        Args:
            normal: Normal inputs, or their ``GradientNorms``: 20 or more; fewer than 200 are
                logged as a warning, 100 a class are better.

        Raises:
            InputError: Fewer than 20 inputs, inputs that hold NaN or Inf or are all alike, or no
                penultimate features.
        """
        self._forget()
        norms = self._norms(normal, "fitting on normal inputs")
        if (count := len(norms.logits)) < FEW:
            _LOG.warning(
                "a GradientDetector fitted on %d normal inputs has seen too little of them; "
                "give %d or more, or take a GradientKNN",
                count, FEW,
            )  # fmt: skip
        learned: Learned = {}
        for i, part in enumerate(self._parts):
            found = fit_part(part, norms)
            learned |= {f"{i}.{name}": found[name] for name in _names(part)}
        if not any(map(_tells, self._shares(learned))):
            raise InputError(
                "no measure of novelty differs between the normal inputs, so there is nothing to "
                "learn; are they all the same few inputs?"
            )
        self._learned = learned
        return self

    def _shares(self, learned: Learned) -> Iterator[Learned]:
        """What each part learned, of what all of them did."""
        for i, part in enumerate(self._parts):
            yield {name: learned[f"{i}.{name}"] for name in _names(part)}

    def _score_norms(self, norms: GradientNorms) -> Tensor:
        learned = self._require_fitted()
        norms = self._checked(norms).to(self._device)
        # A flagged row must not reach the arithmetic, where Inf - Inf would make it NaN.
        usable = norms.values.flatten(1).isfinite().all(1)
        scores = torch.full((len(usable),), torch.inf, device=self._device)
        if usable.any():
            finite = norms.select(usable)
            parts = [
                score_part(part, finite, own)
                for part, own in zip(self._parts, self._shares(learned), strict=True)
                if _tells(own)
            ]
            scores[usable] = torch.stack(parts).mean(0).float()
        return scores

    def differentiable_score(self, x: Tensor) -> Tensor:
        """As ``NormDetector.differentiable_score``."""
        self._settle_labels(x)
        return super().differentiable_score(x)

    def _norms_of(self, batch: Tensor) -> GradientNorms:
        self._settle_labels(batch)
        return super()._norms_of(batch)

    def _settle_labels(self, batch: Tensor) -> None:
        if self.label is None:
            first = gradient_norms(self.model, batch[:1].detach(), nan_policy="flag")
            preset = PRESETS[self.preset]
            self.label, self.loss = preset.labels(first.logits.shape[1]), preset.loss


def _names(part: Part) -> tuple[str, ...]:
    return (*Standardiser._fields, *part.novelty.learned, "centre", "scale")


def _tells(learned: Learned) -> bool:
    """Whether a part's scores differ between normal inputs by more than rounding."""
    return bool(learned["scale"].isfinite().all())


def fit_part(part: Part, norms: GradientNorms) -> Learned:
    """What a part learns of normal inputs, with mean and deviation of its scores of held ones.

    An infinite deviation marks a part that tells nothing.
    """
    vectors, classes = part.vectors(norms), predicted(norms.logits)
    standardise = Standardiser.fit(vectors, FEWEST)
    features = standardise(vectors).double()
    held = torch.arange(len(features), device=features.device) % _HELD_BACK == _HELD_BACK - 1
    learned = part.novelty.fit(features[~held], classes[~held])
    scores = part.novelty.score(features[held], classes[held], learned)
    scale, centre = torch.std_mean(scores)
    # Doubles would take twice the memory, and round no better than the norms do.
    floats = {k: t.float() if t.is_floating_point() else t for k, t in learned.items()}
    rounded = part.novelty.score(features[held].float(), classes[held], floats)
    rounding = (rounded.double() - scores).square().mean().sqrt()
    # Of one class, for example, the distance relative to all vectors is a difference of equals.
    scale = torch.where(scale > _ROUNDINGS * rounding, scale, torch.inf)
    fitted = {"centre": centre[None].float(), "scale": scale[None].float()}
    return standardise._asdict() | floats | fitted


def score_part(part: Part, norms: GradientNorms, learned: Learned) -> Tensor:
    """Standardised scores ``[N]`` by what ``fit_part`` learned."""
    standardise = Standardiser(*(learned[name] for name in Standardiser._fields))
    features = standardise(part.vectors(norms))
    scores = part.novelty.score(features, predicted(norms.logits), learned)
    return (scores - learned["centre"]) / learned["scale"]
