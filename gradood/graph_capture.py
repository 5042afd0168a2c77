"""Capture a function of one tensor as a CUDA graph, and replay it with other inputs.

A network of 40 layers launches some hundred kernels a pass; for small batches the GPU waits for the
CPU. A graph launches all of them at once. Gradients and smoothing both capture through this module.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gradood.errors import InputError, ModelError, first_line

#: Passes before the capture, in which every kernel is compiled, loaded and chosen.
WARM_UPS = 3


class Captured(NamedTuple):
    """A graph, the tensor that it reads, and those that it writes."""

    graph: torch.cuda.CUDAGraph
    x: Tensor
    results: Any

    def replay(self, x: Tensor) -> Any:
        """Copies of the results for another ``x``."""
        with torch.cuda.device(x.device):
            self.x.copy_(x)
            self.graph.replay()
            return tree_map_only(Tensor, torch.clone, self.results)


def check_device(x: Tensor) -> None:
    """Refuse tensors that no graph can read."""
    if not x.is_cuda:
        raise InputError(f"cuda_graph=True needs x on a CUDA device, not on {x.device}")


def capture(run: Callable[[Tensor], Any], x: Tensor) -> Captured:
    """Capture ``run`` for inputs of the shape, type and layout of ``x``.

    Raises:
        ModelError: It does what a graph cannot hold.
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
            with torch.cuda.graph(graph):
                results = run(static)
    except RuntimeError as error:
        raise ModelError(
            f"cuda_graph=True: the passes cannot be captured ({first_line(error)}); a "
            "model must not copy from or to the CPU, or look at values; use cuda_graph=False"
        ) from error
    return Captured(graph, static, results)
