"""``gradood certify``: certificates of classes, decisions and scores, and checks of them."""

from __future__ import annotations

import importlib
import time
from collections import Counter
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from gradood.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

    from gradood.smoothing import Evidence, Smoothing
    from gradood.smoothing.settings import Denoiser


class Kind(str, Enum):
    """What is certified."""

    CLASS = "class"
    DECISION = "decision"
    MEAN = "mean"
    QUANTILE = "quantile"


class Score(str, Enum):
    """Which score of the model's, for all kinds but the class."""

    MAX_SOFTMAX = "max-softmax"
    ENERGY = "energy"
    MAHALANOBIS = "gradient-mahalanobis"
    KNN = "gradient-knn"


def certify(
    kind: Annotated[Kind, typer.Option(help="What to certify.")] = Kind.CLASS,
    score: Annotated[Score, typer.Option(help="For all kinds but the class.")] = Score.MAX_SOFTMAX,
    model: Annotated[
        str | None,
        typer.Option(help="module:name of a torch.nn.Module, or of a function that returns one."),
    ] = None,
    inputs: Annotated[
        Path | None, typer.Option(help=".npy file [N, …] of float inputs; embedded ones if none.")
    ] = None,
    fit_inputs: Annotated[
        Path | None, typer.Option(help=".npy file of normal inputs that fit the detector.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Use the first inputs.")] = 20,
    sigma: Annotated[float, typer.Option(help="Of the noise, in units of the input.")] = 0.02,
    radius: Annotated[
        list[float] | None, typer.Option(help="l2; repeat for several with mean and quantile.")
    ] = None,
    n: Annotated[int, typer.Option(help="Most samples an input.")] = 10_000,
    alpha: Annotated[float, typer.Option(help="Probability of a false certificate.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the noise.")] = 0,
    denoiser: Annotated[
        str | None,
        typer.Option(help='"embedded", a folder that diffusers saved, or module:name.'),
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="For decisions.")] = None,
    q: Annotated[float, typer.Option(help="Which quantile.")] = 0.5,
    out: Annotated[Path, typer.Option(help="JSON lines.")] = Path("certificates.jsonl"),
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
    # Imported late, so that `gradood --help` does not wait for PyTorch.
    from gradood.smoothing import Smoothing

    if verify is not None:
        source = (score, model, inputs, fit_inputs, denoiser) if again else None
        _verify(verify, source)
        return
    settings = Smoothing(sigma=sigma, n=n, alpha=alpha, seed=seed, denoiser=_denoiser(denoiser))
    x = _inputs(inputs, count)
    certified = _certified(kind, score, model, fit_inputs)
    begin = time.perf_counter()
    target = _target(kind, radius, threshold, q)
    made = _certify(kind, certified, x, settings, {**target, "state": state})
    made.write(out)
    seconds = time.perf_counter() - begin
    console = Console()
    console.print(_table(made))
    samples = int(made.samples.sum())
    console.print(
        f"{len(x)} certificates in {seconds:.1f} s, {samples:,} samples in all.", highlight=False
    )
    console.print(f"Certificates: {out.resolve()}", highlight=False, soft_wrap=True)


def _verify(path: Path, source: tuple[Any, ...] | None) -> None:
    from gradood.smoothing import Smoothing, read_records, verify, verify_with_model

    records = read_records(path)
    if source is None:
        problems = [verify(record) for record in records]
    else:
        score, model, inputs, fit_inputs, denoiser = source
        kind = Kind(records[0]["kind"]) if records else Kind.CLASS
        x = _inputs(inputs, len(records))
        settings = None
        if records and denoiser is not None:
            recorded = {**records[0]["settings"], "tile": records[0]["tile"]}
            settings = Smoothing(**recorded | {"denoiser": _denoiser(denoiser)})
        certified = _certified(kind, score, model, fit_inputs)
        problems = verify_with_model(records, certified, x, settings)
    console = Console()
    for record, problem in zip(records, problems, strict=True):
        if problem is not None:
            console.print(f"id {record.get('id')}: {problem}", style="red", markup=False)
    wrong = sum(problem is not None for problem in problems)
    console.print(f"{len(records) - wrong} of {len(records)} certificates are right.")
    if wrong:
        raise typer.Exit(1)


def _inputs(path: Path | None, count: int) -> Tensor:
    import numpy as np
    import torch

    from gradood.data import embedded_images

    if path is None:
        return embedded_images("fashion-mnist")[:count]
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read inputs from {path}: {error}") from error
    return torch.from_numpy(array)[:count]


def _model(name: str | None) -> Any:
    from torch import nn

    from gradood.data import embedded_classifier

    if name is None:
        return embedded_classifier()
    found = _found("--model", name)
    found = found if isinstance(found, nn.Module) else found()
    if not isinstance(found, nn.Module):
        raise InputError(f"--model {name} gives {type(found).__name__}, expected torch.nn.Module")
    return found


def _found(option: str, name: str) -> Any:
    """What ``module:name`` is."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"{option} {name}: {error}; expected module:name") from error


def _denoiser(name: str | None) -> Denoiser | None:
    """The embedded one, one of diffusers, or ``module:name`` of ``(noisy, sigma) -> clean``."""
    from gradood.data import embedded_denoiser
    from gradood.data.denoiser import EXTRA
    from gradood.data.optional import require
    from gradood.smoothing import from_diffusers

    if name is None:
        return None
    if name == "embedded":
        return embedded_denoiser()
    if Path(name).is_dir():
        diffusers = require("diffusers", EXTRA)
        try:
            unet = diffusers.UNet2DModel.from_pretrained(name, subfolder="unet")
            scheduler = diffusers.DDPMScheduler.from_pretrained(name, subfolder="scheduler")
        except (OSError, ValueError) as error:
            raise InputError(
                f"--denoiser {name} holds no diffusers pipeline of an unconditional UNet2DModel "
                f"with its scheduler ({error})"
            ) from error
        return from_diffusers(unet.eval().requires_grad_(False), scheduler)
    found = _found("--denoiser", name)
    if not callable(found):
        raise InputError(f"--denoiser {name} is {type(found).__name__}, expected a function")
    denoiser: Denoiser = found
    return denoiser


def _certified(kind: Kind, score: Score, name: str | None, fit_inputs: Path | None) -> Any:
    """The model, or the fitted score on it."""
    import gradood

    model = _model(name)
    if kind is Kind.CLASS:
        return model
    if score is Score.MAX_SOFTMAX:
        return gradood.MaxSoftmax(model)
    if score is Score.ENERGY:
        return gradood.Energy(model)
    detector = gradood.GradientMahalanobis if score is Score.MAHALANOBIS else gradood.GradientKNN
    return detector(model).fit(_normal(name, fit_inputs)[:1000])


def _normal(name: str | None, path: Path | None) -> Tensor:
    from gradood.data import embedded_images

    if path is not None:
        return _inputs(path, 2**62)
    if name is not None:
        raise InputError("a detector on your model needs --fit-inputs, a .npy file of normal ones")
    return embedded_images("fashion-mnist-train")


def _target(
    kind: Kind,
    radius: list[float] | None,
    threshold: float | None,
    q: float,
) -> dict[str, Any]:
    """Keyword arguments of the ``certify`` function of this kind."""
    if kind in (Kind.MEAN, Kind.QUANTILE):
        return {"radius": radius or [0.0]} | ({"q": q} if kind is Kind.QUANTILE else {})
    if radius is not None and len(radius) > 1:
        raise InputError("--radius can be given once for classes and decisions")
    one = {"radius": radius[0] if radius else None}
    if kind is Kind.CLASS:
        return one
    if threshold is None:
        raise InputError(
            "decisions need --threshold; a sound one comes from the upper bounds that "
            "--kind quantile gives for normal inputs"
        )
    return one | {"threshold": threshold, "q": q}


def _certify(
    kind: Kind, certified: Any, x: Tensor, settings: Smoothing, target: dict[str, Any]
) -> Evidence:
    from gradood import smoothing

    functions = {
        Kind.CLASS: smoothing.certify_class,
        Kind.DECISION: smoothing.certify_decision,
        Kind.MEAN: smoothing.certify_mean,
        Kind.QUANTILE: smoothing.certify_quantile,
    }
    evidence: Evidence = functions[kind](certified, x, settings, **target).evidence  # type: ignore[operator]
    return evidence


def _table(made: Evidence) -> Table:
    """What was certified, counted over the inputs."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1))
    results = made.results
    if made.common["kind"] in ("mean", "quantile"):
        for name in ("radius", "median lower bound", "median upper bound"):
            table.add_column(name, justify="right")
        for i, radius in enumerate(made.common["target"]["radius"]):
            bounds = (sorted(r[side][i] for r in results) for side in ("lower", "upper"))
            table.add_row(f"{radius:g}", *(f"{b[len(b) // 2]:.4g}" for b in bounds))
        return table
    for name in ("answer", "inputs", "median radius"):
        table.add_column(name, justify="right")
    answers = Counter(map(_answer, results))
    for answer, number in sorted(answers.items()):
        radii = sorted(r["radius"] for r in results if _answer(r) == answer)
        table.add_row(answer, str(number), f"{radii[len(radii) // 2]:.4g}")
    return table


def _answer(result: dict[str, Any]) -> str:
    if "decision" in result:
        return {1: "anomalous", -1: "normal", 0: "abstain"}[result["decision"]]
    return "abstain" if result["abstained"] else f"class {result['label']}"
