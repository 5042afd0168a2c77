"""Ours against the passes that it cannot do without, on this processor: the README's columns.

    python benchmarks/processors.py [--models vit128 swin …] [--rounds 5] [--memory] [--save]
    GRADOOD_CPU_ISA=avx2 python benchmarks/processors.py

Methods take turns; a ratio is the median over rounds of the processor time of ours over that of

* a forward pass and a backward pass to the activations alone, which no method of this kind can do
  without: "/ activations", the measure that does not depend on how fast weights' gradients are;
* an ordinary forward and backward pass: "/ ordinary".

``--memory`` prints the peaks of resident memory instead. ``--save`` appends the rows to
``results/processors.csv``, with processor, instruction set, threads and versions.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.measuring.job import ALLOCATOR
from benchmarks.measuring.memory import peak_bytes
from benchmarks.measuring.records import append
from gradood.benchmarking import machine
from gradood.benchmarking.methods import activation_only, forward_backward, through_backend
from gradood.benchmarking.workloads import MultilayerPerceptron, ResidualNetwork, calibrate
from gradood.ops import cpp_backend

RESULTS = Path(__file__).parent / "results" / "processors.csv"
METHODS = {
    "activations": activation_only,
    "ordinary": forward_backward,
    "cpp": through_backend("cpp"),
    "torch": through_backend("torch"),
}


@dataclass(frozen=True)
class Row:
    """One model on one processor; see the module's words for the ratios."""

    date: str
    commit: str
    cpu: str
    features: str
    cores: int
    isa: str
    threads: int
    torch: str
    gradood: str
    load: float
    model: str
    batch: int
    rounds: int
    activations_s: float
    ordinary_s: float
    cpp_s: float
    cpp_over_activations: float
    cpp_over_ordinary: float
    torch_over_activations: float
    torch_over_ordinary: float


class Classifier(nn.Module):
    """A model of transformers whose output is its logits."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        """Token ids ``[N, T]`` to logits ``[N, C]``."""
        return self.model(x).logits  # type: ignore[no-any-return]


def vision_transformer(width: int) -> nn.Module:
    """Of 32² pictures: 64 patches and a class token, six blocks."""
    from torchvision.models import VisionTransformer

    return VisionTransformer(32, 4, 6, width // 64, width, 4 * width, num_classes=10)


def resnet10() -> nn.Module:
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)


def timm(name: str) -> nn.Module:
    return import_module("timm").create_model(name, num_classes=10)  # type: ignore[no-any-return]


def torchvision(name: str) -> nn.Module:
    return getattr(import_module("torchvision.models"), name)(num_classes=10)  # type: ignore[no-any-return]


def transformers(kind: str, **sizes: int) -> nn.Module:
    library = import_module("transformers")
    configuration = getattr(library, f"{kind}Config")(num_labels=10, pad_token_id=0, **sizes)
    return Classifier(getattr(library, f"{kind}ForSequenceClassification")(configuration))


@dataclass(frozen=True)
class Case:
    """How a model is built, and the shape of its batch: pictures, or token ids."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]


CASES = {
    "ViT d=128, 16": Case(partial(vision_transformer, 128), (16, 3, 32, 32)),
    "ViT d=128, 64": Case(partial(vision_transformer, 128), (64, 3, 32, 32)),
    "ViT d=192, 24": Case(partial(vision_transformer, 192), (24, 3, 32, 32)),
    "ViT d=384, 16": Case(partial(vision_transformer, 384), (16, 3, 32, 32)),
    "ResNet-10 40²": Case(resnet10, (24, 3, 40, 40)),
    "MobileNetV2 64²": Case(partial(torchvision, "mobilenet_v2"), (24, 3, 64, 64)),
    "EfficientNet-B0 128²": Case(partial(torchvision, "efficientnet_b0"), (8, 3, 128, 128)),
    "ConvNeXt-T 64²": Case(partial(torchvision, "convnext_tiny"), (8, 3, 64, 64)),
    "Swin-T 64²": Case(partial(torchvision, "swin_t"), (8, 3, 64, 64)),
    "ShuffleNetV2 64²": Case(partial(torchvision, "shufflenet_v2_x1_0"), (24, 3, 64, 64)),
    "MLP 768": Case(partial(MultilayerPerceptron, 1024, 768, 2), (192, 1, 32, 32)),
    "ResNet-20, 128": Case(partial(ResidualNetwork, 16, 3, 3), (128, 3, 32, 32)),
    "ResNet-20, 256": Case(partial(ResidualNetwork, 16, 3, 3), (256, 3, 32, 32)),
    "NF-ResNet-50 64²": Case(partial(timm, "nf_resnet50"), (8, 3, 64, 64)),
    "NF-ResNet-50 64², 16": Case(partial(timm, "nf_resnet50"), (16, 3, 64, 64)),
    "GhostNet 64²": Case(partial(timm, "ghostnet_100"), (24, 3, 64, 64)),
    "Mixer-S/32 224²": Case(partial(timm, "mixer_s32_224"), (8, 3, 224, 224)),
    "GPT-2, 64 tokens": Case(partial(transformers, "GPT2"), (4, 64)),
    "BERT, 64 tokens": Case(partial(transformers, "Bert"), (4, 64)),
}


def workload(case: Case) -> tuple[nn.Module, Tensor]:
    """The model in evaluation mode, and a batch; seeded."""
    torch.manual_seed(0)
    model = case.build().eval()
    for module in model.modules():  # some heads start at zero, and so does every gradient below
        if isinstance(module, nn.Linear) and not module.weight.any():
            nn.init.normal_(module.weight, std=0.02)
    if len(case.shape) == 2:
        return model, torch.randint(1, 1000, case.shape)
    x = torch.randn(case.shape)
    calibrate(model, x)
    return model, x


def prepared(case: Case, methods: list[str]) -> dict[str, Callable[[], object]]:
    """A call of each method, on a model of its own, which it may change; warm."""
    calls: dict[str, Callable[[], object]] = {}
    for name in methods:
        model, x = workload(case)
        calls[name] = partial(METHODS[name](model, False), x)
        calls[name]()
    return calls


def processor_seconds(
    calls: dict[str, Callable[[], object]], rounds: int
) -> dict[str, list[float]]:
    """Of every call, one entry a round: at least a tenth of a second each turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            begin, turns = time.process_time(), 0
            while turns == 0 or time.process_time() - begin < 0.1:
                call()
                turns += 1
            seconds[name].append((time.process_time() - begin) / turns)
    return seconds


def row(name: str, case: Case, options: argparse.Namespace) -> Row:
    """Measure one model."""
    seconds = processor_seconds(prepared(case, list(METHODS)), options.rounds)

    def ratio(ours: str, other: str) -> float:
        return statistics.median(a / b for a, b in zip(seconds[ours], seconds[other], strict=True))

    cpu, features = machine.processor()
    return Row(
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        commit=machine.commit(),
        cpu=cpu,
        features=features,
        cores=machine.cores(),
        isa=cpp_backend.instruction_set(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        gradood=machine.installed("gradood"),
        load=machine.load(),
        model=name,
        batch=case.shape[0],
        rounds=options.rounds,
        activations_s=statistics.median(seconds["activations"]),
        ordinary_s=statistics.median(seconds["ordinary"]),
        cpp_s=statistics.median(seconds["cpp"]),
        cpp_over_activations=ratio("cpp", "activations"),
        cpp_over_ordinary=ratio("cpp", "ordinary"),
        torch_over_activations=ratio("torch", "activations"),
        torch_over_ordinary=ratio("torch", "ordinary"),
    )


def show_times(name: str, case: Case, options: argparse.Namespace) -> None:
    found = row(name, case, options)
    if options.save:
        append(RESULTS, [found])
    print(
        f"{name:22} {1e3 * found.activations_s:9.1f} {found.cpp_over_activations:9.2f} "
        f"{found.cpp_over_ordinary:9.2f} {found.torch_over_activations:9.2f} "
        f"{found.torch_over_ordinary:9.2f}",
        flush=True,
    )


def show_memory(name: str, case: Case, options: argparse.Namespace) -> None:
    peaks = {}
    for method in ("ordinary", "cpp"):
        call = prepared(case, [method])[method]
        peaks[method] = peak_bytes(call)
    ratio = peaks["cpp"] / max(1, peaks["ordinary"])
    print(f"{name:22} {peaks['ordinary'] / 1e6:9.1f} {peaks['cpp'] / 1e6:9.1f} {ratio:9.2f}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--models", nargs="*", default=[""], help="parts of names")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    allocator = ALLOCATOR["memory" if options.memory else "time"]
    if any(os.environ.get(name) != value for name, value in allocator.items()):
        os.environ.update(allocator)  # it is read when a process starts
        os.execv(sys.executable, [sys.executable, *sys.argv])
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    print(f"{machine.processor()[0]}, {cpp_backend.instruction_set()}, {options.threads} thread(s)")
    if options.memory:
        print(f"{'peak, MB':22} {'ordinary':>9} {'ours':>9} {'ratio':>9}")
    else:
        print(f"{'':32} {'cpp /':>9} {'cpp /':>9} {'torch /':>9} {'torch /':>9}")
        columns = ("ms", "activ.", "ordinary", "activ.", "ordinary")
        print(f"{'':22} " + " ".join(f"{c:>9}" for c in columns))
    for name, case in CASES.items():
        if any(part.lower() in name.lower() for part in options.models):
            (show_memory if options.memory else show_times)(name, case, options)


if __name__ == "__main__":
    main()
