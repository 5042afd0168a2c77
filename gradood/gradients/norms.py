"""Squared gradient norms under several labels, as the objective of a ``Scorer``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gradood.gradients import engine
from gradood.gradients.activations import Activations
from gradood.gradients.labels import Label, loss_gradient
from gradood.gradients.penultimate import LastLinear
from gradood.gradients.plan import Plan
from gradood.gradients.reading import Reader, read
from gradood.gradients.recorder import Observer, Recorder
from gradood.gradients.scorer import Objective, Scorer
from gradood.gradients.scores import Scores


@dataclass(frozen=True)
class Norms(Objective):
    """Values ``[N, K, L]`` for K labels and L parameters; without labels, no backward pass.

    Attributes:
        losses: One a label.
        activations: Whether to measure these too.
        observer: Told of every operator call.
    """

    takes_over = True

    labels: Sequence[Label] = ()
    losses: Sequence[str] = ()
    activations: bool = False
    observer: Observer | None = None

    def of_rows(self, rows: slice | list[int]) -> Norms:
        """The same for some samples of the batch."""
        return replace(self, labels=[_of_rows(label, rows) for label in self.labels])

    def of_pass(self, scorer: Scorer, plan: Plan, x: Tensor) -> Scores:
        """Norms by rules where the plan has them, else by the fallback."""
        features, activations = None, Activations()
        gradients: list[Tensor] = []

        def logit_gradients(logits: Tensor) -> list[Tensor]:
            for label, loss in zip(self.labels, self.losses, strict=True):
                gradients.append(loss_gradient(logits, label, loss))
            return gradients

        if plan.steps:
            with scorer.restored(plan):
                seen: Recorder | Reader
                if self.labels:
                    common = (plan, scorer.forward, x, scorer.parameters)
                    logits, seen, norms = engine.run(
                        *common, logit_gradients, self.observer, self.activations
                    )
                else:
                    logits, seen = read(plan, scorer.forward, x, scorer.parameters)
                    norms = []
            features, activations = seen.features, Activations.of(seen.layers)
        else:
            with LastLinear() as last:
                logits = scorer.only_forward(x)
            features = None if self.labels or last.features is None else last.features.detach()
            norms = [{} for _ in logit_gradients(logits)]
        if self.labels:
            others = scorer.without_rules(plan, x, logits, gradients)
            norms = [{**a, **b} for a, b in zip(norms, others, strict=True)]
        values = assembled(norms, list(scorer.parameters), logits)
        return Scores(values, logits, features, activations)


def assembled(norms: Sequence[dict[str, Tensor]], names: Sequence[str], logits: Tensor) -> Tensor:
    """``[N, K, L]`` of norms ``[N]`` by name for K labels; the norm of what is not used is 0."""
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    unused = logits.new_zeros(logits.shape[0], dtype=dtype)
    shape = (len(unused), len(norms), len(names))
    if not names or not norms:
        return unused.new_empty(shape)
    # A model on several devices has its norms on several, too.
    columns = [found.get(name, unused) for found in norms for name in names]
    columns = [c if c.device == unused.device else c.to(unused.device) for c in columns]
    return torch.stack(columns, 1).detach().to(dtype).view(shape)


def _of_rows(label: Label, rows: slice | list[int]) -> Label:
    return label[rows] if isinstance(label, Tensor) and label.dim() == 2 else label
