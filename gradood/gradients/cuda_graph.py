"""Replay the passes of ``gradient_norms`` as one CUDA graph.

A graph is captured once for a model, an input shape and a label, and replayed after that with new
inputs. Parameters may change in place between calls; anything else makes a new graph, as far as
Python objects and PyTorch's switches show it (``fingerprint``). What a model reads elsewhere, such
as a global variable or a file, must not change.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from gradood.errors import InputError, ModelError, first_line
from gradood.gradients.fingerprint import fingerprint
from gradood.gradients.norms import Norms
from gradood.gradients.scorer import Scorer
from gradood.gradients.scores import Scores
from gradood.graph_capture import Captured, capture, check_device

_LOG = logging.getLogger("gradood")

#: Graphs kept for a model; each holds the memory of one pass.
KEPT = 4
#: Labels whose targets need no look at numbers on the CPU.
LABELS = ("all_hot", "zero_hot", "uniform", "predicted", "one_hot", "top_k_hot")


_GRAPHS: WeakKeyDictionary[nn.Module, OrderedDict[Any, Captured]] = WeakKeyDictionary()


_WANTED: ContextVar[bool] = ContextVar("cuda_graphs", default=False)
#: Batches that were scored inside ``cuda_graphs`` so far, by what a graph depends on.
_SEEN: WeakKeyDictionary[nn.Module, set[Any]] = WeakKeyDictionary()


@contextmanager
def cuda_graphs() -> Iterator[None]:
    """Let detectors score by CUDA graphs inside the block, wherever a graph can hold the passes.

    A graph is captured for batches whose shape comes a second time; batches that none can hold are
    scored as outside, and the log says why, once. Results are the same.

    Example:
        >>> with cuda_graphs():
        ...     norms = gradood.gradient_norms(torch.nn.Linear(3, 2), torch.ones(5, 3))
    """
    token = _WANTED.set(True)
    try:
        yield
    finally:
        _WANTED.reset(token)


def score_if_wanted(scorer: Scorer, x: Tensor, micro_batch: int | None) -> Scores:
    """``Scorer.score``, inside ``cuda_graphs`` by a graph if there may be one."""
    if not _WANTED.get():
        return scorer.score(x, micro_batch)
    seen = _SEEN.setdefault(scorer.model, set())
    key = (tuple(x.shape), x.dtype, x.device)
    if key not in seen:
        seen.add(key)
        return scorer.score(x, micro_batch)
    try:
        return score(scorer, x, micro_batch)
    except (InputError, ModelError) as error:
        # What is wrong with the batch itself is said by the pass that follows.
        _log_once(f"no CUDA graph for {type(scorer.model).__name__}: {first_line(error)}")
        return scorer.score(x, micro_batch)


@cache
def _log_once(message: str) -> None:
    """Say why there is no graph, not for every batch again."""
    _LOG.info(message)


def score(scorer: Scorer, x: Tensor, micro_batch: int | None) -> Scores:
    """``Scorer.score`` by a graph, which is captured at the first call.

    Raises:
        InputError: The arguments break a rule of capture.
        ModelError: The model does, or the capture fails.
    """
    _check(scorer, x, micro_batch)
    check_device(x)
    graphs = _GRAPHS.setdefault(scorer.model, OrderedDict())
    key = _key(scorer, x)
    if key not in graphs:
        _check_memory(scorer, x)  # a graph that is there has its memory
        scorer.score(x, micro_batch)  # makes another plan if the model was edited
        _check(scorer, x, micro_batch)
        captured = capture(scorer.whole, x)
        key = _key(scorer, x)  # the first passes may have settled what was not
        graphs[key] = captured
    graphs.move_to_end(key)
    while len(graphs) > KEPT:
        graphs.popitem(last=False)
    scores: Scores = graphs[key].replay(x)
    return scores


def _check(scorer: Scorer, x: Tensor, micro_batch: int | None) -> None:
    """Refuse what a graph cannot capture; the device last, so that the rest shows on a CPU."""
    for label in _norms(scorer).labels:
        if not isinstance(label, str) or label.partition(":")[0] not in LABELS:
            shown = label if isinstance(label, str) else "a tensor"
            raise InputError(
                f"cuda_graph=True with label {shown}: its target is checked on the CPU, which a "
                f"graph cannot do; use one of {', '.join(LABELS)}, or cuda_graph=False"
            )
    if "ce" in _norms(scorer).losses:
        raise InputError(
            'cuda_graph=True with loss "ce" would check the label on the CPU in every pass; use '
            '"bce" or "bce_softmax", or cuda_graph=False'
        )
    if micro_batch is not None and micro_batch < x.shape[0]:
        raise InputError(
            f"cuda_graph=True captures the batch as one pass, and micro_batch={micro_batch} splits "
            f"{x.shape[0]} samples; pass smaller batches"
        )
    plan = scorer.plan(x)
    if plan.uncovered:
        name, reason = next(iter(plan.uncovered.items()))
        raise ModelError(
            f"cuda_graph=True needs a rule for every parameter, and {name} has none: {reason}; "
            "leave it out with parameters=…, or use cuda_graph=False"
        )
    if plan.written.buffers or plan.written.modules:
        written = sorted(plan.written.buffers | plan.written.modules)[0]
        raise ModelError(
            f"cuda_graph=True: the forward pass writes to {written!r}, which a replay would not "
            "undo; use cuda_graph=False"
        )


def _check_memory(scorer: Scorer, x: Tensor) -> None:
    plan = scorer.plan(x)
    if x.shape[0] > scorer.samples_a_pass(x, plan):
        raise InputError(
            f"cuda_graph=True captures the batch as one pass, and {x.shape[0]} samples exceed the "
            f"memory bound of {scorer.samples_a_pass(x, plan)}; pass smaller batches"
        )


def _key(scorer: Scorer, x: Tensor) -> tuple[Any, ...]:
    """What a graph depends on: the plan's key, the batch, what is asked, and the model itself."""
    norms = _norms(scorer)
    asked = (*map(str, norms.labels), norms.activations, scorer.method, *norms.losses)
    batch = (x.shape[0], x.stride(), torch.is_autocast_cache_enabled())
    return (scorer.describe(x), batch, asked, fingerprint(scorer.model))


def _norms(scorer: Scorer) -> Norms:
    assert isinstance(scorer.objective, Norms)
    return scorer.objective
