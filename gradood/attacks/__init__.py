"""Attacks on the classifier: small changes of an input that change the prediction."""

from gradood.attacks.linf import Adversarial, fgsm, pgd

__all__ = ["Adversarial", "fgsm", "pgd"]
