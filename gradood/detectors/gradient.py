"""``GradientDetector``: several measures of novelty from one pass, fused."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gradood.detectors.batches import AnyBatch
from gradood.detectors.copies import copied_logits
from gradood.detectors.features import count_different
from gradood.detectors.fusion import agreement_weights, fit_part, score_part, tells
from gradood.detectors.norm_detector import NormDetector
from gradood.detectors.novelty import Learned
from gradood.detectors.parts import EVERY, Label, Part, expanded, part_named
from gradood.detectors.presets import EARLIER, GONE, PRESETS
from gradood.errors import InputError
from gradood.gradients import GradientNorms, differentiable_norms, forward_norms, gradient_norms
from gradood.gradients.decision import not_finite_rows
from gradood.gradients.engine import full_precision
from gradood.gradients.validation import Selection, not_finite

if TYPE_CHECKING:
    from typing_extensions import Self

    from gradood.detectors.base import Source

_LOG = logging.getLogger("gradood")

#: Normal inputs from which the presets are good detectors (``benchmarks/results/cifar.md``).
FEW = 200
#: Normal inputs that differ, at least, of which four are held back: the deviation of fewer scores
#: may be next to nothing by accident.
FEWEST = 20
_WEIGHTINGS = ("agreement", "equal")


class GradientDetector(NormDetector, name="gradient"):
    """Weighted mean of standardised measures of novelty; needs no anomalies.

    ``score = Σ_i w_i (s_i - m_i) / σ_i``: the part s_i says how unlike normal inputs an input is;
    m_i and σ_i are its mean and standard deviation on every fifth normal input, which the part is
    not fitted on, and w_i its weight by how well the parts agree there (``agreement_weights``). A
    part counts from m_i - 2 σ_i on: it may call an input normal, not more than that.

    All parts read one pass through the model. A part that the model or the normal inputs do not
    allow (inputs that hold no real numbers, too few inputs a class), or that is the same for all
    normal inputs, up to rounding, is left out; the log says which.

    * ``"forward"``: no backward pass. Mean and power of the channels of every normalisation layer,
      energy less what is usual of the predicted class, relative Mahalanobis distance of the logits.
    * ``"fast"``: one backward pass; gradient norms under the all-hot label beside these.
    * ``"adversarial"``: four forward passes; by how much small changes of the input lower the
      margin of the predicted class beside these: far better on attacked inputs, a little worse on
      others. It is no proof against attacks that know it; see ``gradood.certify_decision``.

    Args:
        model: Classifier in eval mode.
        preset: ``"forward"``, ``"fast"`` or ``"adversarial"``.
        parts: Parts, or names of parts, in place of a preset's: see ``gradood.detectors.PARTS``.
        weighting: ``"agreement"``, or ``"equal"`` for the plain mean, without the floors.
        parameters: Which parameters to use, the last layer's among them: None for all, names, glob
            patterns or a predicate. Layers without any of them are not read.
        **options: As in ``Detector``.

    Raises:
        InputError: There is no such preset, part or weighting.

    Example:
        >>> detector = gradood.GradientDetector(model).fit(normal)
        >>> scores = detector.score(images)
        >>> own = gradood.GradientDetector(model, parts=["layers", "energy"]).fit(normal)
    """

    def __init__(
        self,
        model: nn.Module,
        preset: str | None = "fast",
        *,
        parts: Sequence[str | Part] | None = None,
        weighting: str = "agreement",
        parameters: Selection = None,
        **options: Any,
    ) -> None:
        super().__init__(model, label=[], parameters=parameters, **options)
        if parts is None and preset not in PRESETS:
            gone = f"; in its place take {GONE[str(preset)]}" if preset in GONE else ""
            raise InputError(f"preset = {preset!r}; expected one of {', '.join(PRESETS)}{gone}")
        if weighting not in _WEIGHTINGS:
            raise InputError(f"weighting = {weighting!r}; expected {' or '.join(_WEIGHTINGS)}")
        chosen = PRESETS[str(preset)] if parts is None else parts
        if not chosen:
            raise InputError("parts = []; give one part or more")
        self.preset, self.weighting = preset, weighting
        self._chosen = tuple(p if isinstance(p, Part) else part_named(p) for p in chosen)
        self._use(self._chosen)

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are used: after ``fit`` without those that had to be left out."""
        return self._parts

    def _use(self, parts: tuple[Part, ...]) -> None:
        """Set the parts, and the labels and learned names that follow from them."""
        self._parts = parts
        self._labels: list[Label] = list(dict.fromkeys(one for p in parts for one in p.labels))
        self._activations = any(part.activations for part in parts)
        self._copies = any(part.copies for part in parts)
        learned = {f"{i}.{name}" for i, part in enumerate(parts) for name in self._names_of(part)}
        weights = {"weights"} if self.weighting == "agreement" else set()
        self.LEARNED = frozenset(learned | weights)
        self._is_settled = False

    def _names_of(self, part: Part) -> tuple[str, ...]:
        floor = ("floor",) if self.weighting == "agreement" else ()
        return (*part.learned, "centre", "scale", *floor)

    def settings(self) -> dict[str, Any]:
        settings = super().settings() | {
            "preset": self.preset,
            "parts": [part.name for part in self._parts],
            "weighting": self.weighting,
        }
        return {name: value for name, value in settings.items() if name not in ("label", "loss")}

    @classmethod
    def from_earlier_version(cls, settings: dict[str, Any]) -> dict[str, Any]:
        if "parts" in settings:
            return settings
        return settings | {"parts": EARLIER[settings["preset"]], "weighting": "equal"}

    def fit(self, normal: Source) -> Self:
        """Learn every part, its scale and its weight; forgets the threshold.

        Args:
            normal: Normal inputs, or what ``norms`` made of them: 20 or more; fewer than 200 are
                logged as a warning, 100 a class are better.

        Raises:
            InputError: Fewer than 20 inputs, inputs that hold NaN or Inf or are all alike, or no
                part is left.
        """
        self._forget()
        self._use(self._chosen)
        norms = self._norms(normal, "fitting on normal inputs")
        self._require_usable(norms)
        fitted: list[tuple[Part, Learned, Tensor]] = []
        left_out: dict[str, str] = {}
        for part in self._parts:
            own = self._share(part, norms)
            reason = part.lacks(own) if part.lacks else None
            if reason is None:
                try:
                    with full_precision(self._device.type):
                        learned, scores = fit_part(part, own, self.weighting == "agreement")
                except InputError as error:
                    reason = str(error)
                else:
                    if tells(learned):
                        fitted.append((part, learned, scores))
                        continue
                    reason = "it is the same for all normal inputs"
            left_out[part.name] = reason
        self._say(len(norms.logits), left_out)
        if not fitted:
            raise InputError(f"no part is left: {_listed(left_out)}")
        self._use(tuple(part for part, _, _ in fitted))
        self._learned = {
            f"{i}.{name}": learned[name]
            for i, (part, learned, _) in enumerate(fitted)
            for name in self._names_of(part)
        }
        if self.weighting == "agreement":
            weights = agreement_weights(torch.stack([scores for _, _, scores in fitted], 1))
            self._learned["weights"] = weights.float()
        return self

    def _require_usable(self, norms: GradientNorms) -> None:
        unusable = int(not_finite_rows(*norms.tensors.values()).sum())
        if unusable:
            raise InputError(
                f"what the model made of {unusable} of {len(norms.logits)} normal inputs is not "
                "finite; remove these inputs before fitting"
            )
        if len(norms.logits) < FEWEST:
            raise InputError(
                f"{len(norms.logits)} normal inputs are too few to fit on; give {FEWEST} or more"
            )
        different = count_different(norms.logits.float(), FEWEST)
        if different == 1:
            raise InputError(
                "nothing differs between the normal inputs, so there is nothing to learn; are they "
                "all the same input?"
            )
        if different < FEWEST:
            raise InputError(
                f"only {different} of the {len(norms.logits)} normal inputs differ, and the others "
                f"repeat them; give {FEWEST} or more different ones"
            )

    def _say(self, count: int, left_out: dict[str, str]) -> None:
        without = f"; left out: {_listed(left_out)}" if left_out else ""
        if count < FEW:
            _LOG.warning(
                "a GradientDetector fitted on %d normal inputs has seen too little of them; "
                "give %d or more, or take a GradientKNN%s",
                count, FEW, without,
            )  # fmt: skip
        elif left_out:
            _LOG.warning("a GradientDetector does without some of its parts%s", without)

    def _shares(self, learned: Learned) -> Iterator[tuple[Part, Learned]]:
        """The parts that vary on normal inputs, each with what it learned."""
        for i, part in enumerate(self._parts):
            own = {name: learned[f"{i}.{name}"] for name in self._names_of(part)}
            if tells(own):
                yield part, own

    def _share(self, part: Part, norms: GradientNorms) -> GradientNorms:
        """Norms of the labels that a part reads."""
        if not part.labels or part.labels == tuple(self._labels):
            return norms
        values = norms.values.unflatten(-1, (1, -1)) if norms.values.dim() == 2 else norms.values
        rows = [self._labels.index(label) for label in part.labels]
        return norms.with_tensors([values[:, rows], *list(norms.tensors.values())[1:]])

    def score_norms(self, norms: GradientNorms) -> Tensor:
        learned = self.state
        norms = self._checked(norms).to(self._device)
        if self._activations and norms.channels is None:
            raise InputError(
                "this detector reads activations, and these GradientNorms hold none: make them "
                "with norms(batch) of the detector, or with activations=True"
            )
        if self._copies and norms.copies is None:
            raise InputError(
                "this detector reads changed copies of inputs, and these GradientNorms hold none: "
                "make them with norms(batch) of the detector"
            )
        # A flagged row must not reach the arithmetic, where Inf - Inf would make it NaN.
        usable = ~not_finite_rows(*norms.tensors.values())
        scores = torch.full((len(usable),), torch.inf, device=self._device, dtype=torch.float32)
        if usable.any():
            finite = norms.select(usable)
            shares = list(self._shares(learned))
            with full_precision(self._device.type):
                every = [score_part(p, self._share(p, finite), own) for p, own in shares]
                parts = torch.stack(every)
                weights = learned.get("weights")
                mean = parts.mean(0) if weights is None else weights.to(parts.dtype) @ parts
            scores[usable] = mean.float()
        return scores

    def differentiable_score(self, x: Tensor) -> Tensor:
        """As ``NormDetector.differentiable_score``; without labels one backward pass does."""
        self.require_fitted()
        self._settle_labels(x)
        norms = differentiable_norms(
            self.model,
            x,
            label=self.label,
            loss=self.loss,
            parameters=self.parameters,
            activations=self._activations,
        )
        return self.score_norms(self._with_copies(norms, x))

    def _norms_of(self, batch: AnyBatch) -> GradientNorms:
        not_finite(batch, self.nan_policy)
        self._settle_labels(batch)
        if self.label:
            norms = gradient_norms(
                self.model,
                batch,
                label=self.label,
                loss=self.loss,
                parameters=self.parameters,
                nan_policy="flag",
                activations=self._activations,
            )
        else:
            norms = forward_norms(self.model, batch, parameters=self.parameters, nan_policy="flag")
        with torch.no_grad():
            return self._with_copies(self._checked(norms), batch)

    def _with_copies(self, norms: GradientNorms, batch: AnyBatch) -> GradientNorms:
        """The same, and the logits of changed copies of the batch if a part reads them."""
        if not self._copies or not len(norms.logits):
            return norms
        return replace(norms, copies=copied_logits(self.model, batch))

    def _settle_labels(self, batch: AnyBatch) -> None:
        """Find the labels, for as many classes as the model has."""
        if not self._is_settled:
            self._is_settled, self.label, self.loss = True, [], []
            if self._labels:
                first = forward_norms(self.model, batch[:1].detach(), nan_policy="flag")
                pairs = expanded(self._labels, first.logits.shape[1])
                self.label, self.loss = map(list, zip(*pairs, strict=True))

    def _fitted_on(self) -> tuple[str, int] | None:
        """The part whose standardiser says how norms deviate, if one reads all labels."""
        for i, part in enumerate(self._parts):
            if part.reads_norms and part.labels == tuple(self._labels):
                return f"{i}.", len(self._learned[f"{i}.kept"]) if self._learned else 0
        return None

    def _checked(self, norms: GradientNorms) -> GradientNorms:
        norms = super()._checked(norms)
        given = math.prod(norms.values.shape[1:-1])
        every = EVERY in self._labels  # as many as the model has classes
        if self._labels and not every and given != len(self._labels):
            raise InputError(
                f"gradient norms with {given} labels were given, the detector reads "
                f"{len(self._labels)}"
            )
        return norms


def _listed(left_out: dict[str, str]) -> str:
    return "; ".join(f"{name} ({reason})" for name, reason in left_out.items())
