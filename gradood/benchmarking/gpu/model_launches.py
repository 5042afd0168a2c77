"""The operator calls of whole models, replayed as dry launches for any GPU.

``python -m gradood.benchmarking.gpu.model_launches --out launches.json`` runs every model on two
samples on the CPU, notes the sizes and strides of each call, and compiles what a batch of 64 would
launch: some 60 different kernels a GPU for all models together.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradood.benchmarking.gpu.dry_driver import DESCRIBED, TARGETS, Launch, dry
from gradood.benchmarking.gpu.resources import resources

MODELS = ("resnet18", "resnet50", "vit_b_16", "mobilenet_v3_large")
BATCH = 64
_RECORDED = 2
#: Backends of the CPU take over backward passes of norm layers; on a GPU PyTorch's own runs, and
#: the norm is an operator of its own: its name, and which arguments it keeps.
_ON_GPU = {
    "batch_norm_backward_sqnorm": ("batch_norm_sqnorm", (0, 1, 2, 3)),
    "layer_norm_backward_sqnorm": ("layer_norm_sqnorm", (0, 1, 3, 4)),
}


class _Shape(NamedTuple):
    """What a launcher sees of a tensor."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def tensor(self, samples: int | None, dtype: torch.dtype | None) -> Tensor:
        """A tensor without memory, for another number of samples, in another type."""
        size = self.size if samples is None else (samples, *self.size[1:])
        number = dtype if dtype is not None and self.dtype.is_floating_point else self.dtype
        return torch.empty_strided(size, self.stride, dtype=number, device="meta")


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[str, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.namespace == "gradood":
            name = function.__name__.removesuffix(".default")
            name, places = _ON_GPU.get(name, (name, range(len(args))))
            self.calls.append((name, tuple(_described(args[i]) for i in places)))
        return function(*args, **(kwargs or {}))


def record(model: nn.Module, x: Tensor) -> list[tuple[str, tuple[Any, ...]]]:
    """Every operator call that the gradient norms of a batch make, tensors by their shapes."""
    from gradood import gradient_norms

    gradient_norms(model, x[:1])  # the plan is made without recording
    recorder = _Recorder()
    with recorder:
        gradient_norms(model, x, micro_batch=len(x))  # one pass, however little memory is free
    return recorder.calls


def replay(
    calls: Sequence[tuple[str, tuple[Any, ...]]],
    target: str,
    dtype: torch.dtype,
    batch: int = BATCH,
) -> list[Launch]:
    """Compile what the calls would launch for a batch."""
    from gradood.ops import triton_backend

    with dry(target) as launches:
        for operator, args in calls:
            made = [
                a.tensor(batch if i < 2 else None, dtype if i < 2 else None)
                if isinstance(a, _Shape)
                else a
                for i, a in enumerate(args)
            ]
            getattr(triton_backend, operator)(*made)
    return launches


def summary(launches: Sequence[Launch], target: str) -> dict[str, Any]:
    """Launches, kernels compiled, and the worst of their resources."""
    distinct = {launch.compiled.hash: launch for launch in launches}
    kernels = {key: resources(launch, target) for key, launch in distinct.items()}
    return {
        "launches": len(launches),
        "by kernel": dict(sorted(Counter(launch.kernel for launch in launches).items())),
        "compiled": len(kernels),
        "registers": max(k["registers"] for k in kernels.values()),
        "spilled": sum(k["spilled"] for k in kernels.values()),
        "shared": max(k["shared"] for k in kernels.values()),
        "largest grid": max(launch.grid[0] for launch in launches),
    }


def _model(name: str) -> tuple[nn.Module, Tensor]:
    import torchvision

    torch.manual_seed(0)
    build: Callable[..., nn.Module] = getattr(torchvision.models, name)
    model = build(weights=None).eval().to(memory_format=torch.channels_last)
    x = torch.rand(_RECORDED, 3, 224, 224, dtype=torch.float32, device="cpu")
    return model, x.contiguous(memory_format=torch.channels_last)


def _summaries(target: str, calls: dict[str, Any], dtype: str) -> dict[str, Any]:
    return {
        name: summary(replay(found, target, getattr(torch, dtype)), target)
        for name, found in calls.items()
    }


def main() -> None:
    """Record, replay, and write a summary by target and model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", nargs="*", choices=TARGETS, default=list(DESCRIBED))
    parser.add_argument("--model", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    calls = {name: record(*_model(name)) for name in chosen.model}
    with ProcessPoolExecutor(chosen.processes, get_context("spawn")) as pool:
        tasks = [pool.submit(_summaries, target, calls, chosen.dtype) for target in chosen.target]
        table = {target: task.result() for target, task in zip(chosen.target, tasks, strict=True)}
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _Shape(tuple(value.shape), value.stride(), value.dtype)
    return value


if __name__ == "__main__":
    main()
