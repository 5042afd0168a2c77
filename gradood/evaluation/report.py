"""The demo as one HTML page that needs nothing else: figures and style are inside."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from torch import Tensor

from gradood.evaluation import plots
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
from gradood.evaluation.metrics import Metrics

_EXAMPLES = 8

_CSS = """
:root { --ink: #1d2733; --soft: #5c6b7a; --line: #e3e8ee; --blue: #2a6f97; --red: #d1495b; }
* { box-sizing: border-box; }
body { margin: 0; background: #f5f7f9; color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 0 0 8px; }
h2 { font-size: 20px; margin: 0 0 4px; }
h3 { font-size: 16px; margin: 18px 0 6px; }
p { margin: 0 0 14px; max-width: 78ch; }
.soft { color: var(--soft); }
section { background: white; border: 1px solid var(--line); border-radius: 12px;
          padding: 24px; margin-top: 20px; overflow-x: auto; }
.tiles { display: grid; grid-template-columns: repeat(4, 1fr); gap: 14px; margin-top: 24px; }
.tile { background: white; border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px; }
.tile b { display: block; font-size: 28px; line-height: 1.2; color: var(--blue); }
.tile span { color: var(--soft); font-size: 14px; line-height: 1.35; display: block; }
table { border-collapse: collapse; width: 100%; font-size: 14px;
        font-variant-numeric: tabular-nums; }
th { text-align: right; font-weight: 600; color: var(--soft); padding: 6px 8px;
     vertical-align: bottom; border-bottom: 2px solid var(--line); }
td { text-align: right; padding: 7px 8px; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
td:first-child, tr.mean td { font-weight: 600; }
td small { color: var(--soft); display: block; font-size: 12px; }
td.best { background: #e8f3ee; }
dl { margin: 18px 0 0; display: grid; grid-template-columns: max-content 1fr;
     gap: 4px 18px; font-size: 14px; }
dt { font-weight: 600; } dd { margin: 0; color: var(--soft); }
img.figure { width: 100%; height: auto; display: block; }
.row { display: grid; grid-template-columns: 116px repeat(8, 1fr); gap: 10px; align-items: center;
       padding: 8px 0; border-bottom: 1px solid var(--line); }
.row:last-child { border: 0; }
figure { margin: 0; text-align: center; font-size: 12px; color: var(--soft);
         font-variant-numeric: tabular-nums; }
figure img { width: 64px; height: 64px; image-rendering: pixelated; border-radius: 6px;
             border: 3px solid var(--blue); display: block; margin: 0 auto 2px; }
figure.flagged img { border-color: var(--red); }
@media (max-width: 760px) { .tiles { grid-template-columns: repeat(2, 1fr); }
                            .row { grid-template-columns: 90px repeat(4, 1fr); } }
"""


def html_report(result: Demonstration, versions: str) -> str:
    """The page as a string.

    Args:
        result: What ``demonstrate`` returned.
        versions: One line on what it ran with, for the last section.
    """
    sections = (_table, _histograms, _roc, _reactions, _examples)
    body = "\n".join(f"<section>{section(result)}</section>" for section in sections)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>gradood demo</title>
<style>{_CSS}</style>
</head>
<body><main>
<h1>Is this picture anomalous for this classifier?</h1>
<p class="soft">gradood asks how much every layer of a trained network would have to change to call
a picture all classes at once. The squared gradient norms answer it, one number a layer, and a small
detector reads them. Here: a Fashion-MNIST classifier, {result.counts[2]} of its test pictures as
normal, and {len(result.sets)} sets of anomalies.</p>
{_tiles(result)}
{body}
<section>{_method(result, versions)}</section>
</main></body>
</html>
"""


def mean_metric(result: Demonstration, detector: str, metric: str) -> float:
    """Mean of one of the ``Metrics`` over all anomalous sets, each weighing the same."""
    values = [getattr(one.metrics[detector], metric) for one in result.sets]
    return float(sum(values) / len(values))


def _tiles(result: Demonstration) -> str:
    timing = result.timing
    auroc = {name: f"{100 * mean_metric(result, name, 'auroc'):.1f}" for name in DETECTORS}
    tiles = (
        (auroc[DEFAULT], "mean AUROC (%) of a detector that never saw an anomaly"),
        (auroc[PAPER], f"of the paper's, trained on all kinds; {auroc[PAPER_UNSEEN]} on new kinds"),
        (auroc[ENERGY], f"of the energy score; {auroc[MAX_SOFTMAX]} of max-softmax"),
        (
            f"{timing.images / timing.norms:,.0f}",
            f"pictures a second; a forward pass alone is {timing.forward / timing.norms:.0%} of "
            "the time",
        ),
    )
    cells = "".join(f'<div class="tile"><b>{n}</b><span>{escape(t)}</span></div>' for n, t in tiles)
    return f'<div class="tiles">{cells}</div>'


def _table(result: Demonstration) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in DETECTORS)
    rows = "".join(_table_row(one) for one in result.sets)
    means = "".join(
        f"<td>{100 * mean_metric(result, name, 'auroc'):.1f}"
        f"<small>{100 * mean_metric(result, name, 'aupr_anomalous'):.1f} · "
        f"{100 * mean_metric(result, name, 'fpr95'):.1f}</small></td>"
        for name in DETECTORS
    )
    terms = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in EXPLANATIONS.items())
    return (
        "<h2>How well each detector separates anomalous from normal</h2>"
        '<p class="soft">AUROC in %, below it AUPR (anomalous is positive) · false positive rate '
        "at 95 % true positive rate. Shaded: the best AUROC among detectors that never saw the "
        "set.</p>"
        f"<table><tr><th>set (pictures)</th>{head}</tr>{rows}"
        f'<tr class="mean"><td>mean</td>{means}</tr></table><dl>{terms}</dl>'
    )


def _table_row(one: SetResult) -> str:
    best = max(one.metrics[name].auroc for name in DETECTORS if name != PAPER)
    cells = ""
    for name in DETECTORS:
        metrics: Metrics = one.metrics[name]
        shaded = ' class="best"' if name != PAPER and metrics.auroc == best else ""
        cells += (
            f"<td{shaded}>{100 * metrics.auroc:.1f}<small>{100 * metrics.aupr_anomalous:.1f} · "
            f"{100 * metrics.fpr95:.1f}</small></td>"
        )
    return f"<tr><td>{escape(one.name)} ({len(one.images)})</td>{cells}</tr>"


def _histograms(result: Demonstration) -> str:
    parts = []
    for detector, threshold in ((DEFAULT, result.threshold), (PAPER_UNSEEN, None)):
        uri = plots.score_histograms(result.sets, detector, threshold)
        parts.append(f"<h3>{escape(detector)}</h3>{_image(uri, 'score histograms')}")
    note = (
        '<p class="soft">Scores in interquartile ranges from the normal median, on an asinh axis. '
        f"The threshold was calibrated on {result.counts[1]} other normal pictures for at most 5 % "
        f"false alarms; on the {result.counts[2]} scored ones: {result.false_alarms:.1%}.</p>"
    )
    return "<h2>How the scores are distributed</h2>" + note + "".join(parts)


def _roc(result: Demonstration) -> str:
    return "<h2>ROC curves</h2>" + _image(plots.roc_curves(result.sets), "ROC curves")


def _reactions(result: Demonstration) -> str:
    return (
        "<h2>Which layers react</h2>"
        '<p class="soft">Median log squared gradient norm of each parameter tensor, in standard '
        "deviations from its mean on normal pictures: red is larger than normal, blue smaller. "
        "Their signs differ between sets, which is why a sum of norms is no detector.</p>"
        + _image(plots.reaction_map(result), "reaction of each layer to each set")
    )


def _examples(result: Demonstration) -> str:
    rows = _example_row("normal", result.normal_images, result.normal_scores, result.threshold)
    for one in result.sets:
        rows += _example_row(one.name, one.images, one.anomalous, result.threshold)
    return (
        "<h2>Pictures and their scores</h2>"
        f'<p class="soft">The first {_EXAMPLES} of each set, as drawn, none picked. The number is '
        f"the score of {escape(DEFAULT)}; its threshold is {result.threshold:.1f}, and a red "
        "frame means above it: anomalous.</p>" + rows
    )


def _example_row(name: str, images: Tensor, scores: dict[str, Tensor], threshold: float) -> str:
    figures = ""
    for image, score in zip(images[:_EXAMPLES], scores[DEFAULT].tolist(), strict=False):
        flagged = ' class="flagged"' if score > threshold else ""
        figures += f"<figure{flagged}>{_image(plots.picture(image), name, '')}{score:.1f}</figure>"
    return f'<div class="row"><b>{escape(name)}</b>{figures}</div>'


def _method(result: Demonstration, versions: str) -> str:
    fit, calibrate, score = result.counts
    timing = result.timing
    facts: Iterable[tuple[str, str]] = (
        ("Normal pictures", f"{fit} to fit, {calibrate} to calibrate, {score} to score; disjoint"),
        ("Anomalous sets", "halved, by font family or photograph where there are any; the first "
         "half may train the paper's detector, the second is scored"),
        ("Also trained on", "noise, and normal pictures shuffled, inverted, rotated; never scored"),
        ("Set unseen", "leaves out the scored set only: PGD stays when FGSM is left out, digits "
         "when MNIST is"),
        ("Label and loss", "all classes at once, sigmoid cross-entropy summed over classes"),
        ("Time", f"{timing.images} pictures: {timing.norms:.1f} s in gradient norms, of which "
         f"{timing.forward:.1f} s is what a forward pass takes; {timing.total:.1f} s in all, "
         f"{timing.norms / timing.total:.0%} of it in norms; the rest is attacks and fits"),
        ("Seed", str(result.seed)),
        ("Made with", versions),
    )  # fmt: skip
    facts = [*facts, *((one.name, one.about) for one in result.sets)]
    terms = "".join(f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts)
    return (
        "<h2>How this was made</h2>"
        '<p class="soft">Method: Lee, Prabhushankar, AlRegib, “Gradient-Based '
        "Adversarial and Out-of-Distribution Detection”, 2022, arXiv 2206.08255.</p>"
        f"<dl>{terms}</dl>"
    )


def _image(uri: str, description: str, css_class: str = "figure") -> str:
    return f'<img class="{css_class}" src="{uri}" alt="{escape(description)}">'
