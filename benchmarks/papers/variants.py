"""The paper's detector otherwise: what limits it, and what else the same passes tell."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import binary_cross_entropy_with_logits

from benchmarks.experiments.observations import Observer, as_floats
from benchmarks.experiments.protocols import Scores, Study, Supervised, paper_detector
from gradood.detectors.features import Standardiser
from gradood.gradients import GradientNorms

THREE = ("all-hot", "CE-uniform", "half of the logits")
FILTERS = "all-hot, by filter"
_CLIP = 10.0


def _log(values: Tensor) -> Tensor:
    return values.clamp_min(1e-12).log().flatten(1)


#: What a forward and a backward pass tell, as numbers ``[N, D]``.
READ: dict[str, Callable[[GradientNorms], Tensor]] = {
    "norms": lambda n: _log(n.values),
    "activations": lambda n: _log(n.activations),  # type: ignore[arg-type]
    "features": lambda n: n.features,  # type: ignore[return-value,dict-item]
    "logits": lambda n: n.logits,
}


class Linear:
    """Logistic regression on standardised numbers, both classes of equal weight.

    Args:
        parts: What is read, of ``READ``.
        strength: Inverse of the penalty's weight.
    """

    def __init__(self, *parts: str, strength: float = 0.1) -> None:
        self._parts, self._strength = parts, strength

    def fit(self, normal: GradientNorms, anomalies: GradientNorms) -> Linear:
        """Train; both as the observer gives them."""
        known, strange = self._numbers(normal), self._numbers(anomalies)
        self._standardise = Standardiser.fit(known)
        x = torch.cat([self._ready(known), self._ready(strange)]).double().numpy()
        y = [0] * len(known) + [1] * len(strange)
        self._fitted = LogisticRegression(
            C=self._strength, class_weight="balanced", max_iter=2000
        ).fit(x, y)
        return self

    def score(self, x: GradientNorms) -> Tensor:
        """Log-odds of being anomalous."""
        x = self._ready(self._numbers(x)).double().numpy()
        return torch.from_numpy(self._fitted.decision_function(x))

    def _numbers(self, norms: GradientNorms) -> Tensor:
        return torch.cat([READ[part](norms) for part in self._parts], 1).float()

    def _ready(self, numbers: Tensor) -> Tensor:
        return self._standardise(numbers).clamp(-_CLIP, _CLIP)


class Fewer:
    """A detector that trains on a share of the pictures."""

    def __init__(self, detector: Any, share: float) -> None:
        self._detector, self._share = detector, share

    def fit(self, normal: GradientNorms, anomalies: GradientNorms) -> Scores:
        """Every tenth picture, or every other one …"""
        step = slice(None, None, round(1 / self._share))
        fitted: Scores = self._detector.fit(normal.select(step), anomalies.select(step))
        return fitted


def linear(*parts: str, kinds: tuple[str, ...] = ("all-hot",), **options: Any) -> Supervised:
    """Logistic regression as a variant of the paper's detector."""
    return Supervised(kinds, lambda study, seed: Linear(*parts, **options))


#: Rows of the main tables beside the paper's own.
BETTER = {
    "linear": linear("norms"),
    "linear, three labels": linear("norms", kinds=THREE),
    "linear, three labels + activations": linear("norms", "activations", kinds=THREE),
    "linear, everything": linear(*READ, kinds=THREE),
}
#: What limits the paper's detector: one thing changed at a time, beside the main tables' rows.
LIMITS: Mapping[str, Supervised] = {
    "paper's, a tenth of the training pictures": Supervised(
        ("all-hot",), lambda study, seed: Fewer(paper_detector(study, seed), 0.1)
    ),
    "linear, a tenth of the training pictures": Supervised(
        ("all-hot",), lambda study, seed: Fewer(Linear("norms"), 0.1)
    ),
    **{f"linear, C = {c:g}": linear("norms", strength=c) for c in (0.01, 1.0)},
    **{f"linear, {part} alone": linear(part) for part in READ if part != "norms"},
}
#: The same with a norm for every filter, instead of one for every tensor.
BY_FILTER = {
    f"linear, a norm a filter, C = {c:g}": linear("norms", kinds=(FILTERS,), strength=c)
    for c in (0.001, 0.01)
}


class FilterObserver(NamedTuple):
    """An observer that has norms by filter too: of every row of a weight, and every bias."""

    observer: Observer

    @property
    def model(self) -> nn.Module:
        return self.observer.model

    def norms(self, images: Tensor, *kinds: str) -> GradientNorms:
        """As the observer's; all kinds must be ``FILTERS``."""
        assert set(kinds) == {FILTERS}
        key = [FILTERS.encode(), str(images.dtype).encode(), images.numpy().tobytes()]
        values = self.observer.kept(key, lambda: {"values": filter_norms(self.model, images)})
        found = values["values"][:, None]
        names = tuple(map(str, range(found.shape[2])))
        return replace(self.observer.norms(images), values=found, names=names)


def filter_norms(model: nn.Module, images: Tensor) -> Tensor:
    """Squared norms ``[N, Σ O]`` of the all-hot gradient by first axis of every parameter."""
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        logits = functional_call(model, {**parameters, **buffers}, x[None])
        return binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="sum")

    parts = []
    for batch in torch.split(images, 32):
        found = vmap(grad(loss), (None, 0))(parameters, as_floats(batch))
        rows = [g.flatten(2).square().sum(2) if g.dim() > 2 else g.square() for g in found.values()]
        parts.append(torch.cat(rows, 1))
    return torch.cat(parts)


def by_filter(study: Study) -> Study:
    """The same study, whose observer has norms by filter."""
    return Study(FilterObserver(study.observer), study.classifier, study.seed)  # type: ignore[arg-type]
