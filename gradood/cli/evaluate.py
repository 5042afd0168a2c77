"""``gradood evaluate``: how well do scores tell anomalous inputs from normal ones?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from gradood.cli import options
from gradood.cli.worst_case import WorstCase
from gradood.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

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
    left out, and counted. --attack moves the anomalous inputs, in units of the model's input, which
    must lie in [0, 1]; --guarantee bounds the metrics of the smoothed detector, its median score
    under noise, whatever moves them within the radius. Both hold the inputs in memory.
    """
    # Imported late, so that `gradood --help` does not wait for PyTorch.
    from gradood.evaluation import evaluate as compare

    scoring = Scoring(
        detector,
        options.ModelOptions(model, weights, classes, preprocess, trust, device, dtype),
        options.StreamOptions(column, batch_size, on_error, workers),
    )
    worst = WorstCase(attack or (), guarantee or (), steps, restarts, sigma, samples)
    worst.check()
    of_normal = [score for path in normal for score in scoring.scores(path)]
    found = {str(path): compare(of_normal, scoring.scores(path)) for path in anomalous}
    content: dict[str, Any] = {
        "skipped": scoring.skipped,
        "sets": {name: metrics._asdict() for name, metrics in found.items()},
    }
    moved = scoring.worst_case(worst, normal, anomalous) if worst else {}
    for name, by_kind in moved.items():
        content["sets"][name] |= by_kind
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(content, indent=1))
        return
    console = Console()
    console.print(_table(found, moved))
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

    def worst_case(
        self, worst: WorstCase, normal: list[Path], anomalous: list[Path]
    ) -> dict[str, dict[str, Any]]:
        """Metrics of every anomalous set, by what was done to it."""
        import torch

        loaded, scorer = self._detecting(normal[0])
        inputs = torch.cat([self._inputs(path) for path in normal]).to(loaded.device)
        return {
            str(path): worst.metrics(scorer.detector, inputs, self._inputs(path).to(loaded.device))
            for path in anomalous
        }

    def _inputs(self, path: Path) -> Tensor:
        """``[N, …]``: those that can be read and scored."""
        import torch

        if path.suffix.lower() in (".jsonl", ".json"):
            raise InputError(f"{path} holds scores; --attack and --guarantee need the inputs")
        loaded, _ = self._detecting(path)
        stream = self._streams.stream(lambda batch: (batch,), loaded)
        batches = stream.run(self._streams.source([path]))
        return torch.cat([batch.results[0] for batch in batches if batch.results])

    def _detecting(self, path: Path) -> tuple[LoadedModel, Scorer]:
        from gradood.scoring.fitting import ready_detector
        from gradood.scoring.scores import Scorer

        if self._detector is None:
            raise InputError(f"{path} is no score file; give --detector to score its inputs")
        if self._loaded is None:
            loaded = self._models.load()
            detector = ready_detector(self._detector, loaded, False)
            self._loaded = loaded, Scorer(detector, layers=0)
        return self._loaded

    def _computed(self, path: Path) -> list[float]:
        from gradood.scoring.progress import Reporter

        loaded, scorer = self._detecting(path)
        source = self._streams.source([path])
        found: list[float] = []
        with Reporter(f"scoring {path.name}", source.count()) as reporter:
            for batch in self._streams.stream(scorer, loaded).run(source):
                found += batch.results[0].tolist() if batch.results else []
                self.skipped += sum(error is not None for error in batch.errors)
                reporter.advance(len(batch.ids))
        return found


def _table(found: dict[str, Metrics], moved: dict[str, dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("%, anomalous set")
    for name in ("AUROC", "AUPR", "AUPR normal", "FPR95", "error", "inputs"):
        table.add_column(name, justify="right")
    for name, metrics in found.items():
        shares = (f"{100 * getattr(metrics, field):.1f}" for field in _SHOWN)
        table.add_row(name, *shares, f"{metrics.count_anomalous:,}")
        for kind, bounds in moved.get(name, {}).items():
            table.add_row(f"  {kind}", *(f"{100 * bounds[field]:.1f}" for field in _SHOWN), "")
    if len(found) > 1:
        means = (
            f"{100 * sum(getattr(m, field) for m in found.values()) / len(found):.1f}"
            for field in _SHOWN
        )
        table.add_row("mean", *means, "", style="bold")
    return table
