"""Gradient norms with a derivative: how they change with the input, by a second backward pass."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn.attention import SDPBackend, sdpa_kernel

from gradood.arguments import checked
from gradood.gradients.activations import Activations
from gradood.gradients.api import GradientNorms
from gradood.gradients.fallback import choose, loop_norms, vmap_norms
from gradood.gradients.labels import Label, logit_gradient, target
from gradood.gradients.norms import Norms
from gradood.gradients.outline import Outline
from gradood.gradients.penultimate import LastLinear
from gradood.gradients.plan import PlanError
from gradood.gradients.recorder import Recorder
from gradood.gradients.rows import candidates
from gradood.gradients.scorer import Scorer, locked
from gradood.gradients.scores import if_known
from gradood.gradients.validation import (
    Selection,
    as_labels,
    as_losses,
    call_model,
    check_arguments,
    logits_of,
    select_parameters,
)

_LOG = logging.getLogger("gradood")


@checked
def differentiable_norms(
    model: nn.Module,
    x: Tensor,
    *,
    label: Label | Sequence[Label] = "all_hot",
    loss: str | Sequence[str] = "bce",
    parameters: Selection = None,
    activations: bool = False,
) -> GradientNorms:
    """``gradient_norms`` with an autograd graph that leads back to ``x``.

    ``∂/∂x_n Σ_l w_nl ‖∂J_n/∂θ_l‖²`` exists almost everywhere for the usual networks; a backward
    pass from the values gives it. Labels that depend on the logits (``"predicted"``,
    ``"top_k_hot:K"``) are constants to it. Per-sample gradients are stored, by ``vmap`` or one by
    one, so this takes several times the time and memory of ``gradient_norms``; its values are the
    same up to rounding. For attacks and for attribution.

    Args:
        model: As for ``gradient_norms``; its parameters get no gradient.
        x: A batch, finite, with ``requires_grad`` where a derivative is wanted.
        label: As for ``gradient_norms``.
        loss: As for ``gradient_norms``.
        parameters: As for ``gradient_norms``.
        activations: As for ``gradient_norms``.

    Returns:
        ``GradientNorms`` whose tensors are not detached, unless gradients are off.

    Raises:
        InputError: An argument is wrong.
        ModelError: The model's output is not ``[N, C]``, or batch statistics are in use.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> x = torch.ones(5, 3, requires_grad=True)
        >>> torch.autograd.grad(differentiable_norms(model, x).values.sum(), x)[0].shape
        torch.Size([5, 3])
    """
    labels, several = ([], True) if isinstance(label, list) and not label else as_labels(label)
    losses = as_losses(loss, len(labels))
    check_arguments(model, x, "auto", None, "raise")
    # Fused attention has no second derivative.
    with torch.inference_mode(False), locked(model) as known, sdpa_kernel(SDPBackend.MATH):
        chosen = select_parameters(model, parameters, known)
        logits, features, measured = _forward(model, known, chosen, x, activations)
        gradients = [
            logit_gradient(logits, target(label, logits.detach(), loss), loss)
            for label, loss in zip(labels, losses, strict=True)
        ]
        differs = chosen and len(x) and labels
        norms = _norms(model, x, chosen, gradients) if differs else [{} for _ in labels]
    dtype = torch.promote_types(logits.dtype, torch.float32)
    columns = [by_name[name].to(dtype) for by_name in norms for name in by_name]
    shape = (len(x), len(labels), len(chosen))
    values = torch.stack(columns, 1).view(shape) if columns else x.new_zeros(shape, dtype=dtype)
    values = values if several else values[:, 0]
    names = measured.names, measured.counts
    return GradientNorms(
        *(values, tuple(chosen), logits, features, measured.norms, measured.channels), *names
    )


def _forward(
    model: nn.Module, known: Outline, chosen: dict[str, Parameter], x: Tensor, activations: bool
) -> tuple[Tensor, Tensor | None, Activations]:
    """Logits, features and, if they are wanted and a plan finds them, activations."""
    if activations and len(x):
        scorer = Scorer(model, known, chosen, Norms())
        plan = scorer.plan(x.detach())
        recorder = Recorder(plan, chosen, len(x), x.device)
        recorder.backward_follows, recorder.keeps_activations = False, True
        recorder.differentiable = torch.is_grad_enabled()
        try:
            with torch.enable_grad(), LastLinear() as seen, recorder:
                logits = scorer.forward(x)
            recorder.finish()
        except PlanError:
            pass  # the model does something else from call to call
        else:
            features = seen.features
            if not recorder.differentiable:
                logits, features = logits.detach(), if_known(Tensor.detach, features)
            return logits, features, Activations.of(recorder.layers)
    with LastLinear() as seen:
        logits = logits_of(call_model(model, x), len(x))
    return logits, seen.features, Activations()


def _norms(
    model: nn.Module, x: Tensor, parameters: dict[str, Parameter], gradients: list[Tensor]
) -> list[dict[str, Tensor]]:
    known = _METHODS.setdefault(model, {})
    key = (tuple(x.shape[1:]), x.dtype, tuple(parameters))
    if key not in known:
        with torch.enable_grad():
            known[key] = _choose(model, x.detach(), gradients[0].shape[1], parameters)
    if known[key] == "vmap":
        return vmap_norms(model, x, parameters, None, gradients, 0)
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        return loop_norms(model, x, parameters, None, gradients, True, create_graph)


def _choose(model: nn.Module, x: Tensor, classes: int, parameters: dict[str, Parameter]) -> str:
    """``"vmap"`` if its norms and their slopes agree with the loop's, else ``"loop"``.

    In PyTorch 2.14 the second derivative of layer normalisation's weight is wrong under vmap.
    """
    if choose(model, x, classes, parameters, pair=True) == "loop":
        return "loop"
    few = next(candidates(x)).x[:2].clone().requires_grad_()
    generator = torch.Generator().manual_seed(0)
    pulled = [
        torch.randn(2, classes, generator=generator, dtype=torch.float64, device="cpu").to(x.device)
    ]
    slopes = []
    for norms in (
        vmap_norms(model, few, parameters, None, pulled, 0),
        loop_norms(model, few, parameters, None, pulled, True, True),
    ):
        # Relative changes: no parameter is too small to count.
        relative = [(v / v.detach().clamp_min(1e-30)).sum().double() for v in norms[0].values()]
        slopes.append(torch.autograd.grad(torch.stack(relative).sum(), few)[0])
    scale = float(slopes[1].abs().amax())
    if torch.allclose(slopes[0], slopes[1], rtol=0, atol=1e-3 * scale):
        return "vmap"
    _LOG.info("vmap differentiates the norms of %s wrongly: one by one", type(model).__name__)
    return "loop"


#: For every model, input shape and selection, whether ``vmap`` can differentiate it.
_METHODS: WeakKeyDictionary[nn.Module, dict[tuple[object, ...], str]] = WeakKeyDictionary()
