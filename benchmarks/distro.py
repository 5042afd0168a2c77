"""The whole table of DISTRO: clean, guaranteed and adversarial detection of seven models.

    OMP_NUM_THREADS=1 python benchmarks/distro.py [--out benchmarks/results] [--cache DIR]

Writes ``distro.csv`` (a row for each model, anomalous set, norm and kind of evaluation),
``distro_normal.csv`` (accuracies), ``distro.md`` and ``distro.png``. With ``--cache``, samples and
attacks that are there already are not drawn again. The row "outlier-exposed" needs
``benchmarks/checkpoints/exposed.safetensors`` of ``train_discriminator.py --exposed --steps 300``.
"""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Annotated, NamedTuple

import distro_tables
import numpy as np
import torch
import typer
from torch import Tensor, nn

import gradood
from benchmarks.datasets import evaluation_suite
from gradood.attacks import attack_score
from gradood.data import embedded_classifier, load_classifier
from gradood.distro import (
    embedded_discriminator,
    guaranteed_confidence,
    joint_confidence,
    smoothing_radius,
)
from gradood.evaluation import evaluate, evaluate_adversarial, evaluate_guaranteed
from gradood.smoothing import embedded_denoiser
from gradood.smoothing.bounds import histogram

log = logging.getLogger("gradood")
CLASSES, SIGMA, SLIGHT = 10, 0.25, 0.02
RADII = {"linf": 0.01, "l2": 0.25}
ALPHA = 0.01
EXPOSED = Path(__file__).parent / "checkpoints" / "exposed.safetensors"


class Size(NamedTuple):
    """How many pictures, samples and steps."""

    normal: int = 100
    anomalous: int = 30
    accuracy: int = 500
    samples: int = 600
    afresh: int = 100
    steps: int = 40
    restarts: int = 5
    noisy_steps: int = 10
    noises: int = 4


class Model(NamedTuple):
    """A row of the table. Its score is one minus the largest joint probability."""

    name: str
    classifier: nn.Module
    smoothing: str | None = None
    discriminator: nn.Module | None = None
    sigma: float = SIGMA

    @property
    def classified_by(self) -> str:
        """What answers, under its name in the cache: models that differ in d share it."""
        return str(id(self.classifier)) if self.certain else f"{self.smoothing}-{self.sigma}"

    @property
    def certain(self) -> bool:
        return self.smoothing is None


class Confidence(NamedTuple):
    """Of the classifier of a model, float64 ``[N]``; bounds of the smoothed one, by norm."""

    value: Tensor
    lower: Tensor
    upper: dict[str, Tensor] | None


def models() -> list[Model]:
    plain, d = embedded_classifier().requires_grad_(False), embedded_discriminator()
    rows = [
        Model("plain", plain),
        Model("discriminator", plain, None, d),
        Model("smoothed", plain, "noise"),
        Model("denoised", plain, "denoiser"),
        Model("joint", plain, "denoiser", d),
        Model("joint, slight noise", plain, "denoiser", d, SLIGHT),
    ]
    if EXPOSED.exists():  # made by train_discriminator.py --exposed
        rows.insert(1, Model("outlier-exposed", load_classifier(EXPOSED).requires_grad_(False)))
    return rows


@cache
def settings(kind: str, sigma: float, n: int, seed: int, alpha: float) -> gradood.Smoothing:
    """The denoiser runs in bfloat16, and its certificates are about that."""
    denoiser = embedded_denoiser().bfloat16() if kind == "denoiser" else None
    return gradood.Smoothing(
        sigma=sigma, n=n, alpha=alpha, seed=seed, denoiser=denoiser, progress=False
    )


def max_softmax(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: network(x).double().softmax(1).amax(1)


def smoothed_confidence(
    model: Model, x: Tensor, first: int, state: Path | None, smoothing: gradood.Smoothing
) -> Confidence:
    """Mean under noise, and bounds within each radius; ``first`` numbers the noise of x."""
    radii = [0.0, *(smoothing_radius(x, norm=norm, radius=r) for norm, r in RADII.items())]  # type: ignore[arg-type]
    made = gradood.certify_mean(
        max_softmax(model.classifier), x, settings=smoothing,
        radius=radii, ids=range(first, first + len(x)), state=state,
    )  # fmt: skip
    means = [histogram.rounded_up(r["counts"], r["edges"]).mean for r in made.evidence.rows]
    upper = dict(zip(RADII, made.upper[:, 1:].T, strict=True))
    return Confidence(torch.tensor(means, dtype=torch.float64), made.lower[:, 0], upper)


class Table:
    """Everything that is computed once and shared by rows.

    Args:
        normal: Normal pictures.
        sets: Anomalous ones by name.
        size: Numbers of samples and steps.
        folder: Where samples and attacks are kept, or None.
    """

    def __init__(
        self, normal: Tensor, sets: dict[str, Tensor], size: Size, folder: Path | None
    ) -> None:
        self.size = size
        self.point_alpha = ALPHA / (size.normal + size.anomalous)
        self.inputs = {"normal": normal, **sets}
        self.first = dict(zip(self.inputs, range(0, 10**6, 1000), strict=False))
        self.folder = folder
        self._known: dict[tuple[str, str], Confidence] = {}

    def state(self, *parts: str) -> Path | None:
        return None if self.folder is None else self.folder / "-".join(parts)

    def settings(self, model: Model, n: int, seed: int = 0) -> gradood.Smoothing:
        assert model.smoothing is not None
        return settings(model.smoothing, model.sigma, n, seed, self.point_alpha)

    @torch.no_grad()
    def confidence(self, model: Model, name: str) -> Confidence:
        """Of the classifier alone, without attack."""
        key = (model.classified_by, name)
        if key not in self._known:
            x = self.inputs[name]
            if model.certain:
                value = max_softmax(model.classifier)(x)
                self._known[key] = Confidence(value, value, None)
            else:
                state = self.state("mean", model.classified_by, name)
                smoothing = self.settings(model, self.size.samples)
                self._known[key] = smoothed_confidence(model, x, self.first[name], state, smoothing)
        return self._known[key]

    def attacked(self, model: Model, name: str, norm: str) -> Tensor:
        """Joint confidence ``[N]`` at the points that look most normal."""
        x, size = self.inputs[name], self.size
        points = attack_score(
            self.differentiable_confidence(model, x),
            x,
            epsilon=RADII[norm],
            norm=norm,  # type: ignore[arg-type]
            direction="up",
            steps=size.steps if model.certain else size.noisy_steps,
            restarts=size.restarts if model.certain else 1,
            state=self.state("attack", model.name, name, norm),
            progress=False,
        ).images
        if model.certain:
            with torch.no_grad():
                return joint(model, points, max_softmax(model.classifier)(points))
        # Afresh: the noise that the attack climbed is not the noise that judges it.
        state = self.state("afresh", model.name, name, norm)
        smoothing = self.settings(model, size.afresh, seed=1)
        found = smoothed_confidence(model, points, self.first[name], state, smoothing)
        return joint(model, points, found.value)

    def differentiable_confidence(self, model: Model, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Joint confidence with a derivative; under noise, the mean over a few fixed draws."""
        confidence, noises = max_softmax(model.classifier), self.size.noises
        generator = torch.Generator().manual_seed(7)
        draws = model.sigma * torch.randn(noises, *x.shape[1:], generator=generator)

        def score(points: Tensor) -> Tensor:
            if model.certain:
                value = confidence(points)
            else:
                noisy = (points[:, None] + draws).flatten(0, 1)
                denoiser = self.settings(model, 1).denoiser
                seen = noisy if denoiser is None else denoiser(noisy, model.sigma)
                value = confidence(seen).view(-1, noises).mean(1)
            if model.discriminator is None:
                return value
            return joint_confidence(value, model.discriminator(points), CLASSES)

        return score


@torch.no_grad()
def joint(model: Model, x: Tensor, confidence: Tensor) -> Tensor:
    """Joint confidence ``[N]`` of a classifier's; without a discriminator the classifier's."""
    if model.discriminator is None:
        return confidence
    return joint_confidence(confidence, model.discriminator(x), CLASSES)


def rows_of(table: Table, model: Model, name: str) -> list[dict[str, object]]:
    """Clean, guaranteed and adversarial metrics of one model on one set, in both norms."""
    normal, anomalous = (table.confidence(model, which) for which in ("normal", name))
    x = table.inputs[name]
    known = table.inputs["normal"]
    score_normal = 1 - joint(model, known, normal.value).numpy()
    score_anomalous = 1 - joint(model, x, anomalous.value).numpy()
    worst_normal = 1 - joint(model, known, normal.lower).numpy()
    clean = evaluate(score_normal, score_anomalous)
    rows: list[dict[str, object]] = []
    for norm, radius in RADII.items():
        smoothed = None if anomalous.upper is None else anomalous.upper[norm]
        upper = guaranteed_confidence(
            x,
            discriminator=model.discriminator,
            classes=CLASSES,
            norm=norm,
            radius=radius,
            smoothed=smoothed,  # type: ignore[arg-type]
        ).upper.numpy()
        made = evaluate_guaranteed(
            worst_normal, 1 - upper, radius,
            point_alpha=table.point_alpha, alpha=ALPHA,
        )  # fmt: skip
        attacked = 1 - table.attacked(model, name, norm).numpy()
        found = evaluate_adversarial(score_normal, score_anomalous, radius, {"apgd": attacked})
        kinds = {
            "clean": clean,
            "guaranteed": made.clean_normals,
            "adversarial": found.clean_normals,
        }
        for kind, metrics in kinds.items():
            row = {"model": model.name, "set": name, "norm": norm, "radius": radius, "kind": kind}
            rows.append(row | {key: shown(metrics, key) for key in distro_tables.METRICS})
    return rows


def shown(metrics: object, key: str) -> str:
    return f"{np.asarray(getattr(metrics, key)).item():.4f}"


@torch.no_grad()
def accuracies(table: Table, model: Model, x: Tensor, labels: Tensor) -> dict[str, object]:
    """Clean accuracy, and certified accuracy at the l2 radius where there is smoothing."""
    certified = 0.0
    if model.certain:
        predicted = model.classifier(x).argmax(1)
    else:
        state = table.state("votes", model.classified_by)
        predicted = gradood.certify_class(
            model.classifier, x, settings=table.settings(model, 1), state=state
        ).label
        state, known = table.state("certified", model.classified_by), table.inputs["normal"]
        smoothing = table.settings(model, 2 * table.size.samples)
        made = gradood.certify_class(
            model.classifier, known, settings=smoothing, radius=RADII["l2"], state=state
        )
        right = ~made.abstained & (made.label == labels[: len(known)])
        certified = right.double().mean().item()
    accuracy = (predicted == labels).double().mean().item()
    return {
        "model": model.name,
        "accuracy": f"{accuracy:.4f}",
        "certified_accuracy": f"{certified:.4f}",
    }


def write(rows: list[dict[str, object]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main(
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("benchmarks/results"),
    cache: Annotated[Path | None, typer.Option(help="Keeps samples and attacks.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the Fashion-MNIST files.")] = None,
) -> None:
    """Compute the table, and write it with its page and figure."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    size = Size()
    suite = evaluation_suite(root)
    normal = suite.normal_scored.select(slice(size.accuracy))
    assert normal.labels is not None
    sets = {
        name: one.sample(size.anomalous).images
        for name, one in sorted(suite.anomalous_scored.items())
    }
    table = Table(normal.images[: size.normal], sets, size, cache)
    rows: list[dict[str, object]] = []
    known: dict[str, dict[str, object]] = {}
    on_normal = []
    for model in models():
        begin = time.monotonic()
        for name in sets:
            rows += rows_of(table, model, name)
        # A discriminator changes no answer: its row has its classifier's accuracies.
        if model.classified_by not in known:
            known[model.classified_by] = accuracies(table, model, normal.images, normal.labels)
        on_normal.append(known[model.classified_by] | {"model": model.name})
        log.info("%s: %.0f s", model.name, time.monotonic() - begin)
    write(rows, out / "distro.csv")
    write(on_normal, out / "distro_normal.csv")
    distro_tables.write_page(out, size._asdict() | {"sigma": SIGMA, "slight": SLIGHT})


if __name__ == "__main__":
    typer.run(main)
