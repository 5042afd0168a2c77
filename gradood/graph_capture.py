"""Capture a function of one tensor as a CUDA graph, and replay it with other inputs.

A network of 40 layers launches some hundred kernels a pass; for small batches the GPU waits for the
CPU. A graph launches all of them at once. Gradients and smoothing both capture through this module.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gradood.errors import InputError, ModelError, first_line

#: Passes before the capture, in which every kernel is compiled, loaded and chosen.
WARM_UPS = 3


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


def check_device(x: Tensor) -> None:
    """Refuse tensors that no graph can read."""
    if not x.is_cuda:
        raise InputError(f"cuda_graph=True needs x on a CUDA device, not on {x.device}")


def capture(run: Callable[[Tensor], Any], x: Tensor) -> Captured:
    """Capture ``run`` for inputs of the shape, type and layout of ``x``.

    Raises:
        ModelError: It does what a graph cannot hold.
        torch.OutOfMemoryError: The passes take more memory than there is.
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
