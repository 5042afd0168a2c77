"""The page of the first paper's protocol on CIFAR-10, from its rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.experiments.results import Results, by_set, table
from benchmarks.experiments.rows import Row
from benchmarks.papers.replication import FEW, MAIN, RADII, TARGETS, Sizes

PAPER = "all-hot"
#: Pictures below which an attack's figures are noise.
ENOUGH = 20
#: What the paper's detector should be ahead of.
CONTROLS = {
    "activations": "the control on activations",
    "linear": "a logistic regression on the same norms",
}
LIMITS = (
    "One thing changed at a time, beside the rows of the tables above: how many pictures are "
    "trained on, how strong the penalty of *linear* is (C is the inverse of its weight, 0.1 "
    "above), and what it reads. The paper's network is limited by what it learns from: the linear "
    "detector on the same norms needs fewer pictures and is better with all of them, and more "
    "labels, and what else the same passes give, add more than another size or penalty does. What "
    "remains is CIFAR-100, which is near, and attacks left out."
)


def markdown(
    rows: Sequence[Row], accuracies: Mapping[str, float], sizes: Sizes, command: str
) -> str:
    """The whole page."""
    parts = [
        "# The first paper's tables, on CIFAR-10",
        "Lee, Prabhushankar, AlRegib, *Gradient-Based Adversarial and Out-of-Distribution "
        "Detection*, 2022, arXiv 2206.08255.",
        "## Where it loses",
        _losses(rows),
        "## Protocol",
        _protocol(rows, accuracies, sizes, command),
    ]
    for network in accuracies:
        parts += _of_network(network, [row for row in rows if row.classifier == network])
    return "\n\n".join(parts) + "\n"


def _protocol(
    rows: Sequence[Row], accuracies: Mapping[str, float], sizes: Sizes, command: str
) -> str:
    told = ", ".join(f"{name} {value:.2f} %" for name, value in accuracies.items())
    supervised = [row for row in rows if row.part == "supervised"]
    counts = {row.set: row.anomalous for row in supervised}
    sets = ", ".join(f"{name} {count}" for name, count in counts.items())
    return (
        f"Made by `{command}`. AUROC in percent, anomalous is the positive class. Classifiers are "
        f"akamaster/pytorch_resnet_cifar10's, not trained by us; accuracy on the normal pictures: "
        f"{told}. All sets are halved at random: supervised detectors train on one half, and "
        f"everything is scored on the other: {supervised[0].normal} normal pictures, {sets}. "
        f"Detectors without anomalies are fitted on {sizes.fit} training pictures. *Same*: trained "
        "on the set, or the attack, that is scored; *left out*: on all others. *all-hot* is the "
        "paper's detector; *activations*, a control, is the same network on the penultimate "
        "features; *linear* is a logistic regression on log norms under one label, or under three "
        "(all-hot, CE-uniform, half of the logits), and on activations' norms; *everything* adds "
        "penultimate features and logits to these. That it is linear, and its C, were chosen after "
        "a comparison of about twenty variants on these halves: its figures are somewhat "
        "optimistic.\n\n"
        f"What differs from the paper: its networks were its authors', ours are public "
        f"({', '.join(accuracies)}); scenes, gtsrb and mnist stand beside its kinds of sets; its "
        "attacks' strengths are those of `benchmarks/experiments/attacked.py`, C&W shortened, and "
        "DeepFool, whose usual steps rounding would undo, twice as far (overshoot 1); attacked "
        "pictures are rounded to 256 levels, must fool after that, and are scored against their "
        f"own originals. Attacks and ablations are of {MAIN} alone, for their cost. The paper's "
        "tables are not repeated: we had its abstract, which prints no figure, and not its "
        "tables. The abstract of its authors' longer paper (*Probing the Purview of Neural "
        "Networks via Gradient Analysis*, 2023, arXiv 2304.02834) says up to 2.7 % more AUROC than "
        "others on sets, and 19.8 % on attacks; against today's detectors, and a control that "
        "reads activations, we find no such lead."
    )


def _losses(rows: Sequence[Row]) -> str:
    found = [*_against_control(rows), *_left_out(rows), *_adaptive_losses(rows)]
    return "\n".join(f"* {line}" for line in found)


def _against_control(rows: Sequence[Row]) -> list[str]:
    lines = []
    for part, what in (("supervised", "sets"), ("supervised attacks", "attacks")):
        results = Results(rows, part)
        for training in ("same", "left out"):
            ours = results.mean(f"{PAPER}, {training}", "auroc", results.sets)
            for name, told in CONTROLS.items():
                control = results.mean(f"{name}, {training}", "auroc", results.sets)
                if ours is not None and control is not None and control >= ours:
                    lines.append(
                        f"On {what}, {training}, {told} is at {control:.1f}, the paper's detector "
                        f"at {ours:.1f} (means of all networks)."
                    )
    return lines


def _left_out(rows: Sequence[Row]) -> list[str]:
    lines = []
    for part, free, what in (
        ("supervised", "sets", "set"),
        ("supervised attacks", "attacks", "attack"),
    ):
        supervised, without = Results(rows, part), Results(rows, free)
        behind = []
        for name in supervised.sets:
            ours = supervised.mean(f"{PAPER}, left out", "auroc", [name])
            others = {d: without.mean(d, "auroc", [name]) for d in without.detectors}
            best = max(others, key=lambda d: others[d] or 0.0)
            if ours is not None and ours < (others[best] or 0.0):
                behind.append(f"{name} ({ours:.1f}; {best} {others[best]:.1f})")
        if behind:
            lines.append(
                f"With the {what} left out, a detector that saw no anomalies is better than the "
                f"paper's on: {', '.join(behind)}."
            )
    return lines


def _adaptive_losses(rows: Sequence[Row]) -> list[str]:
    results = Results(rows, "adaptive")
    broken = []
    for what in results.detectors:
        values = [(r, results.mean(what, "auroc", [f"adaptive {r}/255"])) for r in RADII]
        first = next((r for r, value in values if value is not None and value < 50), None)
        if first is not None:
            broken.append(f"{what} at {first}/255")
    if not broken:
        return []
    return [
        "An attack that knows the detector brings it below chance: " + ", ".join(broken) + ". No "
        "detector here is a defence against one who knows it; certificates are what is left."
    ]


def _of_network(network: str, rows: Sequence[Row]) -> list[str]:
    parts = [f"## {network}", "### Sets", by_set(Results(rows, "supervised"), "auroc")]
    parts += ["Detectors that see no anomalies:", by_set(Results(rows, "sets"), "auroc")]
    if network != MAIN:
        return parts
    attacks = Results(rows, "attacks")
    counts = {row.set: row.anomalous for row in attacks.rows}
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    return [
        *parts,
        "### Attacks",
        f"Attacked pictures that are scored: {told}.",
        by_set(Results(rows, "supervised attacks"), "auroc"),
        *_without_few(rows, counts),
        "Detectors that see no anomalies:",
        by_set(attacks, "auroc"),
        "### Labels: which, and how many",
        "The paper's network on norms under other labels; sets, then attacks.",
        by_set(Results(rows, "labels, sets"), "auroc"),
        by_set(Results(rows, "labels, attacks"), "auroc"),
        "### What limits the paper's detector",
        LIMITS,
        by_set(Results(rows, "limits, sets"), "auroc"),
        by_set(Results(rows, "limits, attacks"), "auroc"),
        "A norm for every filter instead of one for every tensor, on "
        f"{FEW[0]} normal pictures and at most {FEW[1]} of every set:",
        by_set(Results(rows, "filters, sets"), "auroc"),
        *_adaptive(Results(rows, "adaptive")),
    ]


def _without_few(rows: Sequence[Row], counts: Mapping[str, int]) -> list[str]:
    """Means over the attacks of which enough pictures fool the classifier after rounding."""
    few = [name for name, count in counts.items() if count < ENOUGH]
    if not few:
        return []
    results = Results(rows, "supervised attacks")
    rest = [name for name in results.sets if name not in few]
    told = ", ".join(f"{one} {results.cell(one, ('auroc',), rest)}" for one in results.detectors)
    return [f"Of {', '.join(few)} fewer than {ENOUGH} are left; means without: {told}."]


def _adaptive(found: Results) -> list[str]:
    lines = [
        [name, *(found.cell(name, ("auroc",), (one,)) for one in _columns())] for name in TARGETS
    ]
    counts = {
        one: [row.anomalous for row in found.rows if row.set == one] or [0] for one in _columns()
    }
    told = ", ".join(f"{one} {min(c)} to {max(c)}" for one, c in counts.items())
    return [
        "### An attacker who knows the detector",
        "`gradood.attacks.evade` fools the classifier and lowers the detector's score at once, "
        "through the gradient norms where there are any; AUROC that is left beside that on PGD, "
        "which does not know the detector, on the same pictures. A detection figure of attacks "
        f"means nothing without this table. Pictures that fool: {told}.",
        table(["", *_columns()], lines),
    ]


def _columns() -> list[str]:
    return [f"{attack} {r}/255" for r in RADII for attack in ("PGD", "adaptive")]
