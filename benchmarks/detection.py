"""Score ten anomalous sets against Fashion-MNIST with every detector, and write the tables.

    OMP_NUM_THREADS=1 python benchmarks/detection.py [--seeds 3] [--cache DIR] [--root DIR]

Writes ``benchmarks/results/detection.csv`` (one row for each seed, detector and set) and
``detection.md``. ``--small`` uses the pictures inside the package instead, and only prints.

The classifier is the committed one. Detectors that need no anomalies fit on 5000 training pictures;
the paper's detector trains on ``test[:5000]`` as normal data and on the known halves of anomalous
sets; all are scored on ``test[5000:]`` against the other halves, which nothing else reads. A seed
draws the training pictures, the anomalous sets and their halves, and initialises the detectors.
"""

from __future__ import annotations

import csv
import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Annotated, NamedTuple

import detection_tables
import torch
import typer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import gradood
from gradood.data import (
    EMBEDDED,
    ImageSet,
    Suite,
    embedded_classifier,
    embedded_set,
    evaluation_suite,
    gaussian_noise,
    halve_by_group,
    inverted,
    pixel_shuffled,
    rotated,
    uniform_noise,
)
from gradood.detectors import (
    ConfoundingDetector,
    Detector,
    Energy,
    GradientGMM,
    GradientKNN,
    GradientMahalanobis,
    MaxSoftmax,
)
from gradood.evaluation import Metrics, evaluate
from gradood.gradients import GradientNorms, gradient_norms

log = logging.getLogger("gradood")

RESULTS = Path(__file__).parent / "results"
BATCH = 128
TIMED_IMAGES, TIMED_ROUNDS = 1024, 3

#: Confounding label and loss of each set of gradient norms.
LABELS = {"all-hot": ("all_hot", "bce"), "CE-uniform": ("uniform", "ce")}
#: What a gradient detector reads: one norm for each parameter and each of these.
FEATURES = {"all-hot": ("all-hot",), "CE-uniform": ("CE-uniform",), "both": tuple(LABELS)}
#: For detectors that read logits only.
NO_FEATURES = "none"

NOISE = ("uniform-noise", "gaussian-noise")
#: Protocol of the paper's detector -> the sets whose known halves it trains on, given the set that
#: is scored and all sets.
PROTOCOLS: dict[str, Callable[[str, tuple[str, ...]], tuple[str, ...]]] = {
    "paper's, same set": lambda scored, every: (scored,),
    "paper's, set left out": lambda scored, every: tuple(n for n in every if n != scored),
    "paper's, noise only": lambda scored, every: NOISE,
}

#: Norms and logits of a set of pictures under one of ``LABELS``.
NormsOf = Callable[[ImageSet, str], GradientNorms]


class Row(NamedTuple):
    """One detector on one anomalous set."""

    seed: int
    gradients: str
    detector: str
    anomalous_set: str
    metrics: Metrics


def embedded_suite(seed: int, count: int = 100) -> Suite:
    """Such splits of the pictures inside the package: a few of each, and nothing to install."""
    known = embedded_set("fashion-mnist-train").sample(8 * count, seed)
    fit, normal_known = known.select(slice(None, 4 * count)), known.select(slice(4 * count, None))
    anomalous = [name for name in EMBEDDED if not name.startswith("fashion-mnist")]
    real = [embedded_set(name).sample(count, seed) for name in anomalous]
    source = normal_known.sample(count, seed)
    noise = (uniform_noise(count, seed), gaussian_noise(count, seed))
    made = (*noise, pixel_shuffled(source, seed), inverted(source), rotated(source))
    halves = {one.name: halve_by_group(one, seed) for one in (*real, *made)}
    return Suite(
        fit=fit,
        normal_known=normal_known,
        normal_scored=embedded_set("fashion-mnist").sample(4 * count, seed),
        anomalous_known={name: half for name, (half, _) in halves.items()},
        anomalous_scored={name: half for name, (_, half) in halves.items()},
    )


def norms_with_cache(model: nn.Module, folder: Path | None) -> NormsOf:
    """Gradient norms, kept in memory and in ``folder`` under a hash of all that they depend on."""
    weights = [tensor.numpy().tobytes() for tensor in model.state_dict().values()]
    package = Path(gradood.__file__).parent
    code = [*package.glob("gradients/**/*.py"), *package.glob("ops/*.py"), *package.glob("_cpu*")]
    versions = f"torch {torch.__version__}, batches of {BATCH}".encode()
    base = _digest([versions, *weights, *(path.read_bytes() for path in sorted(code))])
    memory: dict[str, GradientNorms] = {}

    def norms_of(images: ImageSet, kind: str) -> GradientNorms:
        label, loss = LABELS[kind]
        key = _digest([base.encode(), f"{label} {loss}".encode(), images.pixels.numpy().tobytes()])
        path = None if folder is None else folder / f"{key}.safetensors"
        if key in memory:
            pass
        elif path is not None and path.exists():
            stored = load_file(path)
            names = tuple(name for name, _ in model.named_parameters())
            memory[key] = GradientNorms(stored["values"], names, stored["logits"])
        else:
            memory[key] = compute_norms(model, images.images, label, loss)
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                tensors = {"values": memory[key].values, "logits": memory[key].logits}
                save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
        return memory[key]

    return norms_of


def _digest(parts: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for part in parts:
        # The length too, or two different lists could be the same bytes.
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def compute_norms(model: nn.Module, images: Tensor, label: str, loss: str) -> GradientNorms:
    return join([gradient_norms(model, batch, label, loss) for batch in torch.split(images, BATCH)])


def join(parts: Sequence[GradientNorms]) -> GradientNorms:
    values = torch.cat([part.values for part in parts])
    return GradientNorms(values, parts[0].names, torch.cat([part.logits for part in parts]))


def features_of(norms_of: NormsOf, kinds: Sequence[str], images: ImageSet) -> GradientNorms:
    """Norms ``[N, K, L]`` under K labels and losses, as the detectors take them."""
    parts = [norms_of(images, kind) for kind in kinds]
    values = torch.stack([part.values for part in parts], 1)
    return GradientNorms(values, parts[0].names, parts[0].logits)


class Scorer:
    """Scores the sets of one suite by their features, with detectors that are already fitted."""

    def __init__(
        self,
        suite: Suite,
        seed: int,
        gradients: str,
        read: Callable[[ImageSet], GradientNorms],
    ) -> None:
        self.seed, self.gradients = seed, gradients
        self.normal = read(suite.normal_scored)
        self.anomalous = {name: read(images) for name, images in suite.anomalous_scored.items()}

    def rows(self, name: str, detectors: Mapping[str, Detector]) -> list[Row]:
        """Metrics on every set, each scored by its own of ``detectors``."""
        rows = []
        for anomalous_set, detector in detectors.items():
            scores = detector.score(self.normal), detector.score(self.anomalous[anomalous_set])
            rows.append(Row(self.seed, self.gradients, name, anomalous_set, evaluate(*scores)))
        return rows

    def rows_of(self, detector: Detector) -> list[Row]:
        """Metrics on every set, all scored by ``detector``."""
        return self.rows(type(detector).__name__, dict.fromkeys(self.anomalous, detector))


def run_seed(model: nn.Module, suite: Suite, norms_of: NormsOf, seed: int) -> list[Row]:
    """Every detector on every set of ``suite``."""
    rows = []
    for gradients, kinds in FEATURES.items():
        read = partial(features_of, norms_of, kinds)
        scorer = Scorer(suite, seed, gradients, read)
        rows += supervised_rows(model, suite, scorer, read)
        normal = read(suite.fit)
        rows += scorer.rows_of(GradientMahalanobis(model).fit(normal))
        rows += scorer.rows_of(GradientKNN(model).fit(normal))
        rows += scorer.rows_of(GradientGMM(model, seed=seed).fit(normal))
        log.info("%s", detection_tables.progress(rows, seed, gradients))
    logits = Scorer(suite, seed, NO_FEATURES, partial(features_of, norms_of, ("all-hot",)))
    return rows + logits.rows_of(MaxSoftmax(model)) + logits.rows_of(Energy(model))


def supervised_rows(
    model: nn.Module, suite: Suite, scorer: Scorer, read: Callable[[ImageSet], GradientNorms]
) -> list[Row]:
    """The paper's detector under each protocol."""
    normal = read(suite.normal_known)

    @cache
    def trained_on(sets: tuple[str, ...]) -> Detector:
        anomalies = join([read(suite.anomalous_known[name]) for name in sets])
        return ConfoundingDetector(model, seed=scorer.seed).fit(normal, anomalies)

    every = tuple(suite.anomalous_known)
    rows = []
    for name, sets in PROTOCOLS.items():
        rows += scorer.rows(name, {scored: trained_on(sets(scored, every)) for scored in every})
    return rows


def images_per_second(model: nn.Module, images: Tensor) -> dict[str, float]:
    """Best of several rounds, taking turns: the forward pass alone, and norms by label."""

    @torch.no_grad()
    def forward() -> None:
        for batch in torch.split(images, BATCH):
            model(batch)

    jobs: dict[str, Callable[[], object]] = {"forward pass": forward}
    for kind, (label, loss) in LABELS.items():
        jobs[f"{kind} norms"] = partial(compute_norms, model, images, label, loss)
    best = dict.fromkeys(jobs, math.inf)
    for _ in range(TIMED_ROUNDS):
        for name, job in jobs.items():
            begin = time.perf_counter()
            job()
            best[name] = min(best[name], time.perf_counter() - begin)
    return {name: len(images) / seconds for name, seconds in best.items()}


def write_csv(rows: Sequence[Row], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*Row._fields[:-1], *Metrics._fields])
        for row in rows:
            shares = [f"{value:.5f}" for value in row.metrics[:5]]
            writer.writerow([*row[:-1], *shares, *row.metrics[5:]])


def main(
    seeds: Annotated[int, typer.Option(help="How many: 0, 1, …", min=1)] = 3,
    cache: Annotated[Path | None, typer.Option(help="Keep gradient norms in this folder.")] = None,
    root: Annotated[Path | None, typer.Option(help="Folder with the Fashion-MNIST files.")] = None,
    fonts: Annotated[Path | None, typer.Option(help="Folder of fonts for the glyphs.")] = None,
    count: Annotated[int | None, typer.Option(help="At most so many pictures a set.")] = None,
    small: Annotated[bool, typer.Option(help="Embedded pictures only; a quick look.")] = False,
    output: Annotated[Path | None, typer.Option(help="Folder for the results.")] = None,
    threads: Annotated[int, typer.Option(help="torch.set_num_threads")] = 1,
) -> None:
    """Run the benchmark, print the tables and write them."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    model = embedded_classifier()
    norms_of = norms_with_cache(model, cache)
    rows: list[Row] = []
    for seed in range(seeds):
        if small:
            suite = embedded_suite(seed, count or 100)
        else:
            suite = evaluation_suite(root, fonts, count or 2000, seed)
        rows += run_seed(model, suite, norms_of, seed)
    speed = images_per_second(model, suite.normal_scored.images[:TIMED_IMAGES])
    text = detection_tables.markdown(rows, speed, small=small)
    typer.echo(text)
    if output is None and not small:
        output = RESULTS
    if output is not None:
        write_csv(rows, output / "detection.csv")
        (output / "detection.md").write_text(text)


if __name__ == "__main__":
    typer.run(main)
