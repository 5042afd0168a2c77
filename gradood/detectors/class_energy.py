"""How little a classifier makes of an input, beside what it makes of others of its class."""

from __future__ import annotations

import torch
from torch import Tensor

from gradood.detectors.novelty import Learned
from gradood.gradients import GradientNorms
from gradood.gradients.decision import as_classes, predicted

LEARNED = ("usual_energies",)

#: The mean of a class counts as if so many inputs of the mean of all had been of it, too: a class
#: of few normal inputs, or of none, has that of all.
PRIOR = 10


def energy(norms: GradientNorms) -> Tensor:
    """``−log Σ_c exp(z_c)``, ``[N]``.

    Source: Liu et al., "Energy-based Out-of-distribution Detection", 2020.
    """
    return -torch.logsumexp(as_classes(norms.logits).double(), 1).float()


def fit_class_energy(norms: GradientNorms) -> Learned:
    """``m_c = (Σ_{n of c} E(n) + r m) / (N_c + r)``, m the mean of all and r ``PRIOR``, ``[C]``."""
    energies, classes = energy(norms).double(), predicted(norms.logits)
    count = as_classes(norms.logits[:1]).shape[1]
    sums, counts = energies.new_zeros(2, count)
    sums.index_add_(0, classes, energies)
    counts.index_add_(0, classes, torch.ones_like(energies))
    return {"usual_energies": (sums + PRIOR * energies.mean()) / (counts + PRIOR)}


def score_class_energy(norms: GradientNorms, learned: Learned) -> Tensor:
    """``E − m_c``, c the predicted class.

    Classes differ in how sure a network is of them: what it takes for a bag is suspicious at an
    energy at which a shirt is not.
    """
    usual = learned["usual_energies"]
    return energy(norms).to(usual.dtype) - usual[predicted(norms.logits)]
