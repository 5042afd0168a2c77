"""Attacks on the classifier and on the detector: small changes of an input that mislead them."""

from gradood.attacks.detector import AttackedScores, attack_score
from gradood.attacks.linf import Adversarial, fgsm, pgd
from gradood.attacks.scores import differentiable, energy, max_confidence
from gradood.attacks.search import Expectation

__all__ = [
    "Adversarial",
    "AttackedScores",
    "Expectation",
    "attack_score",
    "differentiable",
    "energy",
    "fgsm",
    "max_confidence",
    "pgd",
]
