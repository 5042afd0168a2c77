"""Exact norms of whatever the rules do not cover: ``vmap(grad)``, else sample by sample."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import Parameter

from gradood.gradients.state import observed
from gradood.gradients.validation import logits_of

_LOG = logging.getLogger("gradood")

#: Per-sample gradients and activations of one chunk take about this much memory.
CHUNK_BYTES = 256 << 20


def vmap_norms(
    model: nn.Module,
    x: Tensor,
    parameters: Mapping[str, Parameter],
    logit_gradients: Sequence[Tensor],
    bytes_per_sample: int,
) -> list[dict[str, Tensor]]:
    """Squared norms by parameter for every label, through ``torch.func``.

    ``logit_gradients`` are ``[N, C]``, one a label.
    """
    values = {name: p.detach() for name, p in parameters.items()}
    stacked = torch.stack(list(logit_gradients), 1)  # [N, K, C]

    def norms(sample: Tensor, gradients: Tensor) -> dict[str, Tensor]:
        def logits(values: dict[str, Tensor]) -> Tensor:
            tensors = {**_stand_ins(model), **values}
            return logits_of(functional_call(model, tensors, (sample[None],)), 1)[0]

        out, pull, *_ = vjp(logits, values)
        (pulled,) = vmap(pull)(gradients.to(out.dtype))
        return {name: g.reshape(len(g), -1).square().sum(1) for name, g in pulled.items()}

    size = sum(p.numel() * p.element_size() for p in parameters.values())
    chunk = max(1, CHUNK_BYTES // (size * stacked.shape[1] + bytes_per_sample + 1))
    parts = []
    for i in range(0, x.shape[0], chunk):
        with observed(model, []), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # it is a fallback
            rows = slice(i, i + chunk)
            parts.append(vmap(norms, randomness="different")(x[rows], stacked[rows]))
    return [
        {name: torch.cat([p[name][:, k] for p in parts]) for name in parameters}
        for k in range(len(logit_gradients))
    ]


def loop_norms(
    model: nn.Module,
    x: Tensor,
    parameters: Mapping[str, Parameter],
    logit_gradients: Sequence[Tensor],
    pair: bool,
) -> list[dict[str, Tensor]]:
    """Squared norms by parameter for every label, one sample and one backward at a time.

    ``pair`` runs every sample beside a copy of itself that the loss ignores, which is how batches
    of one that PyTorch differentiates wrongly are avoided.
    """
    norms = [
        {name: p.new_zeros(x.shape[0], dtype=_norm_dtype(p)) for name, p in parameters.items()}
        for _ in logit_gradients
    ]
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    copies = 2 if pair else 1
    for n in range(x.shape[0]):
        rows = x[[n] * copies]
        with observed(model, []):
            tensors = {**_stand_ins(model), **leaves}
            logits = logits_of(functional_call(model, tensors, (rows,)), copies)[:1]
        if not logits.requires_grad:
            continue
        for k, gradients in enumerate(logit_gradients):
            pulled = torch.autograd.grad(
                logits,
                list(leaves.values()),
                gradients[n : n + 1].to(logits),
                retain_graph=k < len(logit_gradients) - 1,
                allow_unused=True,
            )
            for name, gradient in zip(leaves, pulled, strict=True):
                if gradient is not None:
                    norms[k][name][n] = gradient.to(_norm_dtype(gradient)).square().sum()
    return norms


def choose(
    model: nn.Module,
    x: Tensor,
    parameters: Mapping[str, Parameter],
    logit_gradients: Sequence[Tensor],
    pair: bool,
) -> str:
    """``"vmap"`` if it runs and agrees with the loop on two samples, else ``"loop"``.

    Some operators have no batching rule, and for some the rule is wrong: in PyTorch 2.14, gradients
    through a float32 LSTM on the CPU.
    """
    few, gradients = x[:2], [g[:2] for g in logit_gradients]
    expected = loop_norms(model, few, parameters, gradients, pair)
    try:
        norms = vmap_norms(model, few, parameters, gradients, 0)
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        _LOG.info("vmap cannot run %s (%s): one sample at a time", type(model).__name__, reason)
        return "loop"
    for found, right in zip(norms, expected, strict=True):
        scale = max(float(r.max()) for r in right.values())
        for name, norm in found.items():
            # Loose: it tells another formula from rounding, which half precision has much of.
            if not torch.allclose(norm, right[name], rtol=0.05, atol=1e-9 * scale):
                _LOG.info("vmap is wrong for %s: one sample at a time", name)
                return "loop"
    return "vmap"


def _stand_ins(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what a forward pass may write to, or autograd cannot save."""
    parameters = {name: p for name, p in model.named_parameters() if p.is_inference()}
    return {name: t.clone() for name, t in {**parameters, **dict(model.named_buffers())}.items()}


def _norm_dtype(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)
