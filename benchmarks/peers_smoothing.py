"""Other packages' ways to count votes under noise, on the same model and input."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import gradood
from gradood.data import embedded_classifier, embedded_images
from gradood.smoothing.counting import count_classes
from gradood.smoothing.evidence import Run
from gradood.smoothing.noise import ESTIMATION
from gradood.smoothing.tally import Tally

SIGMA = 0.05


def small_network() -> nn.Module:
    """Two convolutions: where noise and bookkeeping are a large part."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(16 * 49, 10),
    ).eval()


def workloads() -> dict[str, tuple[nn.Module, Tensor, int]]:
    """Model, one input and how many samples, by name."""
    from torchvision.models import resnet18

    picture = embedded_images("fashion-mnist")[:1]
    torch.manual_seed(0)
    return {
        "two convolutions, 28 x 28": (small_network(), picture, 6400),
        "embedded ResNet-8, 28 x 28": (embedded_classifier(), picture, 640),
        "ResNet-18, 3 x 64 x 64": (resnet18(num_classes=10).eval(), torch.rand(1, 3, 64, 64), 64),
    }


_OURS: dict[tuple[int, int], Run] = {}


def gradood_counts(model: nn.Module, x: Tensor, n: int, options: dict[str, Any]) -> np.ndarray:
    """n samples of our own engine, the model being prepared once."""
    key = (id(model), len(options))
    if key not in _OURS:
        settings = gradood.Smoothing(sigma=SIGMA, n=n, progress=False, tile=64, **options)
        _OURS[key] = Run("class", model, x, settings, {"radius": None}, None, None)
    tally = Tally(1)
    _OURS[key].sampler.run(tally, count_classes, n, ESTIMATION)
    return tally.counts[0]


@torch.no_grad()
def locuslab_counts(model: nn.Module, x: Tensor, n: int, batch: int) -> np.ndarray:
    """As locuslab/smoothing describes it: repeat, randn_like, and counts in a Python loop."""
    counts = np.zeros(10, dtype=int)
    left = n
    while left > 0:
        size = min(batch, left)
        left -= size
        repeated = x.repeat((size, 1, 1, 1))
        noise = torch.randn_like(repeated) * SIGMA
        predictions = model(repeated + noise).argmax(1)
        for label in predictions.cpu().numpy():
            counts[label] += 1
    return counts


_ART: dict[int, Any] = {}


def art_counts(model: nn.Module, x: Tensor, n: int, batch: int) -> np.ndarray:
    """The package adversarial-robustness-toolbox itself."""
    from art.estimators.certification.randomized_smoothing import PyTorchRandomizedSmoothing

    if id(model) not in _ART:
        _ART[id(model)] = PyTorchRandomizedSmoothing(
            model=model,
            loss=nn.CrossEntropyLoss(),
            input_shape=tuple(x.shape[1:]),
            nb_classes=10,
            sample_size=n,
            scale=SIGMA,
            alpha=1e-3,
            device_type="cpu",
        )
    counts: np.ndarray = _ART[id(model)]._prediction_counts(x.numpy()[0], n=n, batch_size=batch)
    return counts
