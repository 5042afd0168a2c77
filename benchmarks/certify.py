"""What certificates cost: samples, time and memory, beside fixed-n loops of other packages.

    python benchmarks/certify.py sequential    one fixed-n and several sequential certificates
    python benchmarks/certify.py speed         noisy forward passes a second, and peers
    python benchmarks/certify.py detectors     gradient-norm detectors, smoothed
    python benchmarks/certify.py memory        peak memory at n = 1k and n = 100k

Appends to benchmarks/results/certify.csv. Methods take turns; times are medians or totals of
processor time with one thread in one run, meant to be compared with one another.
"""

from __future__ import annotations

import argparse
import csv
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import peers_smoothing as peers
import torch

import gradood
from gradood.data import embedded_classifier, embedded_images, embedded_labels

OUT = Path(__file__).parent / "results" / "certify.csv"
FAST = {"dtype": "bfloat16", "channels_last": True, "fold_batch_norm": True}


def append(part: str, method: str, setting: str, **metrics: float) -> None:
    """One row a metric; the file says where and when."""
    new = not OUT.exists()
    with OUT.open("a", newline="") as file:
        writer = csv.writer(file)
        if new:
            writer.writerow("part method setting metric value threads torch machine date".split())
        date = datetime.now(timezone.utc).date().isoformat()
        machine = f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"
        context = [torch.get_num_threads(), torch.__version__, machine, date]
        for name, value in metrics.items():
            writer.writerow([part, method, setting, name, f"{value:.6g}", *context])
            print(f"{part:12} {method:28} {setting:34} {name:28} {value:12.6g}", flush=True)


def timed(call: Callable[[], object]) -> tuple[object, float]:
    """The result, and seconds of processor time: others may use the machine too."""
    begin = time.process_time()
    result = call()
    return result, time.process_time() - begin


def sequential(inputs: int, n: int, sigma: float, exact: bool) -> None:
    """Certificates a second at equal alpha, radius and model: fixed n, and sequential tests."""
    model, options = embedded_classifier(), {} if exact else FAST
    rows = torch.linspace(0, 499, inputs).round().long()
    x, labels = embedded_images("fashion-mnist")[rows], embedded_labels("fashion-mnist")[rows]
    settings = gradood.Smoothing(sigma=sigma, n=n, **options)
    fractions = (0.5, 1.0, 2.0)
    seconds = dict.fromkeys(("fixed", *fractions), 0.0)
    certified = {key: [0, 0] for key in fractions}
    samples = dict.fromkeys(fractions, 0)
    for i, row in enumerate(rows.tolist()):
        common = {"model": model, "x": x[i : i + 1], "settings": settings}
        whole, spent = timed(lambda c=common, r=row: gradood.certify_class(**c, ids=[r]))
        seconds["fixed"] += spent
        for fraction in fractions:
            radius = fraction * sigma
            found, spent = timed(
                lambda c=common, r=row, t=radius: gradood.certify_class(**c, radius=t, ids=[r])
            )
            seconds[fraction] += spent
            samples[fraction] += int(found.samples[0])
            right = found.label[0] == labels[i], whole.label[0] == labels[i]
            certified[fraction][0] += int(right[0] and not found.abstained[0])
            certified[fraction][1] += int(right[1] and whole.radius[0] >= radius)
        print(f"{i + 1}/{inputs} inputs", flush=True)
    for fraction in fractions:
        append(
            "sequential",
            "sequential vs fixed",
            f"n={n} sigma={sigma} radius/sigma={fraction}",
            inputs=inputs,
            mean_samples=samples[fraction] / inputs,
            certified_sequential=certified[fraction][0] / inputs,
            certified_fixed=certified[fraction][1] / inputs,
            seconds_sequential=seconds[fraction] / inputs,
            seconds_fixed=seconds["fixed"] / inputs,
            speedup=seconds["fixed"] / seconds[fraction],
        )


def speed(rounds: int) -> None:
    """Noisy forward passes a second of one input, all in turns."""
    for name, (model, x, n) in peers.workloads().items():
        methods = {
            "gradood float32": lambda m=model, x=x, n=n: peers.gradood_counts(m, x, n, {}),
            "gradood bf16": lambda m=model, x=x, n=n: peers.gradood_counts(m, x, n, FAST),
            "locuslab loop": lambda m=model, x=x, n=n: peers.locuslab_counts(m, x, n, 64),
            "ART": lambda m=model, x=x, n=n: peers.art_counts(m, x, n, 64),
        }
        times: dict[str, list[float]] = {method: [] for method in methods}
        for turn in range(rounds + 1):
            for method, call in methods.items():
                _, spent = timed(call)
                if turn:
                    times[method].append(spent)
        base = statistics.median(times["locuslab loop"])
        for method, spent in times.items():
            middle = statistics.median(spent)
            append(
                "speed", method, name, forwards_per_second=n / middle, ratio_locuslab=base / middle
            )


def detectors(inputs: int, n: int) -> None:
    """Smoothed gradient-norm detectors: samples a second against a plain loop over vmap norms."""
    model = embedded_classifier()
    train = embedded_images("fashion-mnist-train")
    x = embedded_images("fashion-mnist")[:inputs]
    found = gradood.GradientMahalanobis(model, progress=False).fit(train[:300])
    settings = gradood.Smoothing(sigma=0.02, n=n, n0=32)
    smoothed = gradood.certify_quantile(found, x, settings=settings)
    threshold = float(smoothed.upper.max())
    found_decisions, spent = timed(
        lambda: gradood.certify_decision(
            found, x, settings=settings, threshold=threshold, radius=0.01
        )
    )
    fixed, fixed_spent = timed(
        lambda: gradood.certify_decision(found, x, settings=settings, threshold=threshold)
    )
    noisy = x[:1] + 0.02 * torch.randn(32, *x.shape[1:])
    names = {"rules": [], "vmap": [], "loop": []}
    for _ in range(3):
        for method, times in names.items():
            times.append(timed(lambda m=method: gradood.gradient_norms(model, noisy, method=m))[1])
    per_sample = {method: statistics.median(times) / 32 for method, times in names.items()}
    append(
        "detectors",
        "GradientMahalanobis decision",
        f"n={n} radius/sigma=0.5",
        seconds_sequential=spent / inputs,
        seconds_fixed=fixed_spent / inputs,
        mean_samples=float(found_decisions.samples.double().mean()),
        decided_sequential=float((found_decisions.decision != 0).double().mean()),
        decided_fixed=float((fixed.radius >= 0.01).double().mean()),
        samples_per_second=n * inputs / fixed_spent,
        norms_rules_ms=1e3 * per_sample["rules"],
        norms_vmap_ms=1e3 * per_sample["vmap"],
        norms_loop_ms=1e3 * per_sample["loop"],
    )


def memory(sizes: tuple[int, int]) -> None:
    """Peak resident memory of whole processes."""
    for kind in ("class", "quantile", "mean"):
        peaks = []
        for n in sizes:
            command = [sys.executable, __file__, "peak", "--kind", kind, "--n", str(n)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks.append(int(done.stdout))
        append(
            "memory",
            kind,
            f"n={sizes[0]} and n={sizes[1]}",
            mb_small=peaks[0] / 1024,
            mb_large=peaks[1] / 1024,
            ratio=peaks[1] / peaks[0],
        )


def peak(kind: str, n: int) -> None:
    """Certify one picture with a small network, and print this process's peak memory."""
    model, x = peers.small_network(), embedded_images("fashion-mnist")[:1]
    settings = gradood.Smoothing(sigma=0.05, n=n)
    if kind == "class":
        gradood.certify_class(model, x, settings=settings)
    elif kind == "quantile":
        gradood.certify_quantile(gradood.Energy(model), x, settings=settings, radius=0.05)
    else:
        gradood.certify_mean(gradood.MaxSoftmax(model), x, settings=settings, radius=0.05)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("sequential", "speed", "detectors", "memory", "peak"))
    parser.add_argument("--inputs", type=int, default=12)
    parser.add_argument("--n", type=int, default=100_000)
    parser.add_argument("--sigma", type=float, default=0.02)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kind", default="class")
    parser.add_argument("--float32", action="store_true", help="No fast path.")
    chosen = parser.parse_args()
    if chosen.part == "sequential":
        sequential(chosen.inputs, chosen.n, chosen.sigma, chosen.float32)
    elif chosen.part == "speed":
        speed(chosen.rounds)
    elif chosen.part == "detectors":
        detectors(chosen.inputs, chosen.n)
    elif chosen.part == "memory":
        memory((1000, chosen.n))
    else:
        peak(chosen.kind, chosen.n)


if __name__ == "__main__":
    main()
