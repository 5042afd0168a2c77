"""Exact norms of whatever the rules do not cover: ``vmap(grad)``, else sample by sample."""

from __future__ import annotations

import logging
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
            return logits_of(functional_call(model, values, (sample[None],)), 1)[0]

        out, pull, *_ = vjp(logits, values)
        (pulled,) = vmap(pull)(gradients.to(out.dtype))
        return {name: g.flatten(1).square().sum(1) for name, g in pulled.items()}

    size = sum(p.numel() * p.element_size() for p in parameters.values())
    chunk = max(1, CHUNK_BYTES // (size * stacked.shape[1] + bytes_per_sample + 1))
    parts = []
    for i in range(0, len(x), chunk):
        with observed(model, []):
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
        {name: p.new_zeros(len(x), dtype=_norm_dtype(p)) for name, p in parameters.items()}
        for _ in logit_gradients
    ]
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    copies = 2 if pair else 1
    for n in range(len(x)):
        rows = x[[n] * copies]
        with observed(model, []):
            logits = logits_of(functional_call(model, leaves, (rows,)), copies)[:1]
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


def exact_norms(
    model: nn.Module,
    x: Tensor,
    parameters: Mapping[str, Parameter],
    logit_gradients: Sequence[Tensor],
    bytes_per_sample: int,
    pair: bool,
) -> tuple[list[dict[str, Tensor]], str]:
    """Norms through ``vmap``, or through the loop where ``vmap`` cannot; and which it was."""
    try:
        return vmap_norms(model, x, parameters, logit_gradients, bytes_per_sample), "vmap"
    except (RuntimeError, NotImplementedError, ValueError, TypeError) as error:
        reason = str(error).strip().partition("\n")[0]
        _LOG.info("vmap cannot run %s (%s): one sample at a time", type(model).__name__, reason)
    return loop_norms(model, x, parameters, logit_gradients, pair), "loop"


def _norm_dtype(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)
