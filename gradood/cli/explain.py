"""``gradood explain``: which layers reacted to an input, beside the most similar normal ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradood.cli import options
from gradood.cli.report import check_folder, describe_detector, made_with, say, write
from gradood.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from gradood.data.files import Source
    from gradood.evaluation.reports.explanation import Known

#: Layers that are printed; the page has more.
_PRINTED = 5


@options.grouped
def explain(
    inputs: options.Inputs,
    normal: Annotated[
        list[Path], typer.Option(help="Normal inputs to compare with, as for gradood fit; repeat.")
    ],
    detector: Annotated[
        str, typer.Option(help="A file that gradood fit wrote, of a detector on gradient norms.")
    ],
    count: Annotated[int, typer.Option(min=1, help="Explain the first inputs.")] = 1,
    most: Annotated[int, typer.Option(min=10, help="Compare with so many normal inputs.")] = 2000,
    report: Annotated[Path, typer.Option(help="Folder for the page.")] = Path("explanation"),
    *,
    models: options.ScoringModelOptions,
    streams: options.StreamOptions,
) -> None:
    """Show which layers reacted to an input, and the ten normal inputs that are nearest to it.

    Near is what the layers react to alike: the distance is Euclidean, between deviations of the log
    gradient norms of all parameters from those of normal inputs, in their standard deviations.

    Exit status: 0, or 2 after an error.
    """
    from gradood.detectors import NormDetector
    from gradood.evaluation.reports.explanation import explanation_page
    from gradood.scoring.fitting import ready_detector

    check_folder(report)
    loaded = models.load()
    fitted = ready_detector(detector, loaded)
    if not isinstance(fitted, NormDetector) or not fitted.knows_deviations:
        raise InputError(
            f"--detector {detector} is {type(fitted).__name__}, which does not know how layers "
            "react to normal inputs; fit one on gradient norms, such as gradient-knn"
        )
    names: tuple[str, ...] = ()

    def compute(batch: Tensor) -> tuple[Tensor, ...]:
        nonlocal names
        norms = fitted.norms(batch)
        names = norms.names
        return fitted.score(norms), fitted.deviations(norms)

    def known(source: Source, number: int) -> Known:
        return _known(streams.stream(compute, loaded), source, number)

    strange = known(streams.source(inputs), count)
    usual = known(streams.source(normal), most)
    described, threshold = describe_detector(detector)
    page = explanation_page(
        strange,
        usual,
        names,
        threshold=threshold,
        made=made_with({"Inputs": inputs, "Normal inputs": normal}, described, models),
    )
    for name, score, row in zip(strange.ids, strange.scores, strange.deviations, strict=True):
        places = abs(row).argsort()[::-1][:_PRINTED]
        said = ", ".join(f"{names[place]} {row[place]:+.1f}σ" for place in places)
        say(f"{name}: score {score:.4g}; {said}")
    write(page, report)


def _known(stream: Any, source: Source, count: int) -> Known:
    """The first ``count`` inputs that can be scored, with what the layers do."""
    import numpy as np

    from gradood.evaluation.reports.explanation import Known

    ids: list[str] = []
    scores, deviations = [], []
    for batch in stream.run(source):
        ids += [n for n, e in zip(batch.ids, batch.errors, strict=True) if e is None]
        if batch.results:
            scores.append(batch.results[0].double().numpy())
            deviations.append(batch.results[1].double().numpy())
        if len(ids) >= count:
            break
    if not ids:
        raise InputError("no input could be scored")
    parts = np.concatenate(scores)[:count], np.concatenate(deviations)[:count]
    return Known(ids[:count], *parts, source)
