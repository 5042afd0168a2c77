"""``gradood evaluate``: how well do scores tell anomalous inputs from normal ones?"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from gradood.cli import options
from gradood.cli.report import check_folder, describe_detector, made_with, say, write
from gradood.cli.worst_case import Moved, WorstCase
from gradood.errors import InputError
from gradood.writing import Output

if TYPE_CHECKING:
    from torch import Tensor

    from gradood.data.files import Source
    from gradood.evaluation import Metrics
    from gradood.evaluation.reports.digest import ScoredSet
    from gradood.evaluation.reports.page import Page
    from gradood.progress import Throughput
    from gradood.scoring.models import LoadedModel
    from gradood.scoring.scores import RowScorer

_SHOWN = ("auroc", "aupr_anomalous", "aupr_normal", "fpr95", "detection_error")


@options.grouped
def evaluate(
    normal: Annotated[
        list[Path], typer.Option(help="Score file, or inputs to score with --detector; repeat.")
    ],
    anomalous: Annotated[
        list[Path], typer.Option(help="The same of one anomalous set; repeat for several sets.")
    ],
    detector: Annotated[
        str | None, typer.Option(help="For inputs: a file of gradood fit, max-softmax or energy.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the metrics.")] = None,
    report: options.Report = None,
    attack: Annotated[
        list[str] | None,
        typer.Option(help="linf:RADIUS or l2:RADIUS: hide anomalous inputs by APGD; repeat."),
    ] = None,
    guarantee: Annotated[
        list[str] | None,
        typer.Option(help="l2:RADIUS: bounds for the smoothed detector that hold for any attack."),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Of the attack.")] = 100,
    restarts: Annotated[int, typer.Option(min=1, help="Of the attack.")] = 5,
    sigma: Annotated[
        float | None, typer.Option(help="Noise of the smoothed detector; the radius if none.")
    ] = None,
    samples: Annotated[int, typer.Option(min=1, help="Of the smoothed detector.")] = 1000,
    units: options.UnitsOption = options.Units.PIXELS,
    *,
    models: options.ScoringModelOptions,
    streams: options.StreamOptions,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Compare scores of normal and anomalous inputs: AUROC, AUPR, FPR at 95 % TPR.

    Of score files that gradood score wrote, or of inputs that are scored now. Skipped inputs are
    left out, and counted. --attack moves the anomalous inputs, which stay in [0, 1]; --guarantee
    bounds the metrics of the smoothed detector, its median score under noise, whatever moves them
    within the radius. Both hold the inputs in memory.
    """
    from gradood.evaluation import evaluate as compare

    with nullcontext() if out is None else Output(out) as output:
        check_folder(report)
        scoring = Scoring(detector, models, streams, report is not None, units)
        worst = WorstCase(attack or (), guarantee or (), steps, restarts, sigma, samples)
        worst.check()
        normals, others = (
            [scoring.scored(path) for path in paths] for paths in (normal, anomalous)
        )
        of_normal = [score for one in normals for score in one.scores]
        found = {one.name: compare(of_normal, one.scores) for one in others}
        content: dict[str, Any] = {
            "skipped": scoring.skipped,
            "sets": {name: metrics.asdict() for name, metrics in found.items()},
        }
        moved = scoring.worst_case(worst, normal, anomalous) if worst else {}
        for name, what in moved.items():
            content["sets"][name] |= what.metrics
        if output is not None:
            output.write(json.dumps(content, indent=1) + "\n")
    rows = _rows(found, moved)
    if report is not None:
        page = _page(scoring, normals, others, found, moved, rows)
        write(page, report, quiet=as_json)
    if as_json:
        typer.echo(json.dumps(content, indent=1))
        return
    Console().print(_table(rows))
    if scoring.skipped:
        say(f"{scoring.skipped:,} inputs were skipped.")
    if out is not None:
        say(f"Metrics: {out.resolve()}")


class Scoring:
    """Scores by path: read from score files, or computed with a detector that is loaded once."""

    def __init__(
        self,
        detector: str | None,
        models: options.ModelOptions,
        streams: options.StreamOptions,
        details: bool,
        units: options.Units = options.Units.PIXELS,
    ) -> None:
        self._units = units
        self.detector, self.models, self._streams = detector, models, streams
        self._details = details
        self._loaded: tuple[LoadedModel, RowScorer] | None = None
        self.skipped = 0
        self.throughput: list[Throughput] = []

    def scored(self, path: Path) -> ScoredSet:
        """Every input in ``path``."""
        import numpy as np

        from gradood.evaluation.reports.digest import Digest, ScoredSet
        from gradood.scoring.rows import COLUMNS, is_score_file, read_rows

        digest, source = Digest(keep=6), None
        if is_score_file(path):
            rows = read_rows(path, COLUMNS) if self._details else read_rows(path)
        else:
            source = self._streams.source([path])
            rows = self._computed(path, source)
        found = [row["score"] for row in digest.read(rows) if row["score"] is not None]
        if not found:
            raise InputError(f"{path} holds no scores")
        self.skipped += digest.skipped
        return ScoredSet(str(path), np.array(found), digest, source)

    def worst_case(
        self, worst: WorstCase, normal: list[Path], anomalous: list[Path]
    ) -> dict[str, Moved]:
        """The metrics of every anomalous set after its inputs have moved."""
        import torch

        from gradood.scoring.units import detector_in_pixels

        loaded, scorer = self._detecting(normal[0])
        detector = scorer.detector
        parts = [self._inputs(path) for path in normal]
        sets = {str(path): self._inputs(path) for path in anomalous}
        if self._units is options.Units.PIXELS:
            detector, pixels = detector_in_pixels(detector, loaded)
            parts = [pixels(part) for part in parts]
            sets = {name: pixels(part) for name, part in sets.items()}
        return worst.of(detector, torch.cat(parts).to(loaded.device), sets)

    def _inputs(self, path: Path) -> Tensor:
        """``[N, …]``: those that can be read and scored."""
        import torch

        from gradood.inputs import require_one_tensor
        from gradood.scoring.rows import is_score_file

        if is_score_file(path):
            raise InputError(f"{path} holds scores; --attack and --guarantee need the inputs")
        loaded, _ = self._detecting(path)
        stream = self._streams.stream(lambda batch: (require_one_tensor(batch),), loaded)
        batches = stream.run(self._streams.source([path]))
        return torch.cat([batch.results[0] for batch in batches if batch.results])

    def _detecting(self, path: Path) -> tuple[LoadedModel, RowScorer]:
        from gradood.scoring.fitting import ready_detector
        from gradood.scoring.scores import RowScorer

        if self.detector is None:
            raise InputError(f"{path} is no score file; give --detector to score its inputs")
        if self._loaded is None:
            loaded = self.models.load()
            detector = ready_detector(self.detector, loaded, False)
            self._loaded = loaded, RowScorer(detector, layers=3 if self._details else 0)
        return self._loaded

    def _computed(self, path: Path, source: Source) -> Iterator[dict[str, Any]]:
        from gradood.progress import Reporter

        loaded, scorer = self._detecting(path)
        with Reporter(f"scoring {path.name}", source.count()) as reporter:
            for batch in self._streams.stream(scorer, loaded).run(source):
                yield from map(json.loads, scorer.lines(batch))
                reporter.advance(len(batch.ids))
            self.throughput.append(reporter.throughput)


def _page(
    scoring: Scoring,
    normal: list[ScoredSet],
    anomalous: list[ScoredSet],
    found: dict[str, Metrics],
    moved: dict[str, Moved],
    rows: list[tuple[str, ...]],
) -> Page:
    from gradood.evaluation.reports.comparison import comparison_page

    inputs = {"Normal": [one.name for one in normal], "Anomalous": [one.name for one in anomalous]}
    known, threshold = describe_detector(scoring.detector) if scoring.throughput else ({}, None)
    per_second = None
    if scoring.throughput:
        runs = scoring.throughput
        per_second = sum(run.inputs for run in runs) / sum(run.seconds for run in runs)
    return comparison_page(
        normal,
        anomalous,
        found,
        rows,
        guarantees={name: what.guarantees for name, what in moved.items()},
        threshold=threshold,
        per_second=per_second,
        made=made_with(inputs, known, scoring.models if known else None),
    )


def _rows(found: dict[str, Metrics], moved: dict[str, Moved]) -> list[tuple[str, ...]]:
    """The table of metrics in %, its head first."""
    rows: list[tuple[str, ...]] = []
    rows.append(("anomalous set, %", "AUROC", "AUPR", "AUPR normal", "FPR95", "error", "inputs"))
    for name, metrics in found.items():
        shares = _shares(metrics.asdict())
        rows.append((name, *shares, f"{metrics.count_anomalous:,}"))
        for kind, bounds in moved[name].metrics.items() if name in moved else ():
            rows.append((f"  {kind}", *_shares(bounds), ""))
    if len(found) > 1:
        every = [metrics.asdict() for metrics in found.values()]
        means = {field: sum(one[field] for one in every) / len(every) for field in _SHOWN}
        rows.append(("mean", *_shares(means), ""))
    return rows


def _shares(metrics: Mapping[str, float]) -> Iterator[str]:
    return (f"{100 * metrics[field]:.1f}" for field in _SHOWN)


def _table(rows: list[tuple[str, ...]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left")
    for row in rows[1:]:
        table.add_row(*map(escape, row), style="bold" if row[0] == "mean" else None)
    return table
