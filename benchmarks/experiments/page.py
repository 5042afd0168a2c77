"""``experiments.md``: tables of mean ± standard deviation over seeds, in percent."""

from __future__ import annotations

import platform
from collections.abc import Sequence

import torch

from benchmarks.experiments import peers
from benchmarks.experiments.classifiers import MAIN
from benchmarks.experiments.cost import Cost
from benchmarks.experiments.picture_sets import DEVELOPMENT
from benchmarks.experiments.results import FAST, FORWARD, Results, by_set, summary, table
from benchmarks.experiments.rows import Row
from benchmarks.experiments.targets import SEVEN, targets


def markdown(
    rows: Sequence[Row], spent: Sequence[Cost], trained: dict[str, dict[str, str]], command: str
) -> str:
    """The whole page; ``trained`` is what the classifiers' files say, by name."""
    everything, rows = rows, [row for row in rows if row.classifier.startswith(f"{MAIN}-")]
    sets, attacks, near = (Results(rows, part) for part in ("sets", "attacks", "near"))
    development = [name for name in sets.sets if name in DEVELOPMENT]
    final = [name for name in sets.sets if name not in DEVELOPMENT]
    parts = [
        "# The papers' experiments on Fashion-MNIST",
        _introduction(sets, trained, command),
        "## Targets",
        f"Seven attacks are {', '.join(SEVEN)}: those that the targets were set with. "
        "Verdicts are by means before rounding.",
        targets(rows),
        "## Without anomalies: sets",
        _halves(development),
        summary(sets, {"all sets": sets.sets, "development": development, "other half": final}),
        str(peers.__doc__).partition("\n\n")[2].strip().replace("\n", " "),
        "### AUROC by set",
        by_set(sets, "auroc"),
        "### FPR95 by set",
        by_set(sets, "fpr95"),
        "## Without anomalies: attacked pictures",
        "Made from rightly classified test pictures, rounded to 256 levels, those that still "
        "fool the classifier, against their own originals. AUROC; FGSM and PGD at 8/255 were "
        f"used in choosing presets. {_attacked(attacks)}",
        by_set(attacks, "auroc"),
    ]
    if near.rows:
        parts += [
            "## Near-anomalous classes",
            "A classifier trained without Dress, Sneaker and Bag. AUROC, and FPR95 below. "
            "resnet8-near-0 had a part in the choice of presets; other seeds, where they are here, "
            f"were looked at once, after it: {_near_seeds(near)}.",
            by_set(near, "auroc"),
            by_set(near, "fpr95"),
        ]
    parts += [
        "## The first paper's tables: supervised detection of sets",
        "The paper's two-layer network (`ConfoundingDetector`). *Same*: trained on the "
        "other half of the set that is scored; *left out*: on all other sets. AUROC. "
        "*Activations*, a control, is the same network on the penultimate features: nothing here "
        f"says that gradients beat it.{_below_chance(Results(rows, 'supervised'))}",
        by_set(Results(rows, "supervised"), "auroc"),
        "The same with five networks, their log-odds averaged, which is not the paper's:",
        by_set(Results(rows, "five networks"), "auroc"),
        "## The first paper's tables: supervised detection of attacks",
        "*Same*: trained on the same attack on other pictures; *left out*: on all other attacks.",
        by_set(Results(rows, "supervised attacks"), "auroc"),
        "## Ablations",
        "One measure of novelty on log norms alone; AUROC / FPR95, mean of all sets.",
    ]
    for part in ("label", "normalisation", "depth", "normal pictures", "precision"):
        found = Results(rows, part)
        if found.rows:
            parts += [f"### By {part}", summary(found, {"all sets": found.sets})]
    parts += [*tried(rows), *architectures(everything)]
    parts += ["## Cost", _cost_text(), _costs(spent), _figures()]
    return "\n\n".join(parts) + "\n"


def _introduction(sets: Results, trained: dict[str, dict[str, str]], command: str) -> str:
    told = ", ".join(
        f"{name} {said['test_accuracy']} ({said['epochs']})" for name, said in trained.items()
    )
    counts = ", ".join(
        f"{row.set} {row.anomalous}"
        for row in sets.rows
        if row.detector == FAST and (row.classifier, row.seed) == sets.runs[0]
    )
    return (
        f"Made by `{command}`. Method replication, not the papers' data. Percent; anomalous is "
        "the positive class; mean ± standard deviation over "
        f"{len(sets.runs)} classifiers trained from different seeds, which are those of splits and "
        f"fits, too. The classifiers' accuracy on test pictures (epochs): {told}; resnet8-0 is the "
        "one in the package. "
        f"Scored in the first run: {sets.rows[0].normal} normal pictures, and {counts}."
    )


def _halves(development: list[str]) -> str:
    return (
        f"AUROC / FPR95. The development half is {', '.join(development)}: presets were chosen on "
        "it with the committed classifier, together with the near-anomalous classes of "
        "resnet8-near-0, and with svhn, textures and tiny-imagenet on CIFAR-10 with ResNet-20 "
        "(`cifar.md`); their weights are no choice, normal pictures give them. The other half had "
        "no part in these choices, though earlier pages showed all sets and attacks for what the "
        'presets were then; the energy in "adversarial" was chosen on FGSM and PGD at 8/255 after '
        "all nine attacks had been looked at."
    )


def _attacked(attacks: Results) -> str:
    counts = {row.set: row.anomalous for row in attacks.rows if row.detector == FAST}
    told = ", ".join(f"{name} {count}" for name, count in counts.items())
    return (
        f"Pictures scored in the last run: {told}. DeepFool and C&W look for the smallest change, "
        "which rounding often undoes; what is left lies just beyond the border, where confidence "
        "alone (MaxSoftmax) tells most."
    )


def _near_seeds(found: Results) -> str:
    """AUROC / FPR95 of what needs one backward pass at most, for each classifier."""
    told = [
        f"{name} {Results(own, found.part).cell(FORWARD, ('auroc', 'fpr95'), found.sets)} "
        f"({Results(own, found.part).cell(FAST, ('auroc', 'fpr95'), found.sets)})"
        for name, own in found.by_classifier().items()
    ]
    return ", ".join(told) + ', of "forward" and, in brackets, "fast"'


def _below_chance(found: Results) -> str:
    detector = "all-hot, trained on noise only"
    below = [one for one in found.sets if (found.mean(detector, "auroc", (one,)) or 50) < 50]
    if not below:
        return ""
    return f" Trained on noise alone, the paper's network falls below chance on {', '.join(below)}."


def tried(rows: Sequence[Row]) -> list[str]:
    """What was measured on the way to the ambitions, if it is there."""
    sets, attacks, near, networks = (
        Results(rows, f"tried{part}") for part in ("", ", attacks", ", near", ", supervised")
    )
    if not sets.rows:
        return []
    lines = [
        [
            name,
            sets.cell(name, ("auroc", "fpr95"), sets.sets),
            attacks.cell(name, ("auroc",), attacks.sets),
            near.cell(name, ("auroc",), near.sets),
        ]
        for name in sets.detectors
    ]
    header = ["", "development sets", "development attacks", "near-anomalous classes"]
    parts = [
        "## What was tried for the ambitions",
        "Where the ambition is missed, what else was measured: AUROC / FPR95 on the development "
        "half of sets and attacks with the committed classifier, and AUROC on the near-anomalous "
        "classes of resnet8-near-0. Norms are logarithms, & is the sum of standardised scores; "
        "the ablations above compare labels, normalisations and depths.",
        table(header, lines),
    ]
    if networks.rows:
        parts += [
            "The paper's network, AUROC on the development half; *left out* trains on the other "
            "sets of that half.",
            by_set(networks, "auroc"),
        ]
    return parts


def architectures(rows: Sequence[Row]) -> list[str]:
    """The detectors on classifiers of other kinds, if there are any."""
    others = [row for row in rows if not row.classifier.startswith(f"{MAIN}-")]
    kinds = list(dict.fromkeys(row.classifier.rpartition("-")[0] for row in others))
    if not kinds:
        return []
    names = {row.classifier for row in others}
    counts = ", ".join(
        f"{kind} ({sum(name.startswith(f'{kind}-') for name in names)})" for kind in kinds
    )
    return [
        "## Other architectures",
        f"{counts}: in brackets how many classifiers; a quarter of the pictures. AUROC / FPR95, "
        "mean of all sets, and AUROC, mean of all attacks.",
        _by_kind(others, kinds, ("sets", "attacks")),
        "The paper's network on them, AUROC:",
        _by_kind(others, kinds, ("supervised", "supervised attacks")),
    ]


def _by_kind(rows: Sequence[Row], kinds: Sequence[str], parts: Sequence[str]) -> str:
    """A detector a line, a part of an architecture a column."""
    found = {
        (kind, part): Results([r for r in rows if r.classifier.startswith(f"{kind}-")], part)
        for kind in kinds
        for part in parts
    }
    lines = []
    for name in found[kinds[0], parts[0]].detectors:
        cells = (
            one.cell(name, ("auroc", "fpr95") if part == "sets" else ("auroc",), one.sets)
            for (_, part), one in found.items()
        )
        lines.append([name, *cells])
    return table(["", *(f"{kind}, {part}" for kind, part in found)], lines)


def _cost_text() -> str:
    capability = torch.backends.cpu.get_cpu_capability()
    return (
        "Processor time of one thread, medians of rounds in which all take turns, batches of 64, "
        "on the committed classifier; compare within the table only. "
        f"PyTorch {torch.__version__}, {platform.machine()}, {capability}."
    )


def _costs(spent: Sequence[Cost]) -> str:
    lines = [
        [c.what, f"{c.milliseconds:.2f}", f"{c.of_forward:.2f}", f"{c.of_step:.2f}"] for c in spent
    ]
    return table(["", "ms an image", "of a forward pass", "of forward + backward"], lines)


def _figures() -> str:
    return (
        "![ROC curves](experiments_roc.png)\n\n![Layers](experiments_layers.png)\n\n"
        "![Cost and quality](experiments_depth.png)"
    )
