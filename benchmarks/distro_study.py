"""What DISTRO's table is made of: models, their guarantees and attacks, row by row."""

from __future__ import annotations

import csv
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, repeat
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

import gradood
from benchmarks import distro_tables
from benchmarks.experiments.workers import start
from gradood.attacks import attack_score
from gradood.data import ImageSet
from gradood.distro import (
    guaranteed_confidence,
    joint_confidence,
    smoothing_radius,
)
from gradood.evaluation import evaluate, evaluate_adversarial, evaluate_guaranteed
from gradood.smoothing.bounds import histogram
from gradood.smoothing.settings import Denoiser

log = logging.getLogger("gradood")
CLASSES = 10
RADII = {"linf": 0.01, "l2": 0.25}
ALPHA = 0.01


class Size(NamedTuple):
    """How many pictures, samples and steps; ``certified`` are l2 radii of certified accuracy."""

    normal: int = 100
    anomalous: int = 30
    accuracy: int = 500
    votes: int = 64
    samples: int = 600
    afresh: int = 100
    steps: int = 40
    restarts: int = 5
    noisy_steps: int = 10
    noises: int = 4
    certified: tuple[float, ...] = (0.25,)


class Model(NamedTuple):
    """A row of the table. Its score is one minus the largest joint probability.

    Attributes:
        name: In tables.
        classifier: ``[N, ...] -> logits [N, CLASSES]``.
        discriminator: Of the input itself, or None.
        sigma: Noise before the classifier, 0 for none.
        denoiser: Between noise and classifier, or None.
    """

    name: str
    classifier: nn.Module
    discriminator: nn.Module | None = None
    sigma: float = 0.0
    denoiser: Denoiser | None = None

    @property
    def classified_by(self) -> str:
        """What answers, under its name in the cache: models that differ in d share it."""
        if self.certain:
            return str(id(self.classifier))
        return f"{'noise' if self.denoiser is None else 'denoiser'}-{self.sigma}"

    @property
    def certain(self) -> bool:
        return not self.sigma


class Study(NamedTuple):
    """What one table is made of.

    Attributes:
        stem: Of the files that are written.
        models: The rows.
        normal: Normal pictures, labelled; accuracy is of the first ``size.accuracy``, detection of
            the first ``size.normal`` of them.
        sets: Anomalous pictures by name.
        size: How many of everything.
        introduction: What the page says of data and models.
    """

    stem: str
    models: list[Model]
    normal: ImageSet
    sets: Mapping[str, Tensor]
    size: Size
    introduction: str


class Confidence(NamedTuple):
    """Of the classifier of a model, float64 ``[N]``; bounds of the smoothed one, by norm."""

    value: Tensor
    lower: Tensor
    upper: dict[str, Tensor] | None


def max_softmax(network: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: network(x).double().softmax(1).amax(1)


def smoothed_confidence(
    model: Model, x: Tensor, first: int, state: Path | None, smoothing: gradood.Smoothing
) -> Confidence:
    """Mean under noise, and bounds within each radius; ``first`` numbers the noise of x."""
    radii = [0.0, *(smoothing_radius(x, norm=norm, radius=r) for norm, r in RADII.items())]  # type: ignore[arg-type]
    made = gradood.certify_mean(
        max_softmax(model.classifier), x, smoothing,
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
        self, normal: Tensor, sets: Mapping[str, Tensor], size: Size, folder: Path | None
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
        """Of a smoothed model; a denoiser runs in a precision of its own, and so is certified."""
        return gradood.Smoothing(
            sigma=model.sigma,
            n=n,
            alpha=self.point_alpha,
            seed=seed,
            n0=self.size.votes,
            denoiser=model.denoiser,
            progress=False,
        )

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
                denoiser = model.denoiser
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
def accuracies(table: Table, model: Model, x: Tensor, labels: Tensor) -> dict[str, str]:
    """Clean accuracy, and certified accuracy at l2 radii where there is smoothing."""
    radii, certified = table.size.certified, [0.0] * len(table.size.certified)
    if model.certain:
        predicted = torch.cat([model.classifier(part).argmax(1) for part in x.split(100)])
    else:
        state = table.state("votes", model.classified_by)
        predicted = gradood.certify_class(
            model.classifier, x, table.settings(model, 1), state=state
        ).label
        state, known = table.state("certified", model.classified_by), table.inputs["normal"]
        smoothing = table.settings(model, 2 * table.size.samples)
        made = gradood.certify_class(model.classifier, known, smoothing, radius=radii, state=state)
        right = ~made.abstained & (made.label == labels[: len(known)])
        certified = [(right & (made.radius >= r)).double().mean().item() for r in radii]
    accuracy = (predicted == labels).double().mean().item()
    found = zip(radii, certified, strict=True)
    return {"accuracy": f"{accuracy:.4f}"} | {f"certified {r:g}": f"{c:.4f}" for r, c in found}


def write(rows: list[dict[str, object]], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def rows_of_group(
    study: Study, table: Table, models: Sequence[Model]
) -> list[tuple[Model, list[dict[str, object]], dict[str, object]]]:
    """Models of one classifier and noise, which share accuracies; their rows on sets, on normal."""
    normal, found, known = study.normal, [], None
    assert normal.labels is not None
    for model in models:
        begin = time.process_time()
        rows = [row for name in study.sets for row in rows_of(table, model, name)]
        known = known or accuracies(table, model, normal.images, normal.labels)
        seconds = f"{_spent(table, model, time.process_time() - begin):.0f}"
        found.append((model, rows, {"model": model.name, **known, "seconds": seconds}))
        log.info("%s: %s s of one core", model.name, seconds)
    return found


def _spent(table: Table, model: Model, seconds: float) -> float:
    """These seconds and those of earlier runs, whose samples and attacks are kept."""
    if (path := table.state("seconds", model.name)) is not None:
        seconds += float(path.read_text()) if path.exists() else 0.0
        path.write_text(f"{seconds:.1f}")
    return seconds


def run(study: Study, out: Path, cache: Path | None, workers: int = 1) -> None:
    """Compute the table, models that share noise in one process, and write its page and figure."""
    start()
    if cache is not None:
        cache.mkdir(parents=True, exist_ok=True)
    size = study.size
    study = study._replace(normal=study.normal.select(slice(size.accuracy)))
    table = Table(study.normal.images[: size.normal], study.sets, size, cache)
    groups: dict[str, list[Model]] = {}
    for model in study.models:
        groups.setdefault(model.classified_by, []).append(model)
    rows: dict[str, list[dict[str, object]]] = {}
    on_normal: dict[str, dict[str, object]] = {}
    names = [model.name for model in study.models]
    with ProcessPoolExecutor(workers, get_context("spawn"), start) as pool:
        tried = pool.map(rows_of_group, repeat(study), repeat(table), groups.values())
        for model, of_sets, of_normal in chain.from_iterable(tried):
            rows[model.name], on_normal[model.name] = of_sets, of_normal
            done = [name for name in names if name in rows]
            write([row for name in done for row in rows[name]], out / f"{study.stem}.csv")
            write([on_normal[name] for name in done], out / f"{study.stem}_normal.csv")
    facts = size._asdict() | {"certificates": 2 * size.samples}
    distro_tables.write_page(out, study.stem, study.introduction.format_map(facts), facts)
