"""``cifar.md``: tables of mean ± standard deviation over random fits, in percent."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.cifar.costs import VECTORS
from benchmarks.cifar.sets import CONTROL, DEVELOPMENT, FAR, NEAR
from benchmarks.cifar.suite import ATTACKED, ATTACKS, Protocol
from benchmarks.experiments.cost import Cost
from benchmarks.experiments.results import OURS, Results, by_set, summary, table
from benchmarks.experiments.rows import FAILED, Row


def markdown(
    rows: Sequence[Row],
    spent: Sequence[Cost],
    accuracies: Mapping[str, float],
    protocol: Protocol,
    command: str,
) -> str:
    """The whole page."""
    parts = [
        "# CIFAR-10, with public classifiers",
        _introduction(rows, accuracies, protocol, command),
    ]
    for network in accuracies:
        of_network = [row for row in rows if row.classifier == network]
        parts += _of_network(network, of_network, protocol.fits)
    many = Results(rows, "few pictures, many classes")
    if many.rows:
        parts += [
            "## Few normal pictures of many classes",
            "EfficientNet-Lite0, 700 of 1,000 pictures of ImageNet to fit on, one a class, the "
            f"others normal; {len(many.runs)} random fits. AUROC / FPR95. Networks may have been "
            "trained on these pictures.",
            summary(many, {name: [name] for name in many.sets}),
        ]
    parts += [_failures(rows), "## Cost", _costs(spent)]
    parts += ["![Cost and quality](cifar_cost.png)"] if spent else []
    return "\n\n".join(part for part in parts if part) + "\n"


def _introduction(
    rows: Sequence[Row], accuracies: Mapping[str, float], protocol: Protocol, command: str
) -> str:
    told = ", ".join(f"{name} {value:.2f} %" for name, value in accuracies.items())
    counts = {row.set: row.anomalous for row in rows if row.part.startswith("sets")}
    sizes = ", ".join(f"{name} {count}" for name, count in counts.items())
    normal = max(row.normal for row in rows if row.part.startswith("sets"))
    names = ", ".join(protocol.without)
    left_out = f" Left out of this run, to save time: {names}." if names else ""
    only = "" if protocol.pictures else f", with {ATTACKED} alone"
    return (
        f"Made by `{command}`. Classifiers are akamaster/pytorch_resnet_cifar10's, not trained by "
        f"us; accuracy on the normal pictures that are scored: {told}. Scored: {normal} normal "
        f"pictures of the test set, and {sizes}, drawn at random. Fits are on random training "
        f"pictures, {protocol.seeds} of each number but all, of other numbers than the first with "
        f"{ATTACKED} alone; "
        f"peers that read feature maps or pictures were fitted once, on {protocol.fits[0]}{only}. "
        "Anomalous is the positive class; AUROC / FPR95 in percent, mean ± standard deviation over "
        f"the fits. Near: {', '.join(NEAR)}; far: the others. Parts and presets were chosen on "
        f"{', '.join(DEVELOPMENT)} with ResNet-20, on the development half of the Fashion-MNIST "
        "suite and on the near-anomalous classes of its resnet8-near-0. The other sets and "
        "ResNet-56 had no part in that choice; they had been looked at for what the presets were "
        "before, and once for the first form of these. That each layer counts the same was chosen "
        "on development sets, with the 700 ImageNet pictures in view. The energy in "
        '"adversarial" was chosen on the attacked development sets and on FGSM and PGD at 8/255 on '
        "Fashion-MNIST, after all nine attacks there had been looked at. Peers "
        "are pytorch-ood's, with default settings; NACUE reads every stage, as its documentation "
        "has it, but not with a steepness of its own for each layer, as its paper does: with the "
        f"default most values of a neuron fall into two of its fifty bins.{left_out}"
    )


def _of_network(network: str, rows: Sequence[Row], fits: Sequence[int]) -> list[str]:
    parts = [f"## {network}"]
    for fit in fits:
        found = Results(rows, f"sets, {fit}")
        if not found.rows:
            continue
        groups = groups_of(found.sets)
        parts += [f"### Fitted on {fit}", summary(found, groups)]
        if fit == fits[0]:
            parts += ["AUROC by set:", by_set(_without_control(found), "auroc")]
            parts += ["FPR95 by set:", by_set(_without_control(found), "fpr95")]
            parts += [f"![ROC curves](cifar_roc_{network}.png)"]
    attacks = Results(rows, "attacks")
    if attacks.rows:
        counts = {row.set: row.anomalous for row in attacks.rows}
        told = ", ".join(f"{name} {counts.get(name, 0)}" for name in ATTACKS)
        parts += [
            "### Attacked pictures",
            f"AUROC against their originals, of those that fool, rounded to 256 levels: {told}. "
            "None of these attacks knows of a detector.",
            by_set(attacks, "auroc"),
        ]
    return parts


def groups_of(sets: Sequence[str]) -> dict[str, list[str]]:
    """Columns of a summary, and the sets whose mean they are."""
    near, far = [s for s in sets if s in NEAR], [s for s in sets if s in FAR]
    groups = {"near": near, "far": far, "all sets": near + far}
    groups["development"] = [name for name in sets if name in DEVELOPMENT]
    groups["the others"] = [name for name in near + far if name not in DEVELOPMENT]
    return groups | {CONTROL: [CONTROL]}


def _without_control(found: Results) -> Results:
    rows = [row for row in found.rows if row.set != CONTROL]
    return Results(rows, rows[0].part)


def _failures(rows: Sequence[Row]) -> str:
    failed = sorted({(row.detector, row.classifier, row.set) for row in rows if row.part == FAILED})
    if not failed:
        return ""
    told = "; ".join(f"{name} on {where} ({why})" for name, where, why in failed)
    return f"Peers that do not run: {told}."


def _costs(spent: Sequence[Cost]) -> str:
    lines = [
        [c.what, f"{c.milliseconds:.2f}", f"{c.of_forward:.2f}", f"{c.of_step:.2f}"] for c in spent
    ]
    header = ["", "ms an image", "of a forward pass", "of forward + backward"]
    return (
        "Processor time of one thread, ResNet-20, batches of 128, medians of rounds in which all "
        "take turns. The last lines: measures of vectors alone, fitted on and scoring "
        f"{VECTORS[0]:,} random ones of {VECTORS[1]} features. PyTorch {torch.__version__}, "
        f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}.\n\n"
        f"{table(header, lines)}"
    )


def draw_cost(rows: Sequence[Row], spent: Sequence[Cost], path: Path) -> None:
    """Mean AUROC against cost in forward passes."""
    found = Results(rows, next(row.part for row in rows if row.part.startswith("sets")))
    sets = groups_of(found.sets)["all sets"]
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    for cost in spent:
        mean = found.mean(cost.what, "auroc", sets)
        if mean is not None and mean > 80:
            axes.plot(cost.of_forward, mean, "o", color="C3" if cost.what in OURS else "C0")
            label = cost.what.removeprefix("pytorch-ood ")
            axes.annotate(label, (cost.of_forward, mean), fontsize=6)
    axes.set_xlabel("cost, forward passes")
    axes.set_ylabel("AUROC, mean of all sets, %")
    figure.savefig(path, dpi=110)
