"""Exact norms of whatever the rules do not cover: ``vmap(grad)``, else sample by sample."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import Parameter

from gradood.errors import GradoodError, ModelError, first_line
from gradood.gradients.independence import BatchLogits
from gradood.gradients.probe import require_grad
from gradood.gradients.rows import candidates
from gradood.gradients.source import derived_source, graph_leaves
from gradood.gradients.state import observed
from gradood.gradients.validation import logits_of

_LOG = logging.getLogger("gradood")

_Result = TypeVar("_Result")

#: Per-sample gradients and activations of one chunk take about this much memory.
CHUNK_BYTES = 256 << 20


def vmap_norms(
    model: nn.Module,
    x: Tensor,
    parameters: Mapping[str, Parameter],
    batch_logits: BatchLogits | None,
    logit_gradients: Sequence[Tensor],
    bytes_per_sample: int,
) -> list[dict[str, Tensor]]:
    """Squared norms by parameter for every label, through ``torch.func``.

    ``logit_gradients`` are ``[N, C]``, one a label; ``batch_logits`` are what they were
    computed from, if they are gradients of a loss. Differentiable in ``x`` and in the
    gradients.

    Raises:
        ModelError: A sample alone has other logits.
    """
    values = {name: p.detach() for name, p in parameters.items()}
    stacked = torch.stack(list(logit_gradients), 1)  # [N, K, C]

    def norms(sample: Tensor, gradients: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        def logits(values: dict[str, Tensor]) -> Tensor:
            tensors = {**_stand_ins(model), **values}
            return logits_of(functional_call(model, tensors, (sample[None],)), 1)[0]

        out, pull, *_ = vjp(logits, values)
        # One label after the other: PyTorch 2.14 has some operators wrong in a vmap of a vmap.
        pulled = [pull(gradient)[0] for gradient in gradients.to(out.dtype)]
        squares = {
            name: torch.stack([g[name].to(_norm_dtype(g[name])).square().sum() for g in pulled])
            for name in values
        }
        return out, squares

    size = sum(p.numel() * p.element_size() for p in parameters.values())
    chunk = max(1, CHUNK_BYTES // (size * stacked.shape[1] + bytes_per_sample + 1))
    parts = []
    for i in range(0, x.shape[0], chunk):
        with observed(model, []), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")  # it is a fallback
            rows = slice(i, i + chunk)
            logits, squares = vmap(norms, randomness="different")(x[rows], stacked[rows])
        if batch_logits is not None:
            batch_logits.check(rows, logits)
        parts.append(squares)
    return [
        {name: torch.cat([p[name][:, k] for p in parts]) for name in parameters}
        for k in range(len(logit_gradients))
    ]


def loop_norms(
    model: nn.Module,
    x: Tensor,
    parameters: Mapping[str, Parameter],
    batch_logits: BatchLogits | None,
    logit_gradients: Sequence[Tensor],
    pair: bool,
    create_graph: bool = False,
) -> list[dict[str, Tensor]]:
    """Squared norms by parameter for every label, one sample and one backward at a time.

    ``pair`` runs every sample beside a copy of itself that the loss ignores, which is how batches
    of one that PyTorch differentiates wrongly are avoided. ``create_graph`` keeps what leads back
    to ``x`` and to the logit gradients. The rest is as for :func:`vmap_norms`.

    Raises:
        ModelError: A sample alone has other logits.
    """
    norms = [
        {name: p.new_zeros(x.shape[0], dtype=_norm_dtype(p)) for name, p in parameters.items()}
        for _ in logit_gradients
    ]
    leaves = {name: p.detach().clone().requires_grad_() for name, p in parameters.items()}
    # A model may reach a parameter by a reference of its own, in a list or a closure, which
    # functional_call does not exchange: what these gradients add up to is the parameter's.
    inputs = [*leaves.values(), *parameters.values()]
    copies = 2 if pair else 1
    for n in range(x.shape[0]):
        rows = x[[n] * copies]
        with observed(model, []), require_grad(parameters.values()), _alone():
            tensors = {**_stand_ins(model), **leaves}
            logits = logits_of(functional_call(model, tensors, (rows,)), copies)[:1]
            if batch_logits is not None:
                batch_logits.check(slice(n, n + 1), logits)
            if n == 0:
                _refuse_kept_tensors(logits)
            for k, gradients in enumerate(logit_gradients if logits.requires_grad else []):
                retain = create_graph or k < len(logit_gradients) - 1
                pulled = _pull(logits, inputs, gradients[n : n + 1], retain, create_graph)
                for i, name in enumerate(leaves):
                    parts = [g for g in pulled[i :: len(leaves)] if g is not None]
                    if parts:
                        gradient = torch.stack([g.to(norms[k][name].dtype) for g in parts]).sum(0)
                        norms[k][name][n] = gradient.square().sum()
    return norms


@contextmanager
def _alone() -> Iterator[None]:
    """Explain an error of a model that accepts a batch but not a single sample."""
    try:
        yield
    except (GradoodError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        first = first_line(error)
        raise ModelError(
            "no rule covers this model, and one sample at a time it raises "
            f"{type(error).__name__}: {first}; make it take batches of any size, and let autograd "
            "differentiate it (checkpoints with use_reentrant=False)"
        ) from error


def _pull(
    logits: Tensor,
    inputs: list[Tensor],
    gradient: Tensor,
    retain: bool,
    create_graph: bool,
) -> list[Tensor | None]:
    known = [t for t in inputs if t.requires_grad]
    pulled = iter(
        torch.autograd.grad(
            logits,
            known,
            gradient.to(logits),
            retain_graph=retain,
            create_graph=create_graph,
            allow_unused=True,
        )
    )
    return [next(pulled) if t.requires_grad else None for t in inputs]


def choose(
    model: nn.Module, x: Tensor, classes: int, parameters: Mapping[str, Parameter], pair: bool
) -> str:
    """``"vmap"`` if it runs and agrees with the loop on three samples, else ``"loop"``.

    Some operators have no batching rule, and for some the rule is wrong: in PyTorch 2.14, gradients
    through a float32 LSTM on the CPU. The samples are those that a probe takes.
    """
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(3, classes, generator=generator, dtype=torch.float64, device="cpu")
    gradients = [drawn.to(x.device)]
    few, expected = _first_that_runs(
        [rows.x for rows in candidates(x)],
        lambda few: loop_norms(model, few, parameters, None, gradients, pair),
    )
    try:
        norms = vmap_norms(model, few, parameters, None, gradients, 0)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        reason = first_line(error)
        _LOG.info("vmap cannot run %s (%s): one sample at a time", type(model).__name__, reason)
        return "loop"
    for found, right in zip(norms, expected, strict=True):
        scale = max((float(r.max()) for r in right.values() if r.isfinite().all()), default=0.0)
        for name, norm in found.items():
            half = torch.is_autocast_enabled(x.device.type)
            rounding, of_largest = _ROUNDING[2 if half else min(parameters[name].element_size(), 8)]
            if not torch.allclose(norm, right[name], rounding, of_largest * scale, equal_nan=True):
                _LOG.info("vmap is wrong for %s: one sample at a time", name)
                return "loop"
    return "vmap"


#: By the bytes of a number, the relative error up to which norms are the same, and that relative
#: to the largest of all.
_ROUNDING = {1: (0.05, 1e-9), 2: (0.05, 1e-9), 4: (3e-5, 1e-9), 8: (1e-9, 1e-14)}


def _first_that_runs(
    batches: Sequence[Tensor], run: Callable[[Tensor], _Result]
) -> tuple[Tensor, _Result]:
    """The first batch that the model accepts, and its output; the last error if none."""
    *others, last = batches
    for batch in others:
        try:
            return batch, run(batch)
        except ModelError:  # perhaps made up as no input can be
            continue
    return last, run(last)


def _stand_ins(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what a forward pass may write to, or autograd cannot save."""
    parameters = {name: p for name, p in model.named_parameters() if p.is_inference()}
    return {name: t.clone() for name, t in {**parameters, **dict(model.named_buffers())}.items()}


def _refuse_kept_tensors(logits: Tensor) -> None:
    """Refuse tensors that a probe made of parameters and that the model kept somewhere."""
    if any(derived_source(leaf) is not None for leaf in graph_leaves(logits)):
        raise ModelError(
            "the model keeps tensors made of parameters from one forward pass to the next, outside "
            "its modules (in a global cache?), so their gradients are lost; clear that cache, and "
            "keep such tensors in attributes of modules"
        )


def _norm_dtype(t: Tensor) -> torch.dtype:
    return torch.promote_types(t.dtype, torch.float32)
