"""How the scores of several parts become one."""

from __future__ import annotations

import torch
from torch import Tensor

from gradood.detectors.novelty import Learned
from gradood.detectors.parts import Part
from gradood.gradients import GradientNorms

#: Of so many normal inputs, one standardises the scores of the parts that the others fit.
HELD_BACK = 5
#: Scores that deviate by less than so many times their rounding say nothing.
_ROUNDINGS = 10
#: Deviations below the mean beyond which no score counts.
_MOST_NORMAL = 2
#: Added to the variances of the parts, so that no weight hangs on a few inputs.
_RIDGE = 0.1


def fit_part(part: Part, norms: GradientNorms, floored: bool = True) -> tuple[Learned, Tensor]:
    """What a part learns, with mean and deviation of its scores of held normal inputs; and these.

    An infinite deviation marks a part that tells nothing. Scores are raised to a floor, two
    deviations below the mean, so that no part outweighs all others where it finds an input more
    normal than the normal ones, as the energy does an input that is twice as large.
    """
    held = (
        torch.arange(len(norms.logits), device=norms.logits.device, dtype=torch.int64) % HELD_BACK
        == HELD_BACK - 1
    )
    learned, others = part.fit(norms.select(~held)), norms.select(held)
    scores = part.score(others, learned).double()
    deviation, mean = torch.std_mean(scores)
    floor = mean - _MOST_NORMAL * deviation if floored else torch.full_like(mean, -torch.inf)
    raised = scores.clamp_min(floor)
    scale, centre = torch.std_mean(raised)
    # Doubles would take twice the memory, and round no better than the norms do.
    floats = {k: t.float() if t.is_floating_point() else t for k, t in learned.items()}
    rounding = (part.score(others, floats).double() - scores).square().mean().sqrt()
    rounding = rounding.clamp_min(torch.finfo(torch.float32).eps * centre.abs())
    # Of one class, for example, the distance relative to all vectors is a difference of equals.
    scale = torch.where(scale > _ROUNDINGS * rounding, scale, torch.inf)
    fitted = {"centre": centre[None].float(), "scale": scale[None].float()}
    fitted |= {"floor": floor[None].float()} if floored else {}
    return floats | fitted, (raised - centre) / scale


def tells(learned: Learned) -> bool:
    """Whether a part's scores differ between normal inputs by more than rounding."""
    return bool(learned["scale"].isfinite().all())


def score_part(part: Part, norms: GradientNorms, learned: Learned) -> Tensor:
    """Standardised scores ``[N]`` by what ``fit_part`` learned."""
    scores = part.score(norms, learned)
    if "floor" in learned:
        scores = torch.maximum(scores, learned["floor"])
    return (scores - learned["centre"]) / learned["scale"]


def agreement_weights(scores: Tensor) -> Tensor:
    """Weights ``[P]`` of P standardised parts, from their scores of normal inputs ``[N, P]``.

    ``w ∝ max(0, (S + r I)⁻¹ 1)``, ``Σ w = 1``, S their covariance: of all weights those under which
    normal inputs vary least, where an anomaly moves every part by the same. Parts that say the same
    on normal inputs share a weight. Source: the best linear unbiased combination of forecasts,
    Bates and Granger, "The Combination of Forecasts", 1969.
    """
    parts = scores.shape[1]
    if parts == 1 or len(scores) < 2 * parts:
        return scores.new_full((parts,), 1 / parts)
    eigenvalues, vectors = torch.linalg.eigh(torch.cov(scores.T))
    weights = (vectors @ (vectors.sum(0) / (eigenvalues.clamp_min(0) + _RIDGE))).clamp_min(0)
    shares: Tensor = weights / weights.sum()
    return shares
