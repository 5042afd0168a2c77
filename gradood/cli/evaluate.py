"""``gradood evaluate``: how well do scores tell anomalous inputs from normal ones?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gradood.cli import options
from gradood.errors import InputError

if TYPE_CHECKING:
    from gradood.evaluation import Metrics
    from gradood.scoring.models import LoadedModel
    from gradood.scoring.scores import Scorer

_SHOWN = ("auroc", "aupr_anomalous", "aupr_normal", "fpr95", "detection_error")


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
    model: options.Model = None,
    weights: options.Weights = None,
    classes: options.Classes = None,
    preprocess: options.Preprocess = None,
    trust: options.Trust = False,
    column: options.Column = None,
    batch_size: options.BatchSize = "auto",
    on_error: options.OnErrorOption = options.OnError.FAIL,
    workers: options.Workers = None,
    device: options.Device = "auto",
    dtype: options.DtypeOption = options.Dtype.FLOAT32,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, not a table.")] = False,
) -> None:
    """Compare scores of normal and anomalous inputs: AUROC, AUPR, FPR at 95 % TPR.

    Of score files that gradood score wrote, or of inputs that are scored now. Skipped inputs are
    left out, and counted.
    """
    # Imported late, so that `gradood --help` does not wait for PyTorch.
    from gradood.evaluation import evaluate as compare

    scoring = Scoring(
        detector,
        options.ModelOptions(model, weights, classes, preprocess, trust, device, dtype),
        options.StreamOptions(column, batch_size, on_error, workers),
    )
    of_normal = [score for path in normal for score in scoring.scores(path)]
    found = {str(path): compare(of_normal, scoring.scores(path)) for path in anomalous}
    content = {
        "skipped": scoring.skipped,
        "sets": {name: metrics._asdict() for name, metrics in found.items()},
    }
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(content, indent=1))
        return
    console = Console()
    console.print(_table(found))
    if scoring.skipped:
        console.print(f"{scoring.skipped:,} inputs were skipped.", highlight=False)
    if out is not None:
        console.print(f"Metrics: {out.resolve()}", highlight=False, soft_wrap=True)


class Scoring:
    """Scores by path: read from score files, or computed with a detector that is loaded once."""

    def __init__(
        self,
        detector: str | None,
        models: options.ModelOptions,
        streams: options.StreamOptions,
    ) -> None:
        self._detector, self._models, self._streams = detector, models, streams
        self._loaded: tuple[LoadedModel, Scorer] | None = None
        self.skipped = 0

    def scores(self, path: Path) -> list[float]:
        """Of every input in ``path`` that has one."""
        from gradood.scoring.output import is_parquet, read_rows

        if path.suffix.lower() in (".jsonl", ".json") or (
            is_parquet(path) and self._detector is None
        ):
            rows = [row["score"] for row in read_rows(path)]
            found = [score for score in rows if score is not None]
            self.skipped += len(rows) - len(found)
        else:
            found = self._computed(path)
        if not found:
            raise InputError(f"{path} holds no scores")
        return found

    def _computed(self, path: Path) -> list[float]:
        from gradood.scoring.fitting import ready_detector
        from gradood.scoring.progress import Reporter
        from gradood.scoring.scores import Scorer

        if self._detector is None:
            raise InputError(f"{path} is no score file; give --detector to score its inputs")
        if self._loaded is None:
            loaded = self._models.load()
            detector = ready_detector(self._detector, loaded, False)
            self._loaded = loaded, Scorer(detector, layers=0)
        loaded, scorer = self._loaded
        source = self._streams.source([path])
        found: list[float] = []
        with Reporter(f"scoring {path.name}", source.count()) as reporter:
            for batch in self._streams.stream(scorer, loaded).run(source):
                found += batch.results[0].tolist() if batch.results else []
                self.skipped += sum(error is not None for error in batch.errors)
                reporter.advance(len(batch.ids))
        return found


def _table(found: dict[str, Metrics]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("%, anomalous set")
    for name in ("AUROC", "AUPR", "AUPR normal", "FPR95", "error", "inputs"):
        table.add_column(name, justify="right")
    for name, metrics in found.items():
        shares = (f"{100 * getattr(metrics, field):.1f}" for field in _SHOWN)
        table.add_row(name, *shares, f"{metrics.count_anomalous:,}")
    if len(found) > 1:
        means = (
            f"{100 * sum(getattr(m, field) for m in found.values()) / len(found):.1f}"
            for field in _SHOWN
        )
        table.add_row("mean", *means, "", style="bold")
    return table
