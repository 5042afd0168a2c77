"""``gradood fit``: a detector from normal inputs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradood.cli import options
from gradood.cli.report import say
from gradood.errors import InputError
from gradood.writing import Output

if TYPE_CHECKING:
    from gradood.data.files import Source


@options.grouped
def fit(
    inputs: options.Inputs,
    detector: Annotated[
        str,
        typer.Option(
            help="gradient (or gradient:forward, gradient:adversarial), gradient-knn, "
            "gradient-mahalanobis, gradient-gmm, confounding, energy or max-softmax."
        ),
    ] = "gradient",
    anomalous: Annotated[
        list[Path] | None, typer.Option(help="Anomalous inputs, for confounding; repeat.")
    ] = None,
    calibrate: Annotated[
        list[Path] | None,
        typer.Option(help="Normal inputs that set the threshold; every fifth of INPUTS if none."),
    ] = None,
    fpr: Annotated[float, typer.Option(help="Accepted share of false alarms.")] = 0.05,
    out: Annotated[Path, typer.Option(help="File for the detector.")] = Path(
        "detector.safetensors"
    ),
    *,
    models: options.ScoringModelOptions,
    streams: options.StreamOptions,
    as_json: options.AsJson = False,
) -> None:
    """Learn what is normal for a model, and a threshold with few false alarms.

    Exit status: 0, or 2 after an error.
    """
    from gradood.progress import Reporter
    from gradood.scoring import fitting

    if not 0 < fpr < 1:
        raise InputError(f"--fpr {fpr}: expected a share in (0, 1)")
    with Output(out) as output:
        loaded = models.load()
        made = fitting.make_detector(detector, loaded)
        normal, held_out = _split(streams.source(inputs), calibrate, streams, detector)
        others = streams.source(anomalous) if anomalous else None
        fitting.require_kinds(made, others)
        _check_count(held_out.count(), fpr, calibrate)
        parts = [s.count() for s in (normal, held_out, others) if s is not None]
        total = None if None in parts else sum(count or 0 for count in parts)

        def stream(compute: Any) -> Any:
            return streams.stream(compute, loaded)

        with Reporter("fitting", total, as_json=as_json) as reporter:
            fitted = fitting.fit(made, normal, others, stream, reporter.advance)
            held = fitting.calibrate(made, held_out, fpr, stream, reporter.advance)
            output.write(made.to_bytes())
            facts = {"fitted": fitted, "calibrated": held, "threshold": made.threshold}
            reporter.done(**facts, out=str(out))
    if not as_json:
        say(
            f"{type(made).__name__} fitted on {fitted:,} inputs; threshold {made.threshold:.6g} "
            f"for {fpr:.1%} false alarms, by {held:,} others.\nDetector: {out.absolute()}"
        )


def _check_count(held_out: int | None, fpr: float, calibrate: list[Path] | None) -> None:
    """Say before the work that there are too few inputs for a threshold, where that is known."""
    from gradood.detectors.threshold import fewest_inputs

    needed = fewest_inputs(fpr)
    if held_out is None or held_out >= needed:
        return
    more = f"give --calibrate {needed} inputs" if calibrate else (
        f"every fifth of INPUTS sets it: give {5 * needed - 4} inputs, or {needed} others as "
        "--calibrate"
    )  # fmt: skip
    raise InputError(
        f"{held_out} inputs are too few to set a threshold for --fpr {fpr:g}; {more}, or take a "
        "larger --fpr"
    )


def _split(
    normal: Source, calibrate: list[Path] | None, streams: options.StreamOptions, detector: str
) -> tuple[Source, Source]:
    """Inputs to fit on, and others to calibrate with."""
    from gradood.detectors import needs_fit
    from gradood.scoring.fitting import Fold

    if calibrate:
        return normal, streams.source(calibrate)
    if not needs_fit(detector):
        return normal, normal
    return Fold(normal, 5, held_out=False), Fold(normal, 5, held_out=True)
