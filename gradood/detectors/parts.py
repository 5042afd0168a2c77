"""The parts that ``GradientDetector`` is made of: one idea each, from one pass through a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from gradood.arguments import checked
from gradood.detectors import class_energy, layers
from gradood.detectors.class_gaussians import CLASS_GAUSSIANS, FEWEST
from gradood.detectors.copies import margin_drop
from gradood.detectors.features import Standardiser, log_norms, require_finite
from gradood.detectors.neighbours import DIRECTIONS, NEIGHBOURS
from gradood.detectors.novelty import Learned, Novelty
from gradood.detectors.relative import RELATIVE
from gradood.errors import InputError
from gradood.gradients import GradientNorms
from gradood.gradients.decision import predicted

#: A label and a loss for ``gradient_norms``; ``{half}`` stands for half of the number of classes.
Label = tuple[str, str]
ALL_HOT, HALF = ("all_hot", "bce"), ("k_hot:{half}", "logit")
PREDICTED = ("predicted", "logit")
#: As many labels as there are classes.
EVERY = ("one_hot:{every}", "logit")

#: Numbers in the Gaussians of all classes, 256 MB in float32.
_MOST_NUMBERS = 2**26


def expanded(labels: Iterable[Label], classes: int) -> list[Label]:
    """The labels for a model of so many classes."""
    half, found = max(1, classes // 2), []
    for label, loss in labels:
        every = range(classes) if (label, loss) == EVERY else range(1)
        found += [(label.format(half=half, every=c), loss) for c in every]
    return found


@dataclass(frozen=True, repr=False)
class Part:
    """One measure of how unlike normal inputs an input is.

    ``vector_part`` makes one of vectors and a ``Novelty``. A part of your own is used as any other,
    and ``gradood.load`` finds it by its name once it has been ``register``-ed.

    Attributes:
        name: What detectors and their files call it.
        learned: Names of the tensors that ``fit`` returns and ``score`` reads.
        fit: ``GradientNorms`` of normal inputs -> tensors.
        score: ``GradientNorms`` and these tensors -> ``[N]``, higher = more novel, in any unit.
        lacks: ``GradientNorms`` of normal inputs -> why the part cannot do with them, or None; None
            where it always can.
        labels: Each is a backward pass; ``values`` ``[N, K, L]`` are of these K labels, in order.
        activations: Whether ``channels`` are read.
        copies: Whether ``copies`` are read, which cost a forward pass each.
        reads_norms: Whether the first tensors learned standardise log norms of all the labels.
    """

    name: str
    learned: tuple[str, ...]
    fit: Callable[[GradientNorms], Learned] = field(repr=False)
    score: Callable[[GradientNorms, Learned], Tensor] = field(repr=False)
    lacks: Callable[[GradientNorms], str | None] | None = field(default=None, repr=False)
    labels: tuple[Label, ...] = ()
    activations: bool = False
    copies: bool = False
    reads_norms: bool = False

    def __repr__(self) -> str:
        return f"Part({self.name!r})"

    def register(self) -> Part:
        """Make the part known by its name.

        Raises:
            InputError: Another part has it.
        """
        if PARTS.setdefault(self.name, self) is not self:
            raise InputError(f"there is a part {self.name!r} already; take another name")
        return self


#: By name: what ``parts=`` and files of detectors refer to.
PARTS: dict[str, Part] = {}


def part_named(name: str) -> Part:
    """A part that has been registered.

    Raises:
        InputError: There is none of this name.
    """
    if name not in PARTS:
        raise InputError(
            f"there is no part {name!r}; known are {', '.join(PARTS)}. If it is your own, register "
            "it first"
        )
    return PARTS[name]


@checked
def vector_part(
    name: str,
    reads: Callable[[GradientNorms], Tensor],
    novelty: Novelty,
    standardised: bool = True,
    **options: object,
) -> Part:
    """A part that compares vectors ``[N, F]``, standardised or as they are; options of ``Part``."""

    def fit(norms: GradientNorms) -> Learned:
        vectors = reads(norms)
        require_finite(vectors, "normal inputs")
        first: Learned = {}
        if standardised:
            standardise = Standardiser.fit(vectors)
            first, vectors = standardise._asdict(), standardise(vectors)
        return first | novelty.fit(vectors.double(), predicted(norms.logits))

    def score(norms: GradientNorms, learned: Learned) -> Tensor:
        vectors = reads(norms)
        if standardised:
            vectors = Standardiser(*(learned[n] for n in Standardiser._fields))(vectors)
        vectors = vectors.to(learned[novelty.learned[0]].dtype)
        return novelty.score(vectors, predicted(norms.logits), learned)

    first = Standardiser._fields if standardised else ()
    return Part(name, (*first, *novelty.learned), fit, score, **options)  # type: ignore[arg-type]


def read_log_norms(norms: GradientNorms) -> Tensor:
    """Logarithms of all squared norms ``[N, K L]``."""
    return log_norms(norms.values)


def read_features(norms: GradientNorms) -> Tensor:
    """Penultimate features ``[N, F]``."""
    assert norms.features is not None
    return norms.features.float()


def read_both(norms: GradientNorms) -> Tensor:
    """Log norms and penultimate features in one vector ``[N, K L + F]``."""
    return torch.cat([read_log_norms(norms), read_features(norms)], 1)


def read_logits(norms: GradientNorms) -> Tensor:
    """Logits ``[N, C]``."""
    return norms.logits.float()


def _without_features(norms: GradientNorms) -> str | None:
    if norms.features is None:
        return "there are no penultimate features: no linear layer that reads one vector a sample"
    return None


def _without_norms(norms: GradientNorms) -> str | None:
    return None if norms.values.numel() else "no parameter has a gradient norm"


def _without_layers(norms: GradientNorms) -> str | None:
    if norms.channels is None:
        return "no activations came with the norms (activations=True), or no rule covers a layer"
    return None if len(norms.logits) > 1 else "one normal input does not vary"


def _without_copies(norms: GradientNorms) -> str | None:
    if norms.copies is None:
        return "there are no changed copies of inputs: they hold no real numbers"
    return None


def _without(*reasons: Callable[[GradientNorms], str | None]) -> Callable[..., str | None]:
    return lambda norms: next((said for reason in reasons if (said := reason(norms))), None)


def _too_few_to_neighbour(norms: GradientNorms) -> str | None:
    # Without two inputs of one predicted class there is no variance within classes.
    counts = torch.unique(predicted(norms.logits), return_counts=True)[1]
    return None if int(counts.max()) >= FEWEST else "no two normal inputs are of one class"


def _of_one_class(norms: GradientNorms) -> str | None:
    # The nearest class is then all there is: a difference of equals.
    alike = len(torch.unique(predicted(norms.logits))) == 1
    return "all normal inputs are predicted to be of one class" if alike else None


def _too_few_for_covariances(
    read: Callable[[GradientNorms], Tensor], every_class: bool, norms: GradientNorms
) -> str | None:
    """Two inputs a feature beyond the classes' means; Gaussians of classes, and ten a class."""
    width, count = read(norms.select(slice(0, 1))).shape[1], len(norms.logits)
    classes = len(torch.unique(predicted(norms.logits)))
    if every_class and classes * width**2 > _MOST_NUMBERS:
        return f"{classes} Gaussians of {width} features take too much memory"
    needed = 10 * classes if every_class else max(2 * width, classes) + classes
    return None if count >= needed else f"{count} normal inputs are too few, {needed} would do"


def _gaussians(
    name: str, reads: Callable[[GradientNorms], Tensor], labels: tuple[Label, ...], *lacks: object
) -> Part:
    few = partial(_too_few_for_covariances, reads, True)
    return vector_part(
        *(name, reads, CLASS_GAUSSIANS),
        lacks=_without(_without_norms, *lacks, few),  # type: ignore[arg-type]
        labels=labels,
        reads_norms=reads is read_log_norms,
    )


def _registered(parts: Iterable[Part]) -> None:
    for part in parts:
        part.register()


_registered(
    (
        #: Mean and power of every layer's channels, see ``layers``.
        Part(
            *("layers", layers.LEARNED, layers.fit_layers, layers.score_layers, _without_layers),
            activations=True,
        ),
        #: Nearest neighbours of the features' direction, see ``DIRECTIONS``.
        vector_part("directions", read_features, DIRECTIONS, False, lacks=_without_features),
        #: Relative Mahalanobis distance of the features, see ``RELATIVE``.
        vector_part(
            *("relative", read_features, RELATIVE),
            lacks=_without(
                *(_without_features, _of_one_class),
                partial(_too_few_for_covariances, read_features, False),
            ),
        ),
        #: Energy, less what is usual of the predicted class, see ``class_energy``.
        Part(
            *("class energy", class_energy.LEARNED),
            *(class_energy.fit_class_energy, class_energy.score_class_energy),
        ),
        #: Relative Mahalanobis distance of the logits, see ``RELATIVE``.
        vector_part(
            *("relative logits", read_logits, RELATIVE),
            lacks=_without(_of_one_class, partial(_too_few_for_covariances, read_logits, False)),
        ),
        #: ``−log Σ_c exp(z_c)``, see ``class_energy``.
        Part("energy", (), lambda norms: {}, lambda norms, learned: class_energy.energy(norms)),
        #: By how much small changes of the input lower its margin, see ``margin_drop``.
        Part(
            *("margin drop", (), lambda norms: {}, lambda norms, learned: margin_drop(norms)),
            lacks=_without_copies,
            copies=True,
        ),
        #: A Gaussian a class of log norms, see ``CLASS_GAUSSIANS``.
        _gaussians("norms", read_log_norms, (ALL_HOT,)),
        _gaussians("norms:half", read_log_norms, (HALF,)),
        # What detectors of earlier versions are made of.
        _gaussians("norms+features:half", read_both, (HALF,), _without_features),
        vector_part(
            *("norm neighbours", read_log_norms, NEIGHBOURS),
            lacks=_without(_without_norms, _too_few_to_neighbour),
            labels=(ALL_HOT,),
            reads_norms=True,
        ),
        _gaussians("norms:two", read_log_norms, (PREDICTED, HALF)),
        _gaussians("norms+features:two", read_both, (PREDICTED, HALF), _without_features),
        vector_part(
            *("norm neighbours:every", read_log_norms, NEIGHBOURS),
            labels=(EVERY,),
            reads_norms=True,
        ),
    )
)
