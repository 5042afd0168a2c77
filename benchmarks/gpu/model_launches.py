"""The operator calls of whole models, replayed as dry launches for any GPU.

``python -m benchmarks.gpu.model_launches --out launches.json`` runs every model on two
samples on the CPU, notes the sizes and strides of each call, and compiles what a batch of 64 would
launch: some 60 different kernels a GPU for all models together.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.dry_driver import DESCRIBED, TARGETS, Launch, dry
from benchmarks.gpu.resources import resources
from gradood import pending
from gradood.benchmarking.gpu import whole_checks
from gradood.benchmarking.gpu.operator_calls import Shape, record
from gradood.benchmarking.gpu.roofline import DEVICES, TARGET_DEVICES, least_milliseconds

VISION = ("resnet18", "resnet50", "vit_b_16", "mobilenet_v3_large")
MODELS = (*VISION, "lstm", "bert")
BATCH = 64
_RECORDED = 2


def made(
    calls: Sequence[tuple[str, tuple[Any, ...]]], dtype: torch.dtype, batch: int = BATCH
) -> Iterator[tuple[str, list[Any]]]:
    """The recorded calls with tensors for a batch, which have no memory."""
    for operator, args in calls:
        yield (
            operator,
            [
                a.tensor(batch if i < 2 else None, dtype if i < 2 else None)
                if isinstance(a, Shape)
                else a
                for i, a in enumerate(args)
            ],
        )


def replay(
    calls: Sequence[tuple[str, tuple[Any, ...]]],
    target: str,
    dtype: torch.dtype,
    batch: int = BATCH,
) -> list[Launch]:
    """Compile what the calls would launch for a batch."""
    from gradood.ops import triton_backend

    sums: dict[Any, pending.Sums] = {}
    with dry(target) as launches, pending.held(sums):
        for operator, arguments in made(calls, dtype, batch):
            getattr(triton_backend, operator)(*arguments)
        pending.finish(sums)
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


def model(name: str) -> tuple[nn.Module, Any]:
    """A model and a batch of two."""
    torch.manual_seed(0)
    if name == "lstm":
        return whole_checks.MODELS["LSTM"]()
    if name == "bert":
        from transformers import BertConfig, BertForSequenceClassification

        bert = BertForSequenceClassification(BertConfig()).eval()
        return bert, torch.randint(0, 1000, (_RECORDED, 128), dtype=torch.int64, device="cpu")
    import torchvision

    build: Callable[..., nn.Module] = getattr(torchvision.models, name)
    vision = build(weights=None).eval().to(memory_format=torch.channels_last)
    x = torch.rand(_RECORDED, 3, 224, 224, dtype=torch.float32, device="cpu")
    return vision, x.contiguous(memory_format=torch.channels_last)


def _summaries(target: str, calls: dict[str, Any], dtype: str) -> dict[str, Any]:
    number = getattr(torch, dtype)
    device = DEVICES.get(TARGET_DEVICES.get(target, ""))
    table = {}
    for name, found in calls.items():
        table[name] = summary(replay(found, target, number), target)
        if device is not None:
            table[name]["least ms, computed"] = least_milliseconds(found, BATCH, number, device)
    return table


def main() -> None:
    """Record, replay, and write a summary by target and model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target", nargs="*", choices=TARGETS, default=list(DESCRIBED))
    parser.add_argument("--model", nargs="*", choices=MODELS, default=list(MODELS))
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--processes", type=int, default=2)
    chosen = parser.parse_args()
    calls = {name: record(*model(name)) for name in chosen.model}
    with ProcessPoolExecutor(chosen.processes, get_context("spawn")) as pool:
        tasks = [pool.submit(_summaries, target, calls, chosen.dtype) for target in chosen.target]
        table = {target: task.result() for target, task in zip(chosen.target, tasks, strict=True)}
    chosen.out.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
