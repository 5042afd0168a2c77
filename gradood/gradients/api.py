"""``gradient_norms``: the squared gradient norm of every parameter, for every sample."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.arguments import checked
from gradood.gradients.cuda_graph import score as cuda_graph_score, score_if_wanted
from gradood.gradients.labels import Label
from gradood.gradients.norms import Norms
from gradood.gradients.outline import Outline
from gradood.gradients.scorer import Scorer, locked
from gradood.gradients.scores import Scores, join_known
from gradood.gradients.validation import (
    Batch,
    Selection,
    as_labels,
    as_losses,
    check_arguments,
    one_tensor,
    select_parameters,
    unusable_rows,
)


@dataclass(frozen=True)
class GradientNorms:
    """Squared L2 norms of the loss gradient, for every sample and parameter tensor.

    Attributes:
        values: ``[N, L]``, or ``[N, K, L]`` for a list of K labels; float32 (float64 for a float64
            model), on the input's device, detached.
        names: The L parameter names, in ``model.named_parameters()`` order.
        logits: ``[N, C]``, detached: the model's output on the way.
        features: ``[N, F]``, detached: the penultimate features, that is the input of the last
            linear operator with a selected weight that reads one vector a sample; None if the
            rules found no such operator.
        activations: ``[N, A]``, detached: ``Σ a²`` over the output a of every normalisation layer
            with a selected parameter, in the order of the forward pass, or, where there are fewer
            than three, of every operator in which such a parameter meets the batch; None where
            they were not asked for, or no rule covers an operator.
        channels: ``[N, 2, Σ C]``: mean and mean square of these outputs over all positions, by
            channel; of layers with more than 64 channels C = 64 or fewer, evenly spread.
        activation_names: For each of these layers the first parameter that it uses.
        channel_counts: C of each of these layers.
        copies: ``[N, T, C]``: logits of T changed copies of every sample, where a detector that
            reads them made the norms; else None.
        precision: How float32 was multiplied: ``"exact"`` or ``"fast"``.
    """

    values: Tensor
    names: tuple[str, ...]
    logits: Tensor
    features: Tensor | None = None
    activations: Tensor | None = None
    channels: Tensor | None = None
    activation_names: tuple[str, ...] = ()
    channel_counts: tuple[int, ...] = ()
    copies: Tensor | None = None
    precision: str = "exact"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """Those of the attributes that have a row a sample, as far as they are known."""
        names = ("values", "logits", "features", "activations", "channels", "copies")
        return {name: t for name in names if (t := getattr(self, name)) is not None}

    def to(self, device: torch.device | str) -> GradientNorms:
        """The same on another device."""
        return self._each(lambda tensor: tensor.to(device))

    def select(self, rows: Tensor | slice) -> GradientNorms:
        """Those of some samples: indices, a boolean mask or a slice."""
        return self._each(lambda tensor: tensor[rows])

    def _each(self, change: Callable[[Tensor], Tensor]) -> GradientNorms:
        return self.with_tensors(change(tensor) for tensor in self.tensors.values())

    def with_tensors(self, tensors: Iterable[Tensor]) -> GradientNorms:
        """Others in the place of ``tensors``, in their order."""
        changed: dict[str, Any] = dict(zip(self.tensors, tensors, strict=True))
        return replace(self, **changed)

    @staticmethod
    def join(parts: Sequence[GradientNorms]) -> GradientNorms:
        """Batches with the same parameters and labels, at least one, as one."""
        return GradientNorms(
            torch.cat([part.values for part in parts]),
            parts[0].names,
            torch.cat([part.logits for part in parts]),
            join_known([part.features for part in parts]),
            join_known([part.activations for part in parts]),
            join_known([part.channels for part in parts]),
            parts[0].activation_names,
            parts[0].channel_counts,
            join_known([part.copies for part in parts]),
            "fast" if any(part.precision == "fast" for part in parts) else "exact",
        )


@checked
def gradient_norms(
    model: nn.Module,
    x: Batch,
    *,
    label: Label | Sequence[Label] = "all_hot",
    loss: str | Sequence[str] = "bce",
    parameters: Selection = None,
    method: str = "auto",
    micro_batch: int | None = None,
    nan_policy: str = "raise",
    cuda_graph: bool = False,
    activations: bool = False,
    precision: str = "exact",
) -> GradientNorms:
    """Squared L2 norm of every parameter's loss gradient, for every sample of a batch.

    ``values[n, l] = ‖∂J_n / ∂θ_l‖²`` with ``J_n = Σ_c BCE(σ(z_nc), y_nc)``: how much the network
    would have to change to give sample n the label y. With a *confounding* label, by default all
    classes at once, the norms tell familiar inputs from anomalous ones.

    In float32 every norm is within 1e-5 of the exact one, relative to itself, or within ten times
    the largest error of a float32 loop over the same samples where that is larger; in float64
    within 1e-9. Norms below 1e-10 of their sample's largest count as zero. Half-precision gradients
    are summed in float32, so what is left is the rounding of the model's own passes.

    No gradient is ever stored: every operator's rule turns its input and the gradient of its output
    into N numbers while one backward pass runs. The model is left as it was. Norms of a sample do
    not depend on the rest of the batch beyond rounding. Works inside ``no_grad`` and
    ``inference_mode``.

    Args:
        model: A classifier in evaluation mode that maps ``x`` to logits ``[N, C]`` (a tensor, or an
            object or mapping with ``logits``).
        x: A batch, samples first: a tensor, or several. A mapping holds the model's keyword
            arguments, a tuple or list its arguments, however they are nested: tensors with the
            same first dimension, on one device, and constants.
        label: ``"all_hot"``, ``"zero_hot"``, ``"k_hot:K"`` (K random classes from a fixed seed),
            ``"top_k_hot:K"``, ``"one_hot:c"``, ``"predicted"``, ``"uniform"``, a Tensor ``[C]`` or
            ``[N, C]`` with entries in [0, 1], or a list of these.
        loss: ``"bce"`` (sigmoid, summed over classes), ``"bce_softmax"`` (the same of softmax
            probabilities), ``"ce"`` (cross-entropy to the label divided by its sum) or ``"logit"``
            (``Σ_c y_c z_c``, so that ``"one_hot:c"`` gives the gradient of logit c itself); for a
            list of labels also a list, one loss each.
        parameters: Which parameters: None for all, a name or glob pattern or several, or a
            predicate ``(name, parameter) → bool``. Nothing is computed before the first selected.
        method: ``"auto"``; ``"rules"`` refuses the fallback; ``"vmap"`` and ``"loop"`` are the
            slow, independent ways to the same numbers.
        micro_batch: Samples a pass, chosen from a memory bound when None.
        nan_policy: ``"raise"``, or ``"flag"`` to give samples infinite norms that hold NaN or Inf,
            or of which the model makes NaN or Inf: in logits, penultimate features or norms.
        cuda_graph: Capture both passes in a CUDA graph at the first call of a batch of this shape,
            and replay it at the next ones, so that launching kernels takes no time. For a model on
            a GPU that every rule covers, a batch that is one micro-batch, and labels named by
            their kind without numbers to check (see ``cuda_graph.LABELS``).
        activations: Also measure the activations, see ``GradientNorms.activations``.
        precision: ``"exact"`` multiplies float32 as such for as long as the call takes, in the
            model's passes too; by default PyTorch rounds operands of convolutions to TF32 on a GPU,
            which changes norms by percents. ``"fast"`` leaves PyTorch's switches as they are and
            multiplies norms in TF32, and the accuracy above does not hold.

    Returns:
        The norms, the names of their columns and the logits.

    Raises:
        InputError: An argument is wrong, or ``x`` holds NaN or Inf.
        ModelError: The model's output is not ``[N, C]``, batch statistics are in use, the samples
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
    with prepared(model, x, parameters, method, micro_batch, nan_policy, precision) as call:
        if len(call.x) == 0:
            shape = (0, len(labels), len(call.chosen)) if several else (0, len(call.chosen))
            return _nothing(shape, call)
        norms = Norms(labels, losses, activations)
        scorer = Scorer(call.model, call.known, call.chosen, norms, method)
        score = cuda_graph_score if cuda_graph else score_if_wanted
        scores = call.flagged(score(scorer, call.x, micro_batch))
        if labels and call.chosen and not bool(scores.values.any()):
            scorer.require_gradient(call.x)
    values = scores.values if several else scores.values[:, 0]
    return _gathered(values, call, scores, precision)


@checked
def forward_norms(
    model: nn.Module, x: Batch, *, parameters: Selection = None, nan_policy: str = "raise"
) -> GradientNorms:
    """Logits, features and activations of a batch, without a backward pass.

    As ``gradient_norms`` for no label at all: ``values`` is ``[N, 0, L]``, the rest is the same.
    Arguments and errors as there.

    Example:
        >>> norms = forward_norms(torch.nn.Linear(3, 2), torch.ones(5, 3))
        >>> norms.values.shape, norms.activations.shape
        (torch.Size([5, 0, 2]), torch.Size([5, 1]))
    """
    with prepared(model, x, parameters, "auto", None, nan_policy) as call:
        if len(call.x) == 0:
            return _nothing((0, 0, len(call.chosen)), call)
        scorer = Scorer(call.model, call.known, call.chosen, Norms(activations=True))
        scores = call.flagged(scorer.score(call.x, None))
    return _gathered(scores.values, call, scores)


def _nothing(shape: tuple[int, ...], call: Prepared) -> GradientNorms:
    """The norms of no sample."""
    values = call.x.new_empty(shape, dtype=torch.float32)
    return GradientNorms(values, tuple(call.chosen), values.new_empty(0, 0))


def _gathered(
    values: Tensor, call: Prepared, scores: Scores, precision: str = "exact"
) -> GradientNorms:
    seen = scores.activations
    return GradientNorms(
        *(values, tuple(call.chosen), scores.logits, scores.features),
        activations=seen.norms,
        channels=seen.channels,
        activation_names=seen.names,
        channel_counts=seen.counts,
        precision=precision,
    )


class Prepared(NamedTuple):
    """A checked call: the batch to score, the parameters to score, and rows that are unusable."""

    model: nn.Module
    known: Outline
    chosen: dict[str, Parameter]
    x: Tensor
    bad: Tensor | None
    nan_policy: str

    def flagged(self, scores: Scores) -> Scores:
        """Rows with NaN or Inf have infinite values, and nothing else.

        Raises:
            ModelError: The model made NaN or Inf of finite rows, and the policy is to raise.
        """
        bad = unusable_rows(scores[:3], self.bad, self.nan_policy)
        if bad is None:
            return scores
        scores.values[bad] = float("inf")
        hidden = scores.each(partial(_hidden, rows=bad))
        return hidden._replace(values=scores.values)


def _hidden(tensor: Tensor, rows: Tensor) -> Tensor:
    return tensor.masked_fill(rows.view(-1, *[1] * (tensor.dim() - 1)), torch.nan)


@contextmanager
def prepared(
    model: nn.Module,
    x: Batch,
    parameters: Selection,
    method: str,
    micro_batch: int | None,
    nan_policy: str,
    precision: str = "exact",
) -> Iterator[Prepared]:
    """Check the arguments of ``gradient_norms``; hold the model's lock, with gradients enabled."""
    check_arguments(model, x, method, micro_batch, nan_policy)
    model, x, bad = one_tensor(model, x, nan_policy)
    with torch.inference_mode(False), torch.enable_grad(), locked(model, precision) as known:
        chosen = select_parameters(model, parameters, known)
        if x.shape[0]:
            x = x.clone() if x.is_inference() else x.detach()
        if bad is not None:
            x = x.masked_fill(bad.view(-1, *[1] * (x.dim() - 1)), 0.0)
        yield Prepared(model, known, chosen, x, bad, nan_policy)
