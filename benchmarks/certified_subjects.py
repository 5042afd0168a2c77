"""What ``break_certificates`` certifies and attacks: models and scores with their pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.cifar_certificates import fitted_under_noise, network
from benchmarks.datasets import picture_set
from benchmarks.distro import CHECKPOINTS
from gradood import GradientMahalanobis, Smoothing
from gradood.attacks import max_confidence
from gradood.attacks.scores import differentiable
from gradood.data import embedded_classifier, embedded_images
from gradood.detectors import Detector
from gradood.smoothing.inference import prepared
from gradood.smoothing.patched_unet import load_denoiser
from gradood.smoothing.settings import Denoiser

ALPHA = 1e-3
FAST = {"dtype": "bfloat16", "channels_last": True, "fold_batch_norm": True}
#: Norms of fewer parameters are cheaper to differentiate twice.
PARAMETERS = ["stage3.0.conv2.*", "stage3.0.norm2.*", "linear.*"]


class Subject(NamedTuple):
    """What is certified, and on what.

    Attributes:
        certified: A model, or a score of inputs.
        attacked: The same of a noisy input, differentiable, the denoiser before it.
        smoothing: Of the certificates; its seed is not theirs.
        normal: Pictures in [0, 1].
        anomalies: By set.
        bounded: Whether the score is in [0, 1], so that its mean is certified too.
    """

    certified: Any
    attacked: Any
    smoothing: Smoothing
    normal: Tensor
    anomalies: tuple[Tensor, ...] = ()
    bounded: bool = False

    def evaluate(self, noisy: Tensor) -> Tensor:
        """The score as certificates see it, of noisy inputs."""
        denoiser, score = self.smoothing.denoiser, self.certified
        seen = noisy if denoiser is None else denoiser(noisy, self.smoothing.sigma)
        found: Tensor = score.score(seen) if isinstance(score, Detector) else score(seen)
        return found


class AsCertified(nn.Module):
    """The prepared model, given what certificates give it: bfloat16, channels last, denoised."""

    def __init__(self, model: nn.Module, smoothing: Smoothing) -> None:
        super().__init__()
        self.model, self.smoothing = prepared(model, smoothing), smoothing

    def forward(self, x: Tensor) -> Tensor:
        """``[N, ...] -> logits``, float32."""
        x = x.bfloat16().contiguous(memory_format=torch.channels_last)
        if self.smoothing.denoiser is not None:
            x = self.smoothing.denoiser(x, self.smoothing.sigma)
        found: Tensor = self.model(x).float()
        return found


def embedded_class(sigma: float, samples: int) -> Subject:
    """Classes of the embedded classifier, folded, in bfloat16: that is what is certified."""
    model, smoothing = embedded_classifier(), Smoothing(sigma=sigma, n=samples, alpha=ALPHA, **FAST)
    run = AsCertified(model, smoothing).eval()
    return Subject(model, run, smoothing, embedded_images("fashion-mnist"))


def embedded_anomalies() -> tuple[Tensor, ...]:
    """Of every embedded set."""
    return tuple(map(embedded_images, ("mnist", "animals", "glyphs", "photos", "digits")))


def embedded_confidence(sigma: float, samples: int) -> Subject:
    """One minus the maximal softmax, of the same network."""
    run = AsCertified(embedded_classifier(), Smoothing(sigma=0.1, **FAST)).eval()
    confidence = max_confidence(run)
    score, smoothing = (lambda z: 1 - confidence(z)), Smoothing(sigma=sigma, n=samples, alpha=ALPHA)
    normal = embedded_images("fashion-mnist")
    return Subject(score, score, smoothing, normal, embedded_anomalies(), bounded=True)


def embedded_gradient(sigma: float, samples: int) -> Subject:
    """A detector on gradient norms, fitted on noisy pictures."""
    train = embedded_images("fashion-mnist-train")
    noise = torch.randn(train.shape, generator=torch.Generator().manual_seed(0))
    detector = GradientMahalanobis(embedded_classifier(), parameters=PARAMETERS)
    detector.fit(train + sigma * noise)
    normal, smoothing = (
        embedded_images("fashion-mnist"),
        Smoothing(sigma=sigma, n=samples, alpha=ALPHA),
    )
    return Subject(detector, detector, smoothing, normal, embedded_anomalies())


@cache
def _cifar(name: str) -> Tensor:
    images = picture_set(name, Path(os.environ["GRADOOD_DATA"]))
    return images.sample(1000).images


def _denoiser() -> Denoiser:
    return load_denoiser(CHECKPOINTS / "cifar10-denoiser.safetensors").bfloat16()


def cifar_class(sigma: float, samples: int) -> Subject:
    """Classes of the public ResNet-20 after the denoiser, in bfloat16."""
    model = network()
    smoothing = Smoothing(sigma=sigma, n=samples, alpha=ALPHA, denoiser=_denoiser(), n0=32, **FAST)
    return Subject(model, AsCertified(model, smoothing).eval(), smoothing, _cifar("cifar10-test"))


def cifar_gradient(denoised: bool, own: bool, sigma: float, samples: int) -> Subject:
    """The default gradient detector on the same network, fitted on what it sees.

    ``own``: its own score is climbed, through its norms. Else what it reads without a backward
    pass, in bfloat16: a step costs a twentieth, so that many inputs can be attacked for long.
    """
    denoiser = _denoiser() if denoised else None
    detector = fitted_under_noise(denoiser, 500, sigma)
    smoothing = Smoothing(sigma=sigma, n=samples, alpha=ALPHA, denoiser=denoiser, n0=32)
    climbed = differentiable(detector)
    if not own:
        climbed = _cheaper(fitted_under_noise(denoiser, 500, sigma, "forward"))

    def attacked(z: Tensor) -> Tensor:
        return climbed(z if denoiser is None else denoiser(z, sigma))

    anomalies = tuple(map(_cifar, ("svhn-test", "cifar100-test")))
    return Subject(detector, attacked, smoothing, _cifar("cifar10-test"), anomalies)


def _cheaper(detector: Detector) -> Callable[[Tensor], Tensor]:
    """A detector's differentiable score in bfloat16, channels last."""

    def score(z: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            z = z.contiguous(memory_format=torch.channels_last)
            return detector.differentiable_score(z)

    return score


#: By the part's name: a function of sigma and the number of samples.
SUBJECTS: dict[str, Callable[[float, int], Subject]] = {
    "class": embedded_class,
    "confidence": embedded_confidence,
    "gradient": embedded_gradient,
    "cifar-class": cifar_class,
    "cifar-gradient": partial(cifar_gradient, False, False),
    "cifar-gradient-denoised": partial(cifar_gradient, True, False),
    "cifar-gradient-own": partial(cifar_gradient, False, True),
    "cifar-gradient-own-denoised": partial(cifar_gradient, True, True),
}
