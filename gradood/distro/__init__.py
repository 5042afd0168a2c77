"""The joint model of arXiv 2303.14961: denoiser, classifier, and a discriminator with bounds.

``ibp`` bounds a small network over a box; ``discriminator`` is such a network, trained with these
bounds; ``joint`` combines it with a classifier, smoothed or not, and says what is guaranteed.
"""

from gradood.distro.discriminator import (
    discriminator,
    discriminator_loss,
    embedded_discriminator,
    load_discriminator,
)
from gradood.distro.ibp import Interval, box, confidence_bound, propagate, upper_bound
from gradood.distro.joint import (
    GuaranteedConfidence,
    JointModel,
    guaranteed_confidence,
    joint_confidence,
    joint_log_probabilities,
    smoothing_radius,
)

__all__ = [
    "GuaranteedConfidence",
    "Interval",
    "JointModel",
    "box",
    "confidence_bound",
    "discriminator",
    "discriminator_loss",
    "embedded_discriminator",
    "guaranteed_confidence",
    "joint_confidence",
    "joint_log_probabilities",
    "load_discriminator",
    "propagate",
    "smoothing_radius",
    "upper_bound",
]
