"""``gradient_grams``: inner products of the logits' gradients, from which every norm follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gradood.arguments import checked
from gradood.gradients.api import GradientNorms, prepared
from gradood.gradients.engine import full_precision
from gradood.gradients.labels import Label, loss_gradient
from gradood.gradients.plan import Plan
from gradood.gradients.recorder import GRADIENT_BYTES, Recorder
from gradood.gradients.rules import Call
from gradood.gradients.scorer import Objective, Scorer
from gradood.gradients.scores import Scores
from gradood.gradients.source import Source
from gradood.gradients.step import Step
from gradood.gradients.validation import Batch, Selection, as_labels, as_losses


@dataclass(frozen=True)
class GradientGrams:
    """Inner products of the gradients of a sample's logits, for every parameter tensor.

    Attributes:
        values: ``[N, L, C, C]``, ``K[n, l, c, c'] = ⟨∂z_nc / ∂θ_l, ∂z_nc' / ∂θ_l⟩``; float32
            (float64 for a float64 model), on the input's device, detached.
        names: The L parameter names, in ``model.named_parameters()`` order.
        logits: ``[N, C]``, detached.
        features: ``[N, F]`` as in ``GradientNorms``.
    """

    values: Tensor
    names: tuple[str, ...]
    logits: Tensor
    features: Tensor | None = None

    def norms(
        self, label: Label | Sequence[Label] = "all_hot", *, loss: str | Sequence[str] = "bce"
    ) -> GradientNorms:
        """What ``gradient_norms`` gives for ``label`` and ``loss``: ``δᵀ K δ``.

        ``δ`` ``[N, C]`` is the gradient of the loss at the logits. Costs no pass through the model.
        A norm far below those of the logits' own gradients loses digits: rounding is relative to
        ``Σ_cc' |δ_c K_cc' δ_c'|``.

        Raises:
            InputError: The label or the loss is not known.
        """
        labels, several = as_labels(label)
        pairs = zip(labels, as_losses(loss, len(labels)), strict=True)
        deltas = torch.stack([loss_gradient(self.logits, *pair) for pair in pairs], 1)
        rows = []
        for delta, gram in zip(deltas, self.values, strict=True):  # float64, a sample at a time
            pulled = torch.einsum("kc,lcd->kld", delta, gram.double())
            rows.append(torch.einsum("kld,kd->kl", pulled, delta))
        shape = (0, len(labels), len(self.names))
        values = torch.stack(rows) if rows else deltas.new_empty(shape)
        values = values.clamp_min(0).to(self.values.dtype)
        values[self.values.isinf().flatten(1).any(1)] = torch.inf  # flagged for NaN or Inf
        values = values if several else values[:, 0]
        return GradientNorms(values, self.names, self.logits, self.features)


@checked
def gradient_grams(
    model: nn.Module,
    x: Batch,
    *,
    parameters: Selection = None,
    method: str = "auto",
    micro_batch: int | None = None,
    nan_policy: str = "raise",
) -> GradientGrams:
    """Inner products of the gradients of every two logits, for every sample and parameter.

    ``K[n, l, c, c'] = ⟨∂z_nc / ∂θ_l, ∂z_nc' / ∂θ_l⟩``. The squared gradient norm of parameter l is
    ``δᵀ K[n, l] δ`` for **every** label and loss, δ being the loss gradient at the logits; see
    ``GradientGrams.norms``. One forward and C backward passes.

    Args:
        model: A classifier in evaluation mode, as for ``gradient_norms``.
        x: A batch, samples first.
        parameters: Which parameters, as for ``gradient_norms``.
        method: As for ``gradient_norms``. What no rule covers is polarised, from C (C + 1) / 2
            norms, ``2 ⟨a, b⟩ = ‖a + b‖² − ‖a‖² − ‖b‖²``: exact, and slow.
        micro_batch: Samples a pass, chosen from a memory bound when None.
        nan_policy: ``"raise"``, or ``"flag"`` to give samples with NaN or Inf infinite Grams.

    Raises:
        InputError, ModelError: As for ``gradient_norms``.

    Example:
        >>> grams = gradient_grams(torch.nn.Linear(3, 2), torch.ones(5, 3))
        >>> grams.values.shape, grams.norms("uniform", loss="ce").values.shape
        (torch.Size([5, 2, 2, 2]), torch.Size([5, 2]))
    """
    with prepared(model, x, parameters, method, micro_batch, nan_policy) as call:
        if len(call.x) == 0:
            empty = call.x.new_empty(0, len(call.chosen), 0, 0, dtype=torch.float32)
            return GradientGrams(empty, tuple(call.chosen), empty.new_empty(0, 0))
        scorer = Scorer(call.model, call.known, call.chosen, _Grams(), method)
        scores = call.flagged(scorer.score(call.x, micro_batch))
        if call.chosen and not bool(scores.values.any()):
            scorer.require_gradient(call.x)
    return GradientGrams(scores.values, tuple(call.chosen), scores.logits, scores.features)


class _Grams(Objective):
    """Values ``[N, L, C, C]`` for L parameters and C logits."""

    def memory(self, scorer: Scorer, x: Tensor) -> int:
        """Output gradients are kept for every logit."""
        return 1 + scorer.only_forward(x[:1]).shape[1]

    def of_pass(self, scorer: Scorer, plan: Plan, x: Tensor) -> Scores:
        """Products of gradients by rules; of what has none, from norms of sums."""
        features = None
        grams: dict[str, Tensor] = {}
        if plan.steps:
            with scorer.restored(plan):
                logits, features, grams = _recorded(scorer, plan, x)
        else:
            logits = scorer.only_forward(x)
        grams |= _polarised(scorer, plan, x, logits)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        shape = (x.shape[0], logits.shape[1], logits.shape[1])
        unused = torch.zeros(shape, dtype=dtype, device=x.device)
        columns = [grams.get(name, unused).to(unused) for name in scorer.parameters]
        values = torch.stack(columns, 1) if columns else unused[:, None][:, :0]
        return Scores(values, logits, features)


def _recorded(
    scorer: Scorer, plan: Plan, x: Tensor
) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
    recorder = _GramRecorder(plan, scorer.parameters, x.shape[0], x.device)
    with recorder:
        logits = scorer.forward(x)
    recorder.finish()
    classes = logits.shape[1]
    unit = torch.eye(classes, device=x.device, dtype=torch.float32)
    with full_precision(x.device.type):
        for c in range(classes):
            recorder.logit = c
            recorder.backward(logits, unit[c].expand_as(logits), last=c == classes - 1)
        return logits.detach(), recorder.features, recorder.grams(classes)


def _polarised(scorer: Scorer, plan: Plan, x: Tensor, logits: Tensor) -> dict[str, Tensor]:
    """``2 ⟨a, b⟩ = ‖a + b‖² − ‖a‖² − ‖b‖²`` for parameters without a rule."""
    classes = logits.shape[1]
    unit = torch.eye(classes, dtype=torch.float64, device=x.device)
    pairs = [(a, b) for a in range(classes) for b in range(a + 1)]
    gradients = [unit[a] if a == b else unit[a] + unit[b] for a, b in pairs]
    batch = [g.expand(x.shape[0], classes) for g in gradients]
    norms = scorer.without_rules(plan, x, logits, batch)
    found = {}
    for name in norms[0] if norms else ():
        sums = {pair: norm[name].double() for pair, norm in zip(pairs, norms, strict=True)}
        gram = torch.stack([sums[max(p), min(p)] for p in _all_pairs(classes)], 1)
        own = torch.stack([sums[c, c] for c in range(classes)], 1)
        gram = (gram.view(-1, classes, classes) - own[:, :, None] - own[:, None, :]) / 2
        found[name] = gram.diagonal_scatter(own, dim1=1, dim2=2)
    return found


def _all_pairs(classes: int) -> list[tuple[int, int]]:
    return [(a, b) for a in range(classes) for b in range(classes)]


@dataclass
class _Use:
    """One use of a parameter: its call, and the gradient of the output for every logit."""

    call: Call
    role: str
    source: Source
    x: Tensor | None
    gradients: dict[int, Tensor]


class _GramRecorder(Recorder):
    """Keep the output gradients for every logit, then multiply parameter gradients."""

    may_take_over = False

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.logit = 0
        self._uses: dict[tuple[str, int, str], _Use] = {}

    def _receive(
        self, step: Step, call: Call, held: list[Tensor | None], version: int, d: Tensor
    ) -> None:
        x, d = self._unpack(step, held, version, d)
        d = d.to(torch.promote_types(d.dtype, torch.float32))
        for use in step.uses:
            key = (use.parameter, step.position, use.role)
            if key not in self._uses:
                source = self.source(call.operands[use.role])
                assert source is not None
                self._uses[key] = _Use(call, use.role, source, x, {})
            self._uses[key].gradients[self.logit] = d

    def grams(self, classes: int) -> dict[str, Tensor]:
        """``[N, C, C]`` by parameter; lets go of what was kept."""
        uses: dict[str, list[_Use]] = {}
        for (name, _, _), use in self._uses.items():
            uses.setdefault(name, []).append(use)
        self._uses = {}
        return {name: self._gram(name, uses.pop(name), classes) for name in list(uses)}

    def _gram(self, name: str, uses: list[_Use], classes: int) -> Tensor:
        stacked = [_stack(use.gradients, classes) for use in uses]
        if len(uses) == 1 and uses[0].source.live is uses[0].source.leaves[name]:
            short = uses[0].call.gram(uses[0].x, stacked[0], uses[0].role)
            if short is not None:
                return short
        numel = max(
            self._parameters[name].numel(), *(u.call.operands[u.role].numel() for u in uses)
        )
        chunk = max(1, GRADIENT_BYTES // (4 * classes * max(numel, 1)))
        parts = []
        for start in range(0, self.samples, chunk):
            rows, total = slice(start, start + chunk), None
            for use, d in zip(uses, stacked, strict=True):
                x = None if use.x is None else use.x[rows]
                gradient = use.call.gradients(x, d[rows], use.role)
                flat = use.source.pull_back(gradient.flatten(0, 1), name).unflatten(
                    0, gradient.shape[:2]
                )
                total = flat if total is None else total + flat
            assert total is not None
            jacobian = total.reshape(*total.shape[:2], -1)  # [n, C, numel]
            parts.append(torch.bmm(jacobian, jacobian.transpose(1, 2)))
        return torch.cat(parts)


def _stack(gradients: dict[int, Tensor], classes: int) -> Tensor:
    """``[N, C, …]``; a logit that does not depend on an output has no gradient there."""
    zero = torch.zeros_like(next(iter(gradients.values())))
    return torch.stack([gradients.get(c, zero) for c in range(classes)], 1)
