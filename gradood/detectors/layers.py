"""How unlike normal ones the channels of every layer are: no classes, few inputs, little memory."""

from __future__ import annotations

import torch
from torch import Tensor

from gradood.detectors.features import CONSTANT
from gradood.detectors.novelty import Learned
from gradood.detectors.whitening import covariance, whitening_matrix
from gradood.gradients import GradientNorms

#: Added to the powers of a layer, relative to their mean: a silent channel has no logarithm.
SILENCE = 1e-2

#: Least deviation of a layer's distances, relative to their mean: those of as few inputs as a
#: layer has channels are all alike.
LEAST_SPREAD = 0.1

LEARNED = ("layer_means", "layer_scales", "layer_whitenings", "layer_sizes")


def read_layers(norms: GradientNorms) -> list[Tensor]:
    """By layer, the means and the log powers of its channels, ``[N, 2 C]``."""
    assert norms.channels is not None
    found = []
    for layer in norms.channels.float().split(list(norms.channel_counts), 2):
        mean, power = layer.unbind(1)
        floor = SILENCE * power.mean(1, keepdim=True) + torch.finfo(power.dtype).tiny
        found.append(torch.cat([mean, (power + floor).log()], 1))
    return found


def fit_layers(norms: GradientNorms) -> Learned:
    """Means, deviations and whitening matrices, of all layers in one row each.

    A layer's matrix is divided by the deviation of its distances, so that each counts the same: the
    distances of early layers vary three times as much.
    """
    layers = [layer.double() for layer in read_layers(norms)]
    means, scales, whitenings = [], [], []
    for layer in layers:
        deviation, mean = torch.std_mean(layer, 0)
        # What is constant on normal inputs counts for nothing.
        scale = torch.where(deviation > CONSTANT, 1 / deviation, 0.0)
        means.append(mean)
        scales.append(scale)
        centred = (layer - mean) * scale
        whitening = whitening_matrix(covariance(centred))
        deviation, usual = torch.std_mean(_distances(centred @ whitening))
        spread = torch.maximum(deviation, LEAST_SPREAD * usual)
        whitenings.append((whitening / spread).flatten())
    return {
        "layer_means": torch.cat(means),
        "layer_scales": torch.cat(scales),
        "layer_whitenings": torch.cat(whitenings),
        "layer_sizes": torch.tensor(
            [layer.shape[1] for layer in layers], dtype=torch.int64, device=means[0].device
        ),
    }


def score_layers(norms: GradientNorms, learned: Learned) -> Tensor:
    """``Σ_l √(‖W_l (s_l − μ_l)‖² / d_l)``, s_l the vector of layer l, μ_l and W_l as learned."""
    sizes = learned["layer_sizes"].tolist()
    total = norms.logits.new_zeros(len(norms.logits), dtype=learned["layer_means"].dtype)
    whitenings = learned["layer_whitenings"].split([size * size for size in sizes])
    parts = zip(
        [layer.to(learned["layer_means"].dtype) for layer in read_layers(norms)],
        *(learned[name].split(sizes) for name in ("layer_means", "layer_scales")),
        whitenings,
        strict=True,
    )
    for layer, mean, scale, whitening in parts:
        size = len(mean)
        whitened = ((layer - mean) * scale) @ whitening.view(size, size)
        total = total + _distances(whitened)
    return total


def _distances(whitened: Tensor) -> Tensor:
    return (whitened.square().mean(1) + 1e-12).sqrt()
