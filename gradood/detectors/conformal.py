"""How unusual a score is among calibration scores, as a p-value that needs no distribution."""

from __future__ import annotations

import torch
from torch import Tensor


def conformal_p_values(calibration: Tensor, scores: Tensor) -> Tensor:
    r"""``p = (1 + #{calibration scores >= score}) / (n + 1)``.

    Claim: ``P(p <= t) <= t`` for all t, if the score is exchangeable with the n calibration scores.
    Proof: break ties at random, in the score's favour never (>=); then its rank among n + 1 is
    uniform, and p (n + 1) is at least the rank from the top. (Vovk, Gammerman, Shafer, "Algorithmic
    learning in a random world", 2005; Bates et al., "Testing for outliers with conformal p-values",
    2023, arXiv 2104.08279.) Over the draw of the calibration set too: for one fixed set, p-values
    are off by about ``1 / sqrt(n)``; ``evaluation.bound_false_discoveries`` holds for that one.

    A score that is NaN counts as the most anomalous, among calibration scores too.

    Args:
        calibration: ``[n]``, scores of normal inputs that the detector was not fitted on.
        scores: ``[N]``.

    Returns:
        float64 ``[N]``, at least ``1 / (n + 1)``.
    """
    known = _unusual(calibration).sort().values
    below = torch.searchsorted(known, _unusual(scores), right=False)
    return (1 + len(known) - below).double() / (len(known) + 1)


def _unusual(scores: Tensor) -> Tensor:
    return torch.where(scores.isnan(), torch.inf, scores.detach().double()).flatten()
