"""Replay forward and backward passes as one CUDA graph, so that launching them costs nothing.

A network of 40 layers launches some hundred kernels a pass; for small batches the GPU waits for the
CPU. A graph is captured once for a model, an input shape and a label, and replayed after that with
new inputs. Parameters may change in place between calls; anything else makes a new graph, as far as
Python objects and PyTorch's switches show it (``fingerprint``). What a model reads elsewhere, such
as a global variable or a file, must not change.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from gradood.errors import InputError, ModelError, first_line
from gradood.gradients.fingerprint import fingerprint
from gradood.gradients.scorer import Scorer, Scores

#: Passes before the capture, in which every kernel is compiled, loaded and chosen.
WARM_UPS = 3
#: Graphs kept for a model; each holds the memory of one pass.
KEPT = 4
#: Labels whose targets need no look at numbers on the CPU.
LABELS = ("all_hot", "zero_hot", "uniform", "predicted", "one_hot", "top_k_hot")


class Captured:
    """A graph, the tensor that it reads, and those that it writes."""

    def __init__(self, graph: torch.cuda.CUDAGraph, x: Tensor, results: Any) -> None:
        self._graph, self._x, self._results = graph, x, results
        self._lock = threading.Lock()
        #: When the results of the replay before had been copied.
        self._copied = torch.cuda.Event()

    def replay(self, x: Tensor) -> Any:
        """Copies of the results for another ``x``; threads and streams take turns."""
        with self._lock, torch.cuda.device(x.device):
            stream = torch.cuda.current_stream(x.device)
            stream.wait_event(self._copied)
            self._x.copy_(x)
            self._graph.replay()
            results = tree_map_only(Tensor, torch.clone, self._results)
            self._copied.record(stream)
        return results


_GRAPHS: WeakKeyDictionary[nn.Module, OrderedDict[Any, Captured]] = WeakKeyDictionary()


def score(scorer: Scorer, x: Tensor, micro_batch: int | None) -> Scores:
    """What ``Scorer.score`` finds, from a graph, captured if there is none yet.

    Raises:
        InputError: the arguments break a rule of capture.
        ModelError: the model does, or the capture fails.
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
    """Refuse what a graph cannot hold; the device comes last, so that all else shows anywhere."""
    for label in scorer.labels:
        if not isinstance(label, str) or label.partition(":")[0] not in LABELS:
            shown = label if isinstance(label, str) else "a tensor"
            raise InputError(
                f"cuda_graph=True with label {shown}: its target is checked on the CPU, which a "
                f"graph cannot do; use one of {', '.join(LABELS)}, or cuda_graph=False"
            )
    if "ce" in scorer.losses:
        raise InputError(
            'cuda_graph=True with loss "ce" would check the label on the CPU in every pass; use '
            '"bce" or "bce_softmax", or cuda_graph=False'
        )
    if micro_batch is not None and micro_batch < x.shape[0]:
        raise InputError(
            f"cuda_graph=True captures the batch as one pass, and micro_batch={micro_batch} splits "
            f"{x.shape[0]} samples; pass smaller batches"
        )
    plan = scorer.prepare(x)
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
    if x.shape[0] > scorer.samples_a_pass(x):
        raise InputError(
            f"cuda_graph=True captures the batch as one pass, and {x.shape[0]} samples exceed the "
            f"memory bound of {scorer.samples_a_pass(x)}; pass smaller batches"
        )


def _key(scorer: Scorer, x: Tensor) -> tuple[Any, ...]:
    """What a graph depends on: the plan's key, the batch, what is asked, and the model itself."""
    asked = (*map(str, scorer.labels), scorer.activations, scorer.method, *scorer.losses)
    batch = (x.shape[0], x.stride(), torch.is_autocast_cache_enabled())
    return (scorer.describe(x), batch, asked, fingerprint(scorer.model))


def check_device(x: Tensor) -> None:
    """Refuse tensors that no graph can read."""
    if not x.is_cuda:
        raise InputError(f"cuda_graph=True needs x on a CUDA device, not on {x.device}")


def capture(run: Callable[[Tensor], Any], x: Tensor) -> Captured:
    """Capture ``run`` for inputs of the shape, type and layout of ``x``.

    Raises:
        ModelError: it does what a graph cannot hold.
        torch.OutOfMemoryError: the passes take more memory than there is.
    """
    static = x.clone(memory_format=torch.preserve_format)
    device = x.device
    try:
        with torch.cuda.device(device):
            side = torch.cuda.Stream(device)
            side.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    run(static)
            torch.cuda.current_stream(device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            # Without a stream PyTorch takes one of the device that was captured on first.
            with torch.cuda.graph(graph, stream=side):
                results = run(static)
            return Captured(graph, static, results)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ModelError(
            f"cuda_graph=True: the passes cannot be captured ({first_line(error)}); a "
            "model must not copy from or to the CPU, or look at values; use cuda_graph=False"
        ) from error
