"""``gradient_norms``: the squared gradient norm of every parameter, for every sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.gradients.cuda_graph import score as cuda_graph_score
from gradood.gradients.labels import Label
from gradood.gradients.outline import Outline
from gradood.gradients.scorer import Scorer, Scores, locked
from gradood.gradients.validation import (
    Selection,
    as_labels,
    as_losses,
    check_arguments,
    not_finite,
    select_parameters,
    unusable_rows,
)


@dataclass(frozen=True)
class GradientNorms:
    """Squared L2 norms of the loss gradient, for every sample and parameter tensor.

    Attributes:
        values: ``[N, L]``, or ``[N, K, L]`` for a list of K labels; float32 (float64 for a float64
            model), on the input's device, detached.
        names: the L parameter names, in ``model.named_parameters()`` order.
        logits: ``[N, C]``, detached: the model's output on the way.
        features: ``[N, F]``, detached: the penultimate features, that is the input of the last
            linear operator with a selected weight that reads one vector a sample; None if the
            rules found no such operator.
    """

    values: Tensor
    names: tuple[str, ...]
    logits: Tensor
    features: Tensor | None = None

    def to(self, device: torch.device | str) -> GradientNorms:
        """The same on another device."""
        features = None if self.features is None else self.features.to(device)
        return GradientNorms(self.values.to(device), self.names, self.logits.to(device), features)

    def select(self, rows: Tensor | slice) -> GradientNorms:
        """Those of some samples: indices, a boolean mask or a slice."""
        features = None if self.features is None else self.features[rows]
        return GradientNorms(self.values[rows], self.names, self.logits[rows], features)

    @staticmethod
    def join(parts: Sequence[GradientNorms]) -> GradientNorms:
        """Batches with the same parameters and labels, at least one, as one."""
        features = [part.features for part in parts if part.features is not None]
        return GradientNorms(
            torch.cat([part.values for part in parts]),
            parts[0].names,
            torch.cat([part.logits for part in parts]),
            torch.cat(features) if len(features) == len(parts) else None,
        )


def gradient_norms(
    model: nn.Module,
    x: Tensor,
    label: Label | Sequence[Label] = "all_hot",
    loss: str | Sequence[str] = "bce",
    parameters: Selection = None,
    method: str = "auto",
    micro_batch: int | None = None,
    nan_policy: str = "raise",
    cuda_graph: bool = False,
) -> GradientNorms:
    """Squared L2 norm of every parameter's loss gradient, for every sample of a batch.

    ``values[n, l] = ‖∂J_n / ∂θ_l‖²`` with ``J_n = Σ_c BCE(σ(z_nc), y_nc)``: how much the network
    would have to change to give sample n the label y. With a *confounding* label, by default all
    classes at once, the norms tell familiar inputs from anomalous ones.

    No gradient is ever stored: every operator's rule turns its input and the gradient of its output
    into N numbers while one backward pass runs. The model comes back as it was, and its results do
    not depend on the batch a sample was scored in. Works inside ``no_grad`` and ``inference_mode``.

    Args:
        model: a classifier in evaluation mode that maps ``x`` to logits ``[N, C]`` (a tensor, or an
            object or mapping with ``logits``).
        x: a batch, samples first.
        label: ``"all_hot"``, ``"zero_hot"``, ``"k_hot:K"`` (K random classes from a fixed seed),
            ``"top_k_hot:K"``, ``"one_hot:c"``, ``"predicted"``, ``"uniform"``, a Tensor ``[C]`` or
            ``[N, C]`` with entries in [0, 1], or a list of these.
        loss: ``"bce"`` (sigmoid, summed over classes), ``"bce_softmax"`` (the same of softmax
            probabilities), ``"ce"`` (cross-entropy to the label divided by its sum) or ``"logit"``
            (``Σ_c y_c z_c``, so that ``"one_hot:c"`` gives the gradient of logit c itself); for a
            list of labels also a list, one loss each.
        parameters: which parameters: None for all, a name or glob pattern or several, or a
            predicate ``(name, parameter) → bool``. Nothing is computed before the first selected.
        method: ``"auto"``; ``"rules"`` refuses the fallback; ``"vmap"`` and ``"loop"`` are the
            slow, independent ways to the same numbers.
        micro_batch: samples a pass, chosen from a memory bound when None.
        nan_policy: ``"raise"``, or ``"flag"`` to give samples infinite norms that hold NaN or Inf,
            or of which the model makes NaN or Inf: in logits, penultimate features or norms.
        cuda_graph: capture both passes in a CUDA graph at the first call of a batch of this shape,
            and replay it at the next ones, so that launching kernels takes no time. For a model on
            a GPU that every rule covers, a batch that is one micro-batch, and labels named by
            their kind without numbers to check (see ``cuda_graph.LABELS``).

    Returns:
        The norms, the names of their columns and the logits.

    Raises:
        InputError: an argument is wrong, or ``x`` holds NaN or Inf.
        ModelError: the model's output is not ``[N, C]``, batch statistics are in use, the samples
            of a batch influence one another, or the model makes NaN or Inf of a finite sample.

    Source: Lee, Prabhushankar, AlRegib, "Gradient-Based Adversarial and Out-of-Distribution
    Detection", 2022, arXiv 2206.08255.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> norms = gradient_norms(model, torch.ones(5, 3))
        >>> norms.names, norms.values.shape
        (('weight', 'bias'), torch.Size([5, 2]))
    """
    labels, several = as_labels(label)
    losses = as_losses(loss, len(labels))
    with prepared(model, x, parameters, method, micro_batch, nan_policy) as call:
        if x.shape[0] == 0:
            shape = (0, len(labels), len(call.chosen)) if several else (0, len(call.chosen))
            values = x.new_empty(shape, dtype=torch.float32)
            return GradientNorms(values, tuple(call.chosen), x.new_empty(0, 0))
        scorer = Scorer(model, call.known, call.chosen, labels, losses, method)
        score = cuda_graph_score if cuda_graph else Scorer.score
        scores = call.flagged(score(scorer, call.x, micro_batch))
    values = scores.values if several else scores.values[:, 0]
    return GradientNorms(values, tuple(call.chosen), scores.logits, scores.features)


class Prepared(NamedTuple):
    """A checked call: the batch to score, the parameters to score, and rows that are unusable."""

    known: Outline
    chosen: dict[str, Parameter]
    x: Tensor
    bad: Tensor | None
    nan_policy: str

    def flagged(self, scores: Scores) -> Scores:
        """Rows with NaN or Inf have infinite values, and neither logits nor features.

        Raises:
            ModelError: the model made NaN or Inf of finite rows, and the policy is to raise.
        """
        bad = unusable_rows(scores, self.bad, self.nan_policy)
        if bad is None:
            return scores
        values, logits, features = scores
        values[bad] = float("inf")
        logits = logits.masked_fill(bad[:, None], float("nan"))
        if features is not None:
            features = features.masked_fill(bad[:, None], float("nan"))
        return Scores(values, logits, features)


@contextmanager
def prepared(
    model: nn.Module,
    x: Tensor,
    parameters: Selection,
    method: str,
    micro_batch: int | None,
    nan_policy: str,
) -> Iterator[Prepared]:
    """Check the arguments of ``gradient_norms``; hold the model's lock, with gradients enabled."""
    check_arguments(model, x, method, micro_batch, nan_policy)
    bad = not_finite(x, nan_policy)
    with torch.inference_mode(False), torch.enable_grad(), locked(model) as known:
        chosen = select_parameters(model, parameters, known)
        if x.shape[0]:
            x = x.clone() if x.is_inference() else x.detach()
        if bad is not None:
            x = x.masked_fill(bad.view(-1, *[1] * (x.dim() - 1)), 0.0)
        yield Prepared(known, chosen, x, bad, nan_policy)
