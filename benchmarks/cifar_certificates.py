"""What certificates and p-values cost and give on CIFAR-10, with a public ResNet-20.

    GRADOOD_DATA=FOLDER python -m benchmarks.cifar_certificates [PART ...]

Parts: floats, fdr, spread, embedded, gradient. FOLDER as for ``benchmarks.cifar``. Appends to
``benchmarks/results/cifar_certificates.csv``, and writes the page beside it of the part gradient.
Times are processor time of one thread, the ways taking turns.
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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import gradood
from benchmarks import cifar_certificates_page
from benchmarks.cifar.network import load_network
from benchmarks.cifar_certificates_page import latest
from benchmarks.datasets import picture_set
from benchmarks.distro import CHECKPOINTS
from gradood import ops
from gradood.data import embedded_classifier, embedded_images
from gradood.detectors.conformal import conformal_p_values
from gradood.detectors.threshold import conservative_threshold
from gradood.evaluation import bound_false_discoveries, control_fdr, evaluate, evaluate_guaranteed
from gradood.smoothing import Evidence, quantiles, spreads
from gradood.smoothing.patched_unet import load_denoiser
from gradood.smoothing.settings import Denoiser

OUT = Path(__file__).parent / "results" / "cifar_certificates.csv"
DATA = Path(os.environ.get("GRADOOD_DATA", ""))
SPLITS, LEVEL = 1000, 0.1

#: Scores of inputs, lower bounds and upper bounds of them.
Bounded = tuple[list[float], list[float], list[float]]
Reader = Callable[[Evidence], Bounded]


def network() -> nn.Module:
    return load_network(DATA / "weights" / "cifar10-resnet20.safetensors").requires_grad_(False)


def pictures(name: str, count: int) -> Tensor:
    """Pictures of a set in [0, 1], drawn at random."""
    return picture_set(name, DATA).sample(count).images


def floats(n: int = 512, rounds: int = 7) -> Iterator[tuple[str, str, float]]:
    """Grid noise in float64 against float32 noise: time, and radius with and without slack."""
    model, x = network(), pictures("cifar10-test", 20)
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
    scores = {n: energy.score(pictures(n, count)).double() for n in
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
    strange = {name: pictures(name, count) for name in names}
    normal = pictures("cifar10-test", count)
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
    found = [spreads.certificate_from(common, row) for row in evidence.rows]
    return (
        [one["score"] for one in found],
        [one["lower"][0] for one in found],
        [one["upper"][0] for one in found],
    )


#: Of the gradient detector's certificates.
SIGMA, RADIUS, SAMPLES, FPR, WRONG = 0.12, 0.06, 100, 0.1, 1e-3
COUNT, FIT = 16, 300


def gradient(count: int = COUNT, fit: int = FIT) -> Iterator[tuple[str, str, float]]:
    """Medians and decisions of the default gradient detector, with the denoiser and without."""
    ours = load_denoiser(CHECKPOINTS / "cifar10-denoiser.safetensors").bfloat16()
    for kind, denoiser in (("denoised", ours), ("noisy", None)):
        for metric, value in gradient_claims(denoiser, count, fit):
            yield "gradient", f"{kind}, {metric}", value


def fitted_under_noise(
    denoiser: Denoiser | None, fit: int, sigma: float, preset: str = "fast"
) -> gradood.Detector:
    """A gradient detector, by default the default one, fitted on what it sees when smoothed."""
    train = pictures("cifar10-train", fit)
    seen = train + sigma * torch.randn(train.shape, generator=torch.Generator().manual_seed(0))
    if denoiser is not None:
        with torch.no_grad():
            seen = torch.cat([denoiser(part, sigma) for part in seen.split(100)])
    return gradood.GradientDetector(network(), preset, progress=False).fit(seen)


def gradient_claims(denoiser: Denoiser | None, count: int, fit: int) -> Iterator[tuple[str, float]]:
    """AUROC of medians, clean and guaranteed, and shares of decisions certified at the radius."""
    detector = fitted_under_noise(denoiser, fit, SIGMA)
    point = WRONG / (2 * count)
    settings = gradood.Smoothing(
        sigma=SIGMA, n=SAMPLES, alpha=point, denoiser=denoiser, seed=1, progress=False
    )
    normal = pictures("cifar10-test", 3 * count)
    calibration, tested = normal[: 2 * count], normal[2 * count :]
    loose = gradood.Smoothing(**{**vars(settings), "n": 50, "alpha": 0.1, "seed": 2})
    highest = gradood.certify_quantile(detector, calibration, loose).upper[:, 0]
    threshold = conservative_threshold(highest, FPR)
    usual = gradood.certify_quantile(detector, tested, settings)
    yield from _decided("normal", detector, tested, settings, threshold, -1, range(count))
    for number, name in enumerate(("svhn-test", "cifar100-test"), 1):
        strange, ids = pictures(name, count), range(number * count, (number + 1) * count)
        found = gradood.certify_quantile(detector, strange, settings, radius=[0, RADIUS], ids=ids)
        clean = evaluate(_quantile(usual.evidence, 0.5)[0], _quantile(found.evidence, 0.5)[0])
        yield f"{name}: AUROC of medians", clean.auroc
        bound = evaluate_guaranteed(
            usual.upper[:, 0], found.lower[:, 1], RADIUS, point_alpha=point, alpha=WRONG
        )
        yield f"{name}: guaranteed at {RADIUS}", float(bound.clean_normals.auroc[0])
        yield from _decided(name, detector, strange, settings, threshold, 1, ids)


def _decided(
    name: str,
    detector: gradood.Detector,
    x: Tensor,
    settings: gradood.Smoothing,
    threshold: float,
    right: int,
    ids: range,
) -> Iterator[tuple[str, float]]:
    """Shares of inputs that are decided rightly, at all and within the radius."""
    made = gradood.certify_decision(
        detector, x, settings, threshold=threshold, radius=RADIUS, ids=ids
    )
    decided = made.decision == right
    yield f"{name}: decided rightly", float(decided.double().mean())
    certified = decided & (made.radius >= RADIUS)
    yield f"{name}: rightly within {RADIUS}", float(certified.double().mean())


def main() -> None:
    parts = {"floats": floats, "fdr": fdr, "spread": spread, "embedded": embedded}
    parts |= {"gradient": gradient}
    wanted = sys.argv[1:] or list(parts)
    if wanted != ["embedded"] and "GRADOOD_DATA" not in os.environ:
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
    if "gradient" in wanted:
        facts = {"sigma": SIGMA, "radius": RADIUS, "samples": SAMPLES, "fpr": FPR}
        facts |= {"sure": 1 - WRONG, "count": COUNT, "fit": FIT}
        page = cifar_certificates_page.markdown(latest(OUT, "gradient"), **facts)
        OUT.with_suffix(".md").write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
