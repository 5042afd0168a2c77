"""Fit and score of every detector, and the bookkeeping of every certificate, by pytest-benchmark.

    pytest benchmarks --benchmark-only -k "detector or certificate" [--quick]

The network is so small that most of the time is the detector's own; a certificate's model does
nothing but take a few pixels, so that drawing, counting and bounds are all there is.
"""

from functools import partial

import pytest
import torch
from torch import nn

import gradood
from gradood import detectors

DETECTORS = {
    "GradientDetector": detectors.GradientDetector,
    "GradientMahalanobis": detectors.GradientMahalanobis,
    "GradientKNN": detectors.GradientKNN,
    "GradientGMM": detectors.GradientGMM,
    "ConfoundingDetector": detectors.ConfoundingDetector,
    "GradUncertainty": detectors.GradUncertainty,
    "GradNorm": detectors.GradNorm,
    "ExGrad": detectors.ExGrad,
    "MaxSoftmax": detectors.MaxSoftmax,
    "Energy": detectors.Energy,
    "GeneralizedEntropy": detectors.GeneralizedEntropy,
}
#: Samples that are fitted on, and that are scored.
SAMPLES = {"small": (256, 64), "medium": (512, 256), "large": (2048, 1024)}
DRAWS = {"small": 200, "medium": 1_000, "large": 10_000}


def network():
    layers = nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(200, 5)).eval()


def fitted(make, normal):
    detector = make(network())
    if make is detectors.ConfoundingDetector:
        return detector.fit(normal, normal.flip(-1) + 0.5)
    return detector.fit(normal)


@pytest.mark.parametrize("name", DETECTORS)
def test_fit_of_detector(benchmark, name, size):
    normal = torch.rand(SAMPLES[size][0], 1, 14, 14)
    benchmark.group = f"fit, {size}"
    benchmark.extra_info["samples"] = len(normal)
    benchmark.pedantic(partial(fitted, DETECTORS[name], normal), rounds=3, warmup_rounds=1)


@pytest.mark.parametrize("name", DETECTORS)
def test_score_of_detector(benchmark, name, size):
    normal, new = (torch.rand(n, 1, 14, 14) for n in SAMPLES[size])
    detector = fitted(DETECTORS[name], normal)
    benchmark.group = f"score, {size}"
    benchmark.extra_info["samples"] = len(new)
    benchmark(detector.score, new)


class Pixels(nn.Module):
    """The first three pixels as logits."""

    def forward(self, x):
        return x.flatten(1)[:, :3]


def brightness(x):
    return x.flatten(1)[:, 0].clamp(0, 1)


CERTIFICATES = {
    "class": lambda x, s: gradood.certify_class(Pixels().eval(), x, settings=s),
    "class, one radius": lambda x, s: gradood.certify_class(
        Pixels().eval(), x, settings=s, radius=0.1
    ),
    "mean": lambda x, s: gradood.certify_mean(brightness, x, settings=s, radius=[0.0, 0.1]),
    "quantile": lambda x, s: gradood.certify_quantile(brightness, x, settings=s, radius=[0.0, 0.1]),
    "spread": lambda x, s: gradood.certify_spread(brightness, x, settings=s, radius=[0.0, 0.1]),
    "decision": lambda x, s: gradood.certify_decision(brightness, x, settings=s, threshold=0.5),
}


@pytest.mark.filterwarnings("ignore")  # of scores whose models cannot be told from others
@pytest.mark.parametrize("kind", CERTIFICATES)
def test_certificate(benchmark, kind, size):
    x = torch.rand(4, 1, 8, 8)
    settings = gradood.Smoothing(sigma=0.25, n=DRAWS[size])
    benchmark.group = f"certificate, {size}"
    benchmark.extra_info |= {"inputs": len(x), "draws": DRAWS[size]}
    benchmark.pedantic(partial(CERTIFICATES[kind], x, settings), rounds=3, warmup_rounds=1)
