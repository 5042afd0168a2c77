"""Attacks on the classifier and on the detector: small changes of an input that mislead them."""

from gradood.attacks.classifier import apgd
from gradood.attacks.detector import AttackedScores, attack_score
from gradood.attacks.evasion import Evasion, evade
from gradood.attacks.iterative import Adversarial, bim, fgsm, least_likely, negation, pgd
from gradood.attacks.minimal import carlini_wagner, deepfool
from gradood.attacks.scores import energy, max_confidence, through_softplus
from gradood.attacks.search import Expectation

__all__ = [
    "Adversarial",
    "AttackedScores",
    "Evasion",
    "Expectation",
    "apgd",
    "attack_score",
    "bim",
    "carlini_wagner",
    "deepfool",
    "energy",
    "evade",
    "fgsm",
    "least_likely",
    "max_confidence",
    "negation",
    "pgd",
    "through_softplus",
]
