"""The page of ``gradood demo``."""

from __future__ import annotations

import torch
from torch import Tensor

from gradood.evaluation.curves import pr_points, roc_points
from gradood.evaluation.demonstration import (
    DEFAULT,
    DETECTORS,
    ENERGY,
    EXPLANATIONS,
    MAX_SOFTMAX,
    PAPER,
    PAPER_UNSEEN,
    Demonstration,
    SetResult,
)
from gradood.evaluation.reports import figures
from gradood.evaluation.reports.figures import Plot
from gradood.evaluation.reports.html import COLOURS, Html, facts, soft, table, tag, tiles
from gradood.evaluation.reports.page import Page
from gradood.evaluation.reports.pictures import captioned

_EXAMPLES = 8
_LINES = {
    PAPER: (COLOURS["red"][0], "-"),
    PAPER_UNSEEN: (COLOURS["red"][0], "--"),
    DEFAULT: (COLOURS["blue"][0], "-"),
    MAX_SOFTMAX: (COLOURS["grey"][0], "--"),
    ENERGY: (COLOURS["grey"][0], "-"),
}
_SETTINGS = {
    "Anomalous sets": "halved, by font family or photograph where there are any; the first half "
    "may train the paper's detector, the second is scored",
    "Also trained on": "noise, and normal pictures shuffled, inverted, rotated; never scored",
    "Set unseen": "leaves out the scored set only: PGD stays when FGSM is left out, digits when "
    "MNIST is",
    "Label and loss": "all classes at once, sigmoid cross-entropy summed over classes",
}


def demo_page(result: Demonstration, versions: str) -> Page:
    """The page on what ``demonstrate`` returned."""
    page = Page(
        "Is this picture anomalous for this classifier?",
        "gradood asks how much every layer of a trained network would have to change to call a "
        "picture all classes at once. The squared gradient norms answer it, one number a layer, "
        "and a small detector reads them. Here: a Fashion-MNIST classifier, "
        f"{result.counts[2]} of its test pictures as normal, and {len(result.sets)} sets of "
        "anomalies.",
    )
    page.add(_tiles(result))
    page.section("How well each detector separates anomalous from normal", *_table(result))
    page.section("How the scores are distributed", *_histograms(page, result))
    roc = (_curve(one, "roc") for one in result.sets)
    page.section("ROC curves", page.plots(roc))
    page.section(
        "Precision and recall",
        soft("Anomalous is positive; the sets hold different numbers of pictures."),
        page.plots(_curve(one, "pr") for one in result.sets),
    )
    page.section("Which layers react", *_reactions(page, result))
    page.section("Pictures and their scores", *_examples(result))
    page.section("How this was made", *_method(result, versions))
    return page


def mean_metric(result: Demonstration, detector: str, metric: str) -> float:
    """Mean of one of the ``Metrics`` over all anomalous sets, each weighing the same."""
    values = [getattr(one.metrics[detector], metric) for one in result.sets]
    return float(sum(values) / len(values))


def _tiles(result: Demonstration) -> Html:
    timing = result.timing
    auroc = {name: f"{100 * mean_metric(result, name, 'auroc'):.1f}" for name in DETECTORS}
    share = f"{timing.forward / timing.norms:.0%}"
    unseen = f"of the paper's, trained on all kinds; {auroc[PAPER_UNSEEN]} on new kinds"
    return tiles(
        (
            (auroc[DEFAULT], "mean AUROC (%) of a detector that never saw an anomaly"),
            (auroc[PAPER], unseen),
            (auroc[ENERGY], f"of the energy score; {auroc[MAX_SOFTMAX]} of max-softmax"),
            (
                f"{timing.images / timing.norms:,.0f}",
                f"pictures a second; a forward pass alone is {share} of the time",
            ),
        )
    )


def _table(result: Demonstration) -> list[Html]:
    rows = [_table_row(one) for one in result.sets]
    names = ("auroc", "aupr_anomalous", "fpr95")
    means = [_cell(*(mean_metric(result, name, metric) for metric in names)) for name in DETECTORS]
    return [
        soft(
            "AUROC in %, below it AUPR (anomalous is positive) · false positive rate at 95 % true "
            "positive rate. Shaded: the best AUROC among detectors that never saw the set."
        ),
        table(("set (pictures)", *DETECTORS), [*rows, ("mean", *means)], marked=[len(rows)]),
        facts(EXPLANATIONS),
    ]


def _table_row(one: SetResult) -> list[str | Html]:
    best = max(one.metrics[name].auroc for name in DETECTORS if name != PAPER)
    cells = []
    for name in DETECTORS:
        found = one.metrics[name]
        shaded = name != PAPER and found.auroc == best
        cells.append(_cell(found.auroc, found.aupr_anomalous, found.fpr95, best=shaded))
    return [f"{one.name} ({len(one.images)})", *cells]


def _cell(auroc: float, aupr: float, fpr95: float, *, best: bool = False) -> Html:
    others = tag("small", f"{100 * aupr:.1f} · {100 * fpr95:.1f}")
    return tag("td", f"{100 * auroc:.1f}", others, class_="best" if best else None)


def _histograms(page: Page, result: Demonstration) -> list[Html]:
    note = (
        "On axes that are even around the median of normal scores and logarithmic far from it. The "
        f"threshold was calibrated on {result.counts[1]} other normal pictures for at most 5 % "
        f"false alarms; on the {result.counts[2]} scored ones: {result.false_alarms:.1%}."
    )
    parts = [soft(note)]
    for detector, threshold in ((DEFAULT, result.threshold), (PAPER_UNSEEN, None)):
        plots = (_histogram(one, detector, threshold) for one in result.sets)
        parts += [tag("h3", detector), page.plots(plots)]
    return parts


def _histogram(one: SetResult, detector: str, threshold: float | None) -> Plot:
    normal, anomalous = (s[detector].double().numpy() for s in (one.normal, one.anomalous))
    return figures.score_histogram(normal, anomalous, title=one.name, threshold=threshold)


def _curve(one: SetResult, kind: str) -> Plot:
    scores = {name: (one.normal[name], one.anomalous[name]) for name in DETECTORS}
    if kind == "roc":
        lines = {name: roc_points(*pair).line for name, pair in scores.items()}
        return figures.roc(lines, title=one.name, styles=_LINES)
    lines = {name: pr_points(*pair) for name, pair in scores.items()}
    return figures.precision_recall(lines, title=one.name, styles=_LINES)


def _reactions(page: Page, result: Demonstration) -> list[Html]:
    values = torch.stack([one.reaction for one in result.sets]).double().numpy()
    names = [one.name for one in result.sets]
    plot = figures.heat_map("reactions", values, names, result.parameters)
    return [
        soft(
            "Median log squared gradient norm of each parameter tensor, in standard deviations "
            "from its mean on normal pictures: red is larger than normal, blue smaller. Their "
            "signs differ between sets, which is why a sum of norms is no detector."
        ),
        page.plots([plot], wide=True),
    ]


def _examples(result: Demonstration) -> list[Html]:
    rows = _example_row("normal", result.normal_images, result.normal_scores, result.threshold)
    for one in result.sets:
        rows += _example_row(one.name, one.images, one.anomalous, result.threshold)
    note = (
        f"The first {_EXAMPLES} of each set, as drawn, none picked. The number is the score of "
        f"{DEFAULT}; its threshold is {result.threshold:.1f}, and a red frame means above it: "
        "anomalous."
    )
    return [soft(note), *rows]


def _example_row(
    name: str, images: Tensor, scores: dict[str, Tensor], threshold: float
) -> list[Html]:
    figures = [
        captioned(image, name, f"{score:.1f}", kind="anomalous" if score > threshold else "normal")
        for image, score in zip(images[:_EXAMPLES], scores[DEFAULT].tolist(), strict=False)
    ]
    return [tag("h3", name), tag("div", *figures, class_="gallery small")]


def _method(result: Demonstration, versions: str) -> list[Html]:
    fit, calibrate, score = result.counts
    timing = result.timing
    time = (
        f"{timing.images} pictures: {timing.norms:.1f} s in gradient norms, of which "
        f"{timing.forward:.1f} s is what a forward pass takes; {timing.total:.1f} s in all, "
        f"{timing.norms / timing.total:.0%} of it in norms; the rest is attacks and fits"
    )
    source = (
        "Method: Lee, Prabhushankar, AlRegib, “Gradient-Based Adversarial and Out-of-Distribution "
        "Detection”, 2022, arXiv 2206.08255."
    )
    return [
        soft(source),
        facts(
            {
                "Normal pictures": f"{fit} to fit, {calibrate} to calibrate, {score} to score; "
                "disjoint",
                **_SETTINGS,
                "Time": time,
                "Seed": result.seed,
                "Made with": versions,
                **{one.name: one.about for one in result.sets},
            }
        ),
    ]
