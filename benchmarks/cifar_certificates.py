"""What certificates and p-values cost and give on CIFAR-10, with a public ResNet-20.

    GRADOOD_DATA=FOLDER python benchmarks/cifar_certificates.py [floats] [fdr] [spread] [embedded]

FOLDER holds picture sets (``cifar10-test.zip``, ``cifar100-test.zip``, ``svhn-test.zip``), their
``read.py``, and ``weights/cifar10-resnet20.safetensors``. Appends to
``benchmarks/results/cifar_certificates.csv``. Times are processor time of one thread, the ways
taking turns.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timezone
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

import gradood
from gradood import ops
from gradood.data import embedded_classifier, embedded_images
from gradood.detectors.conformal import conformal_p_values
from gradood.evaluation import bound_false_discoveries, control_fdr, evaluate, evaluate_guaranteed
from gradood.smoothing import Evidence, quantiles, spreads

OUT = Path(__file__).parent / "results" / "cifar_certificates.csv"
DATA = Path(os.environ.get("GRADOOD_DATA", ""))
SPLITS, LEVEL = 1000, 0.1

#: Scores of inputs, lower bounds and upper bounds of them.
Bounded = tuple[list[float], list[float], list[float]]
Reader = Callable[[Evidence], Bounded]


class Block(nn.Module):
    """Two convolutions, and a shortcut of every second pixel between zero channels."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = 1 if before == after else 2
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(after), nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.stride, self.pad = stride, (after - before) // 2

    def forward(self, x: Tensor) -> Tensor:
        short = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + short)


class ResNet20(nn.Module):
    """He et al. 2016 for CIFAR, of pixels in [0, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        widths = (16, 16, 32, 64)
        for stage in (1, 2, 3):
            wide = widths[stage]
            blocks = [Block(widths[stage - 1], wide), Block(wide, wide), Block(wide, wide)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.new_tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        std = x.new_tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
        x = F.relu(self.bn1(self.conv1((x - mean) / std)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def network() -> nn.Module:
    model = ResNet20()
    model.load_state_dict(load_file(DATA / "weights" / "cifar10-resnet20.safetensors"))
    return model.eval().requires_grad_(False)


def pictures(name: str, count: int) -> tuple[Tensor, Tensor | None]:
    """Pictures of a set in [0, 1] and their labels, shuffled: files are ordered by class."""
    spec = spec_from_file_location("read", DATA / "read.py")
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    images, labels, _ = module.read(name, DATA)
    order = np.random.default_rng(0).permutation(len(images))[:count]
    x = torch.from_numpy(images[order]).permute(0, 3, 1, 2).float() / 255
    return x, None if labels is None else torch.from_numpy(labels[order]).long()


def floats(n: int = 512, rounds: int = 7) -> Iterator[tuple[str, str, float]]:
    """Grid noise in float64 against float32 noise: time, and radius with and without slack."""
    model, (x, _) = network(), pictures("cifar10-test", 20)
    settings = gradood.Smoothing(sigma=0.12, n=n)
    grid = ops.grid_batch

    def float32(x, rows, inputs, samples, key, sigma, levels, low, high, dtype, last):
        return ops.noisy_batch(
            x, rows, inputs, samples, key, sigma, low, high, None, None, dtype, last
        )

    spent: dict[str, list[float]] = {"float64 grid": [], "float32": []}
    for turn in range(rounds + 1):
        for name, draw in (("float64 grid", grid), ("float32", float32)):
            ops.grid_batch = draw
            begin = time.process_time()
            gradood.certify_class(model, x[turn : turn + 1], settings=settings)
            if turn:
                spent[name].append(time.process_time() - begin)
    ops.grid_batch = grid
    middle = {name: statistics.median(times) for name, times in spent.items()}
    for name, seconds in middle.items():
        yield "floats", f"ms a sample, {name}", 1e3 * seconds / (n + 64)
    yield "floats", "time, ratio", middle["float64 grid"] / middle["float32"]
    from scipy.special import ndtri

    from gradood.smoothing.bounds import binomial

    slack = float(gradood.certify_class(model, x[:1], settings=settings).evidence.rows[0]["slack"])
    yield "floats", "slack", slack
    for count in (1_000, 100_000):
        for share in (0.9, 0.99, 1.0):
            lower = float(binomial.lower(round(share * count), count, 5e-4))
            ratio = ndtri(lower - slack) / ndtri(lower)
            yield "floats", f"radius, ratio, {share:g} of {count}", float(ratio)


def fdr(count: int = 3000) -> Iterator[tuple[str, str, float]]:
    """Realised share of false calls over random splits: 2000 calibrate, 200 and 200 are tested."""
    energy = gradood.Energy(network(), progress=False)
    scores = {n: energy.score(pictures(n, count)[0]).double() for n in
              ("cifar10-test", "svhn-test", "cifar100-test")}  # fmt: skip
    normal = scores.pop("cifar10-test")
    rng = np.random.default_rng(1)
    for name, strange in scores.items():
        shares: dict[str, list[tuple[float, float]]] = {m: [] for m in ("bh", "storey", "by")}
        broken = 0
        for _ in range(SPLITS):
            order = rng.permutation(len(normal))
            tested = torch.cat([normal[order[2000:2200]], strange[rng.permutation(count)[:200]]])
            p = conformal_p_values(normal[order[:2000]], tested).numpy()
            for method, found in shares.items():
                called = control_fdr(p, level=LEVEL, method=method)
                false = called[:200].sum() / max(called.sum(), 1)
                found.append((false, called[200:].mean()))
            true = np.searchsorted(np.sort(p[:200]), p, side="right")
            broken += bool((true > bound_false_discoveries(p, 2000, delta=LEVEL)).any())
        for method, found in shares.items():
            false, power = np.array(found).T
            yield "fdr", f"{name}, {method}: share of false calls, nominal {LEVEL}", false.mean()
            yield "fdr", f"{name}, {method}: its standard error", false.std() / SPLITS**0.5
            yield "fdr", f"{name}, {method}: share of anomalies called", power.mean()
        yield "fdr", f"{name}, bounds broken at some threshold, nominal {LEVEL}", broken / SPLITS


#: Detectors from one sample: q-quantiles, and the median with so much of the spread.
QUANTILES, WEIGHTS = (0.5, 0.6, 0.75, 0.9), (0.5, 1.0, 2.0)


def spread(count: int = 60) -> Iterator[tuple[str, str, float]]:
    """On CIFAR-10, by the energy of the ResNet."""
    names = ("svhn-test", "cifar100-test")
    strange = {name: pictures(name, count)[0] for name in names}
    normal = pictures("cifar10-test", count)[0]
    for metric, value in compared(network(), normal, strange, sigma=0.05, radius=0.025):
        yield "spread", metric, value


def embedded(count: int = 60) -> Iterator[tuple[str, str, float]]:
    """On Fashion-MNIST, by the energy of the embedded classifier; needs no folder."""
    names = ("mnist", "glyphs")
    strange = {name: embedded_images(name)[:count] for name in names}
    normal = embedded_images("fashion-mnist")[:count]
    model = embedded_classifier()
    for metric, value in compared(model, normal, strange, sigma=0.05, radius=0.025):
        yield "spread, embedded", metric, value


def compared(
    model: nn.Module, normal: Tensor, sets: dict[str, Tensor], sigma: float, radius: float
) -> Iterator[tuple[str, float]]:
    """AUROC of quantiles, and of median and spread: clean, attacked by APGD, and guaranteed.

    The attack is on the score itself, and the same for all.
    """
    energy, count = gradood.Energy(model, progress=False), len(normal)
    point = 1e-3 / (2 * count)
    settings = gradood.Smoothing(sigma=sigma, n=500, alpha=point, progress=False, seed=1)
    of_normal = gradood.certify_spread(energy, normal, settings=settings).evidence
    detectors: dict[str, Reader] = {
        **{f"quantile {q:g}": partial(_quantile, q=q) for q in QUANTILES},
        **{f"median + {w:g} spread": partial(_weighted, weight=w) for w in WEIGHTS},
    }
    for name, strange in sets.items():
        moved = gradood.attacks.attack_score(
            energy, strange, epsilon=radius, norm="l2", steps=20, restarts=1, progress=False
        ).images
        ids = range(count, 2 * count)
        found = gradood.certify_spread(
            energy, strange, settings=settings, radius=radius, ids=ids
        ).evidence
        attacked = gradood.certify_spread(energy, moved, settings=settings, ids=ids).evidence
        for label, read in detectors.items():
            own, clean, hidden = (read(evidence) for evidence in (of_normal, found, attacked))
            for kind, part in (("clean", clean), ("attacked", hidden)):
                yield f"{name}, {label}: {kind}", evaluate(own[0], part[0]).auroc
            bound = evaluate_guaranteed(own[2], clean[1], radius, point_alpha=point, alpha=1e-3)
            yield f"{name}, {label}: guaranteed", float(bound.clean_normals.auroc[0])


def _quantile(evidence: Evidence, q: float) -> Bounded:
    """Sample quantiles, and bounds at alpha / 2 each, of samples that were drawn for a spread."""
    share = evidence.common["settings"]["alpha"] / 2
    bounds = [quantiles.bounds_of(evidence.common, row, q, share) for row in evidence.rows]
    plain = []
    for row in evidence.rows:
        edges = np.append(row["edges"], np.inf)
        place = np.searchsorted(np.cumsum(row["counts"]), np.ceil(q * row["samples"]))
        plain.append(float(edges[place]))
    return plain, [float(low[0]) for low, _ in bounds], [float(high[0]) for _, high in bounds]


def _weighted(evidence: Evidence, weight: float) -> Bounded:
    """Scores, lower and upper bounds of the same samples with another weight."""
    common = {**evidence.common, "target": {**evidence.common["target"], "weight": weight}}
    found = [spreads.evaluate(common, row) for row in evidence.rows]
    return (
        [one["score"] for one in found],
        [one["lower"][0] for one in found],
        [one["upper"][0] for one in found],
    )


def main() -> None:
    parts = {"floats": floats, "fdr": fdr, "spread": spread, "embedded": embedded}
    wanted = sys.argv[1:] or list(parts)
    if wanted != ["embedded"] and not (DATA / "read.py").is_file():
        sys.exit("GRADOOD_DATA names no folder of picture sets")
    for name in wanted:
        for part, metric, value in parts[name]():
            new = not OUT.exists()
            with OUT.open("a", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                if new:
                    writer.writerow(["part", "metric", "value", "torch", "date"])
                date = datetime.now(timezone.utc).date().isoformat()
                writer.writerow([part, metric, f"{value:.6g}", torch.__version__, date])
            print(f"{part:8} {metric:62} {value:.6g}", flush=True)


if __name__ == "__main__":
    main()
