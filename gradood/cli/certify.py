"""``gradood certify``: certificates of classes, decisions and scores, and checks of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gradood.cli import options
from gradood.cli.report import check_folder, describe_detector, made_with, say, write
from gradood.errors import InputError
from gradood.writing import Output

if TYPE_CHECKING:
    from torch import Tensor

    from gradood.evaluation.reports.page import Page
    from gradood.scoring.models import LoadedModel
    from gradood.smoothing import Evidence
    from gradood.smoothing.settings import Denoiser


#: Normal inputs that a detector given by name is fitted on.
_FIT = 1000


class Kind(str, Enum):
    """What is certified."""

    CLASS = "class"
    DECISION = "decision"
    MEAN = "mean"
    QUANTILE = "quantile"
    SPREAD = "spread"


@options.grouped
def certify(
    inputs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Files or folders as for gradood score; embedded pictures if none.",
            show_default=False,
        ),
    ] = None,
    kind: Annotated[Kind, typer.Option(help="What to certify.")] = Kind.CLASS,
    score: Annotated[
        str,
        typer.Option(
            help="For all kinds but the class: a file of gradood fit, or the name of a detector."
        ),
    ] = "max-softmax",
    *,
    models: options.ModelOptions,
    inputs_too: Annotated[
        list[Path] | None, typer.Option("--inputs", help="The same, as an option.", hidden=True)
    ] = None,
    fit_inputs: Annotated[
        list[Path] | None, typer.Option(help="Normal inputs that fit a detector given by name.")
    ] = None,
    column: options.Column = None,
    count: Annotated[int, typer.Option(min=1, help="Use the first inputs.")] = 20,
    sigma: Annotated[float, typer.Option(help="Of the noise, in pixels from 0 to 1.")] = 0.02,
    units: options.UnitsOption = options.Units.PIXELS,
    radius: Annotated[
        list[float] | None,
        typer.Option(
            help="l2; repeat for several, which share their samples: bounds at each, or the "
            "largest that is certified."
        ),
    ] = None,
    n: Annotated[int, typer.Option(help="Most samples an input.")] = 10_000,
    alpha: Annotated[float, typer.Option(help="Probability of a false certificate.")] = 1e-3,
    seed: Annotated[
        int | None, typer.Option(help="Of the noise, to repeat a run; else a fresh one.")
    ] = None,
    denoiser: Annotated[
        str | None,
        typer.Option(
            help="Applied to every noisy input: embedded, a folder of a diffusers pipeline, or "
            "package.module:function."
        ),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="For decisions.")] = None,
    q: Annotated[float, typer.Option(help="Which quantile.")] = 0.5,
    out: Annotated[Path, typer.Option(help="JSON lines.")] = Path("certificates.jsonl"),
    report: options.Report = None,
    state: Annotated[Path | None, typer.Option(help="Keeps samples over interruptions.")] = None,
    verify: Annotated[
        Path | None, typer.Option(help="Check the certificates of this file instead.")
    ] = None,
    again: Annotated[
        bool, typer.Option(help="With --verify: also draw all samples again with the model.")
    ] = False,
) -> None:
    """Certify a model's answers against every l2 perturbation within a radius.

    By default on the embedded network and pictures. Certificates are about the smoothed model, and
    are written with everything that is needed to check them again.
    """
    from gradood.scoring.denoisers import load_denoiser
    from gradood.smoothing import Smoothing
    from gradood.smoothing.verification import CERTIFY

    paths = [*(inputs or ()), *(inputs_too or ())] or None
    source = _Subject(score, models, column, paths, fit_inputs, units)
    if verify is not None:
        needed = (source, load_denoiser(denoiser, models.device)) if again else (None, None)
        _verify(verify, *needed)
        return
    with Output(out) as output:
        check_folder(report)
        settings = Smoothing(
            sigma=sigma,
            n=n,
            alpha=alpha,
            seed=seed,
            denoiser=load_denoiser(denoiser, models.device),
        )
        certified, x = source.certified(kind), source.inputs(count)
        begin = time.perf_counter()
        target = _target(kind, radius, threshold, q)
        certificates = CERTIFY[kind.value](certified, x, settings, state=state, **target)
        made = _labelled(certificates.evidence, source.names, units)
        output.write(made.lines())
    seconds = time.perf_counter() - begin
    Console().print(_table(made))
    say(
        f"{len(x)} certificates in {seconds:.1f} s, {int(made.samples.sum()):,} samples in all.\n"
        f"sigma and radius in {units.words}.\nCertificates: {out.resolve()}"
    )
    if report is not None:
        write(_page(made, x, seconds, source, out), report)


def _labelled(made: Evidence, names: Sequence[str], units: options.Units) -> Evidence:
    """With the file of every input, and the unit, in its record."""
    rows = tuple({**row, "file": name} for row, name in zip(made.rows, names, strict=True))
    return replace(made, common={**made.common, "units": units.value}, rows=rows)


def _page(made: Evidence, x: Tensor, seconds: float, source: _Subject, out: Path) -> Page:
    from gradood.evaluation.reports.certificates import certificate_page

    known = {} if made.common["kind"] == "class" else source.described()
    inputs: dict[str, Sequence[str | Path]] = {
        "Inputs": source.paths or ("embedded fashion-mnist pictures",),
        "Certificates": (out,),
        "Units": (source.units.words,),
    }
    facts = made_with(inputs, known, source.model)
    return certificate_page(made, x, seconds=seconds, facts_made=facts)


def _verify(path: Path, source: _Subject | None, denoiser: Denoiser | None) -> None:
    from gradood.smoothing import Smoothing, read_records, verify, verify_with_model

    records = read_records(path)
    if source is None:
        problems = [verify(record) for record in records]
    else:
        kind = Kind(records[0]["kind"]) if records else Kind.CLASS
        source.units = options.Units(records[0].get("units", "input") if records else "pixels")
        certified, x = source.certified(kind), source.inputs(len(records))
        settings = None
        if records and denoiser is not None:
            recorded = {**records[0]["settings"], "tile": records[0]["tile"]}
            settings = Smoothing(**recorded | {"denoiser": denoiser})
        problems = verify_with_model(records, certified, x, settings=settings)
        labels = zip(problems, records, source.names, strict=True)
        problems = [old or source.mislabelled(record, name) for old, record, name in labels]
    for record, problem in zip(records, problems, strict=True):
        if problem is not None:
            say(f"id {record.get('id')}: {problem}", style="red")
    wrong = sum(problem is not None for problem in problems)
    say(f"{len(records) - wrong} of {len(records)} certificates are right.")
    if wrong:
        raise typer.Exit(1)


@dataclass
class _Subject:
    """What is certified, and for which inputs."""

    score: str
    model: options.ModelOptions
    column: list[str] | None
    paths: list[Path] | None
    fit_paths: list[Path] | None
    units: options.Units = options.Units.PIXELS
    names: Sequence[str] = ()

    def certified(self, kind: Kind) -> Any:
        """The model, or the fitted score on it."""
        from gradood.detectors import DETECTORS
        from gradood.scoring.fitting import ready_detector

        loaded, _ = self._loaded
        if kind is Kind.CLASS:
            return loaded.model
        if not self._is_fitted_now():
            return ready_detector(self.score, loaded, False)
        if self.score == "confounding":
            raise InputError(
                "--score confounding: fit it on both kinds, and give gradood fit's file"
            )
        detector: Any = DETECTORS.named[self.score](loaded.model)
        return detector.fit(self._normal()[:_FIT])

    def described(self) -> dict[str, Any]:
        """The score, for a report."""
        if not self._is_fitted_now():
            return describe_detector(self.score)[0]
        paths = ", ".join(map(str, self.fit_paths or ("embedded fashion-mnist-train pictures",)))
        return {"Detector": f"{self.score}, fitted on the first {_FIT:,} inputs of {paths}"}

    def _is_fitted_now(self) -> bool:
        from gradood.detectors import DETECTORS, needs_fit

        return self.score in DETECTORS.named and needs_fit(self.score)

    def inputs(self, count: int) -> Tensor:
        """The first ``count`` inputs."""
        if self.paths is None:
            from gradood.data import embedded_images

            x = embedded_images("fashion-mnist")[:count]
            self.names = [f"fashion-mnist/{row}" for row in range(len(x))]
            return x
        self.names, x = self._read(self.paths, count)
        return x

    def mislabelled(self, record: dict[str, Any], name: str) -> str | None:
        """What is wrong with what the command wrote into a record for its reader."""
        for label, found in (("file", name), ("units", self.units.value)):
            if record.get(label, found) != found:
                return f"its {label} is {record[label]}, drawn again it is {found}"
        return None

    def _normal(self) -> Tensor:
        if self.fit_paths is not None:
            return self._read(self.fit_paths, _FIT)[1]
        if self.model.model is not None:
            raise InputError("a detector on your model needs --fit-inputs, files of normal ones")
        from gradood.data import embedded_images

        return embedded_images("fashion-mnist-train")

    def _read(self, paths: list[Path], count: int) -> tuple[list[str], Tensor]:
        from gradood.data.files import named_inputs, open_source

        loaded, pixels = self._loaded
        source = open_source(paths, column=self.column)
        names, x = named_inputs(source, loaded.transform, count)
        return names, pixels(x).to(loaded.device, loaded.dtype)

    @cached_property
    def _loaded(self) -> tuple[LoadedModel, Callable[[Tensor], Tensor]]:
        """The model, of pixels if these are the units, and what makes pixels of its inputs."""
        from gradood.scoring.units import in_pixels

        loaded = self.model.load()
        return in_pixels(loaded) if self.units is options.Units.PIXELS else (loaded, lambda x: x)


def _target(
    kind: Kind, radius: list[float] | None, threshold: float | None, q: float
) -> dict[str, Any]:
    """Keyword arguments of the ``certify`` function of this kind."""
    if kind in (Kind.MEAN, Kind.QUANTILE, Kind.SPREAD):
        return {"radius": radius or [0.0]} | ({"q": q} if kind is Kind.QUANTILE else {})
    one: dict[str, Any] = {"radius": radius[0] if radius and len(radius) == 1 else radius or None}
    if kind is Kind.CLASS:
        return one
    if threshold is None:
        raise InputError(
            "decisions need --threshold; a sound one comes from the upper bounds that "
            "--kind quantile gives for normal inputs"
        )
    return one | {"threshold": threshold, "q": q}


def _table(made: Evidence) -> Table:
    """What was certified, counted over the inputs."""
    from gradood.smoothing.evidence import answer

    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    results = made.results
    if made.common["kind"] in ("mean", "quantile", "spread"):
        for name in ("radius", "median lower bound", "median upper bound"):
            table.add_column(name, justify="right")
        for i, radius in enumerate(made.common["target"]["radius"]):
            bounds = (sorted(r[side][i] for r in results) for side in ("lower", "upper"))
            table.add_row(f"{radius:g}", *(f"{b[len(b) // 2]:.4g}" for b in bounds))
        return table
    for name in ("answer", "inputs", "median radius"):
        table.add_column(name, justify="right")
    answers = Counter(map(answer, results))
    for said, number in sorted(answers.items()):
        radii = sorted(r["radius"] for r in results if answer(r) == said)
        table.add_row(said, str(number), f"{radii[len(radii) // 2]:.4g}")
    return table
