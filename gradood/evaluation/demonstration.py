"""The experiment behind ``gradood demo``: every detector on every embedded set, nothing shared.

Splits, by the rule that no picture a detector saw is ever scored:

* Normal pictures: 3/4 of the embedded training pictures fit detectors, 1/4 calibrate them, and the
  embedded test pictures are scored.
* Each anomalous set is halved, by group where it has groups (font families, source photographs):
  the first half may train the paper's detector, the second half is scored.
* Noise and shuffled, inverted and rotated normal pictures, which anybody can make, join what the
  paper's detector trains on; they are not scored.
* Attacks: made from correctly classified pictures, from fitting ones to train on and from test ones
  to score; rounded to uint8, and only those that still fool the classifier. They are compared with
  their own originals, so that nothing but the attack differs.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from gradood.attacks import Adversarial, fgsm, pgd
from gradood.data import (
    EMBEDDED,
    ImageSet,
    embedded_classifier,
    embedded_set,
    gaussian_noise,
    halve_by_group,
    inverted,
    pixel_shuffled,
    rotated,
    uniform_noise,
)
from gradood.detectors import ConfoundingDetector, Detector, Energy, GradientDetector, MaxSoftmax
from gradood.detectors.features import Standardiser, log_norms
from gradood.evaluation.metrics import Metrics, evaluate
from gradood.gradients import GradientNorms, gradient_norms

EPSILON = 8 / 255
_ATTACKS: dict[str, Callable[[nn.Module, Tensor, Tensor, int], Adversarial]] = {
    "FGSM 8/255": lambda model, x, labels, seed: fgsm(model, x, labels=labels, epsilon=EPSILON),
    "PGD 8/255": lambda model, x, labels, seed: pgd(
        model, x, labels=labels, epsilon=EPSILON, seed=seed
    ),
}
#: Pictures attacked for training and for scoring; ten steps of PGD on more would take too long.
_ATTACKED_TO_FIT, _ATTACKED_TO_SCORE = 150, 200
#: Made anomalies of each kind.
_MADE = 100

_BATCH = 256
_KNOWN, _TEST = "fashion-mnist-train", "fashion-mnist"

PAPER, PAPER_UNSEEN = "Paper's, set seen", "Paper's, set unseen"
DEFAULT, MAX_SOFTMAX, ENERGY = "GradientDetector", "Max-softmax", "Energy"
#: What each detector is, for someone who has not read the papers.
EXPLANATIONS = {
    PAPER: "the paper's two-layer network on gradient norms, trained on normal pictures and on the "
    "other half of every set, this one included",
    PAPER_UNSEEN: "the same, trained without any picture of the set that it scores",
    DEFAULT: "how far norms and penultimate features are from those of normal pictures; "
    "needs no anomalies",
    MAX_SOFTMAX: "yardstick: one minus the classifier's largest probability",
    ENERGY: "yardstick: minus the log-sum-exp of the logits",
}
DETECTORS = tuple(EXPLANATIONS)


@dataclass(frozen=True)
class SetResult:
    """One anomalous set, scored by every detector.

    Attributes:
        name: As tables print it.
        about: Where the pictures come from, or how often the attack succeeded.
        images: ``[M, 1, 28, 28]`` in [0, 1], the scored pictures.
        normal: By detector, the scores ``[N]`` of the normal pictures compared with.
        anomalous: By detector, the scores ``[M]``.
        metrics: By detector.
        reaction: ``[L]``, by how many standard deviations of normal data the median log norm of
            each parameter tensor is above (or below) the normal mean.
    """

    name: str
    about: str
    images: Tensor
    normal: dict[str, Tensor]
    anomalous: dict[str, Tensor]
    metrics: dict[str, Metrics]
    reaction: Tensor


@dataclass(frozen=True)
class Timing:
    """Seconds that the demo spent, and on how many images.

    Attributes:
        images: Images that gradient norms were computed for.
        norms: Seconds in ``gradient_norms`` for all of them, forward pass included.
        forward: Seconds that the forward pass alone takes for as many images.
        total: Seconds of the whole experiment, attacks and fits included.
    """

    images: int
    norms: float
    forward: float
    total: float


@dataclass(frozen=True)
class Demonstration:
    """What ``gradood demo`` prints and draws.

    Attributes:
        sets: One result for each anomalous set.
        normal_images: ``[N, 1, 28, 28]``, the scored normal pictures.
        normal_scores: By detector, their scores ``[N]``.
        parameters: The L parameter names.
        threshold: Of ``DEFAULT``, calibrated for 5 % false alarms.
        false_alarms: Share of the scored normal pictures above it.
        counts: Pictures used to fit, to calibrate and to score as normal.
        timing: Speed.
        seed: Of splits, attacks and fits.
    """

    sets: tuple[SetResult, ...]
    normal_images: Tensor
    normal_scores: dict[str, Tensor]
    parameters: tuple[str, ...]
    threshold: float
    false_alarms: float
    counts: tuple[int, int, int]
    timing: Timing
    seed: int


@dataclass(frozen=True)
class _Split:
    """One anomalous set: what may be trained on, what is scored, and the test rows to compare."""

    name: str
    about: str
    fit: Tensor
    score: Tensor
    normals: Tensor


def demonstrate(seed: int = 0, images_per_set: int | None = None) -> Demonstration:
    """Run the experiment on the embedded classifier and pictures; see the module's docstring.

    Args:
        seed: Of splits, attacks and fits.
        images_per_set: Use at most so many pictures of every embedded set, for a quick look.
    """
    begin = time.perf_counter()
    model = embedded_classifier()
    known, test = (_load(name, images_per_set, seed) for name in (_KNOWN, _TEST))
    cut = len(known) * 3 // 4
    fit, calibrate = known.select(slice(None, cut)), known.select(slice(cut, None))
    splits = _embedded_splits(len(test), images_per_set, seed)
    splits += _attack_splits(model, fit, test, seed)

    clock = _Clock(model)
    normal_fit, normal_test = clock.norms(fit.images), clock.norms(test.images)
    anomalies_fit = {split.name: clock.norms(split.fit) for split in splits}
    anomalies_test = {split.name: clock.norms(split.score) for split in splits}

    made = clock.norms(_made_anomalies(fit, seed))
    seen = GradientNorms.join([*anomalies_fit.values(), made])
    detectors = _shared_detectors(model, normal_fit, seen, seed)
    unsupervised = detectors[DEFAULT].calibrate(clock.norms(calibrate.images), fpr=0.05)
    standardise = Standardiser.fit(log_norms(normal_fit.values))
    results = []
    for split in splits:
        others = [norms for name, norms in anomalies_fit.items() if name != split.name]
        unseen = ConfoundingDetector(model, seed=seed).fit(
            normal_fit, GradientNorms.join([*others, made])
        )
        all_detectors = detectors | {PAPER_UNSEEN: unseen}
        norms = anomalies_test[split.name]
        results.append(_score_set(split, all_detectors, normal_test, norms, standardise))
    return Demonstration(
        sets=tuple(results),
        normal_images=test.images,
        normal_scores={name: one.score(normal_test) for name, one in detectors.items()},
        parameters=normal_fit.names,
        threshold=unsupervised.threshold,
        false_alarms=float(unsupervised.predict(normal_test).float().mean()),
        counts=(len(fit), len(calibrate), len(test)),
        timing=clock.timing(test.images, time.perf_counter() - begin),
        seed=seed,
    )


def _load(name: str, at_most: int | None, seed: int) -> ImageSet:
    everything = embedded_set(name)
    return everything.sample(at_most or len(everything), seed=seed)


def _shared_detectors(
    model: nn.Module, normal: GradientNorms, anomalies: GradientNorms, seed: int
) -> dict[str, Detector]:
    return {
        PAPER: ConfoundingDetector(model, seed=seed).fit(normal, anomalies),
        DEFAULT: GradientDetector(model).fit(normal),
        MAX_SOFTMAX: MaxSoftmax(model),
        ENERGY: Energy(model),
    }


def _score_set(
    split: _Split,
    detectors: dict[str, Detector],
    normal_norms: GradientNorms,
    norms: GradientNorms,
    standardise: Standardiser,
) -> SetResult:
    normal = {name: one.score(normal_norms)[split.normals] for name, one in detectors.items()}
    anomalous = {name: one.score(norms) for name, one in detectors.items()}
    reaction = torch.zeros(len(norms.names), dtype=torch.float32, device="cpu")
    reaction[standardise.kept] = standardise(log_norms(norms.values)).median(0).values
    return SetResult(
        name=split.name,
        about=split.about,
        images=split.score,
        normal=normal,
        anomalous=anomalous,
        metrics={name: evaluate(normal[name], anomalous[name]) for name in DETECTORS},
        reaction=reaction,
    )


def _embedded_splits(normals: int, at_most: int | None, seed: int) -> list[_Split]:
    splits = []
    for name in EMBEDDED:
        if name not in (_KNOWN, _TEST):
            one = _load(name, at_most, seed)
            fit, score = halve_by_group(one, seed=seed)
            about = f"{one.source}. Licence: {one.licence}."
            every = torch.arange(normals, dtype=torch.int64, device="cpu")
            splits.append(_Split(name, about, fit.images, score.images, every))
    return splits


def _made_anomalies(fit: ImageSet, seed: int) -> Tensor:
    normal = fit.sample(_MADE, seed=seed)
    kinds = (
        uniform_noise(_MADE, seed=seed),
        gaussian_noise(_MADE, seed=seed),
        pixel_shuffled(normal, seed=seed),
        inverted(normal),
        rotated(normal),
    )
    return torch.cat([kind.images for kind in kinds])


def _attack_splits(model: nn.Module, fit: ImageSet, test: ImageSet, seed: int) -> list[_Split]:
    attackable_fit = fit.select(_correct(model, fit)[:_ATTACKED_TO_FIT])
    rows = _correct(model, test)[:_ATTACKED_TO_SCORE]
    attackable_test = test.select(rows)
    splits = []
    for name, attack in _ATTACKS.items():
        known, scored = (
            attack(model, one.images, _labels(one), seed)
            for one in (attackable_fit, attackable_test)
        )
        works = scored.success_rounded
        about = (
            f"Fools the classifier on {scored.success.float().mean():.0%} of {len(rows)} correctly "
            f"classified test pictures, on {works.float().mean():.0%} after rounding to uint8. "
            "These are scored, against their own originals."
        )
        to_fit, to_score = known.rounded[known.success_rounded], scored.rounded[works]
        splits.append(_Split(name, about, to_fit, to_score, rows[works]))
    return splits


@torch.no_grad()
def _correct(model: nn.Module, images: ImageSet) -> Tensor:
    """Rows that the classifier gets right."""
    predicted = torch.cat([model(batch).argmax(1) for batch in torch.split(images.images, 256)])
    return (predicted == _labels(images)).nonzero().flatten()


def _labels(images: ImageSet) -> Tensor:
    assert images.labels is not None  # both normal sets have them
    return images.labels


class _Clock:
    """Computes gradient norms and counts images and seconds."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.images = 0
        self.seconds = 0.0

    def norms(self, images: Tensor) -> GradientNorms:
        begin = time.perf_counter()
        norms = GradientNorms.join(
            [gradient_norms(self.model, b, activations=True) for b in torch.split(images, _BATCH)]
        )
        self.seconds += time.perf_counter() - begin
        self.images += len(images)
        return norms

    @torch.no_grad()
    def timing(self, images: Tensor, total: float) -> Timing:
        begin = time.perf_counter()
        for batch in torch.split(images, _BATCH):
            self.model(batch)
        forward = (time.perf_counter() - begin) / len(images) * self.images
        return Timing(self.images, self.seconds, forward, total)
