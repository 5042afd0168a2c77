"""Interval bound propagation: what a network can give for any input of a box."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradood.arguments import checked
from gradood.errors import InputError, ModelError
from gradood.results import Result


@dataclass(frozen=True)
class Interval(Result):
    """Elementwise ``lower <= value <= upper``, two tensors of one shape."""

    lower: Tensor
    upper: Tensor

    @property
    def middle(self) -> Tensor:
        """``(lower + upper) / 2``."""
        return (self.lower + self.upper) / 2

    @property
    def radius(self) -> Tensor:
        """``(upper - lower) / 2``."""
        return (self.upper - self.lower) / 2


@checked
def box(x: Tensor, *, epsilon: float) -> Interval:
    """All inputs in [0, 1] within ``epsilon`` of x in every pixel, ``|x' - x|_inf <= epsilon``.

    Raises:
        InputError: ``epsilon`` is negative, or x lies outside [0, 1]: then the box would be empty.
    """
    if not epsilon >= 0:
        raise InputError(f"epsilon = {epsilon}; expected a number from 0 on")
    if x.numel() and not (0 <= float(x.min()) and float(x.max()) <= 1):
        raise InputError("x must lie in [0, 1]: a box is clipped to it")
    return Interval((x - epsilon).clamp(min=0), (x + epsilon).clamp(max=1))


#: Unit roundoff of float32: of a sum or product, the relative error is at most this.
FLOAT32 = 2.0**-24


@checked
def propagate(network: nn.Module, interval: Interval, *, unit: float = 0.0) -> Interval:
    """Bounds of ``network(x)`` for every x of an interval ``[N, ...]``.

    For affine layers ``W x + b`` of an interval with middle m and radius r: middle ``W m + b``,
    radius ``|W| r``, the tightest box. Monotone layers map both ends (Gowal et al., "On the
    effectiveness of interval bound propagation", 2018, arXiv 1810.12715, equations 6 and 7). Each
    box is the smallest for its layer; for the network it is a bound, not the range.

    The arithmetic is that of the tensors: give float64 weights and inputs for bounds that float32
    rounding does not touch. With ``unit`` they also hold for a network that rounds: a sum of k
    products is off by at most ``g_k sum |w| |x|``, ``g_k = k unit / (1 - k unit)``, in any order of
    summation (Higham, "Accuracy and Stability of Numerical Algorithms", 2002, section 3.1), and
    every box grows by that.

    Args:
        network: ``Sequential`` of ``Linear``, ``Conv2d``, ``BatchNorm2d`` in eval mode,
            ``AvgPool2d``, ``AdaptiveAvgPool2d``, ``MaxPool2d``, ``ReLU``, ``Flatten``, ``Identity``
            and further ``Sequential``.
        interval: Lower and upper ends.
        unit: Unit roundoff of the network that runs, ``FLOAT32``; 0 for exact arithmetic. It does
            not cover convolutions by Fourier or Winograd transforms, nor tf32.

    Raises:
        ModelError: Another layer, padding that is not zeros, or statistics of the batch in use.
    """
    if isinstance(network, nn.Sequential):
        for layer in network:
            interval = propagate(layer, interval, unit=unit)
        return interval
    for kind, rule in _RULES:
        if isinstance(network, kind):
            return rule(network, interval, unit)
    names = ", ".join(k.__name__ for kind, _ in _RULES for k in _kinds(kind))
    raise ModelError(
        f"there is no interval bound for {type(network).__name__}; use Sequential of {names}"
    )


def _kinds(kind: type | tuple[type, ...]) -> tuple[type, ...]:
    return kind if isinstance(kind, tuple) else (kind,)


def _affine(middle: Tensor, radius: Tensor, error: Tensor | None = None) -> Interval:
    radius = radius if error is None else radius + error
    return Interval(middle - radius, middle + radius)


def _largest(interval: Interval) -> Tensor:
    return torch.maximum(interval.lower.abs(), interval.upper.abs())


def _growth(operations: int, unit: float) -> float:
    """``g_k``, with room for the float64 rounding of the bound itself."""
    return 1.001 * operations * unit / (1 - operations * unit)


def _linear(layer: nn.Linear, interval: Interval, unit: float) -> Interval:
    error = None
    if unit:
        bias = None if layer.bias is None else layer.bias.abs()
        sizes = F.linear(_largest(interval), layer.weight.abs(), bias)
        error = _growth(layer.in_features + 2, unit) * sizes
    return _affine(layer(interval.middle), F.linear(interval.radius, layer.weight.abs()), error)


def _conv(layer: nn.Conv2d, interval: Interval, unit: float) -> Interval:
    if layer.padding_mode != "zeros":
        raise ModelError(f"there is no interval bound for padding_mode = {layer.padding_mode!r}")
    weight = layer.weight.abs()

    def convolved(x: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)

    error = None
    if unit:
        bias = None if layer.bias is None else layer.bias.abs()
        sizes = convolved(_largest(interval), bias)
        error = _growth(weight[0].numel() + 2, unit) * sizes
    return _affine(layer(interval.middle), convolved(interval.radius, None), error)


def _batch_norm(layer: nn.BatchNorm2d, interval: Interval, unit: float) -> Interval:
    if layer.training or layer.running_var is None or layer.running_mean is None:
        raise ModelError("batch normalisation uses statistics of the batch; call eval() first")
    gain = (layer.running_var + layer.eps).rsqrt()
    gain = gain if layer.weight is None else gain * layer.weight.abs()
    error = None
    if unit:
        sizes = (_largest(interval) + layer.running_mean.abs()[:, None, None]) * gain[:, None, None]
        sizes = sizes if layer.bias is None else sizes + layer.bias.abs()[:, None, None]
        error = _growth(8, unit) * sizes  # however mean, variance, weight and bias are merged
    return _affine(layer(interval.middle), interval.radius * gain[:, None, None], error)


def _monotone(layer: nn.Module, interval: Interval, unit: float) -> Interval:
    del unit  # they choose among numbers, or keep them
    return Interval(layer(interval.lower), layer(interval.upper))


def _average(layer: nn.Module, interval: Interval, unit: float) -> Interval:
    lower, upper = layer(interval.lower), layer(interval.upper)
    if not unit:
        return Interval(lower, upper)
    terms = interval.lower.shape[-1] * interval.lower.shape[-2]
    error = _growth(terms + 1, unit) * layer(_largest(interval))
    return Interval(lower - error, upper + error)


_RULES: tuple[tuple[type | tuple[type, ...], Callable[..., Interval]], ...] = (
    (nn.Linear, _linear),
    (nn.Conv2d, _conv),
    (nn.BatchNorm2d, _batch_norm),
    ((nn.AvgPool2d, nn.AdaptiveAvgPool2d), _average),
    ((nn.ReLU, nn.MaxPool2d, nn.Flatten, nn.Identity), _monotone),
)


@checked
def upper_bound(network: nn.Module, x: Tensor, *, epsilon: float, unit: float = 0.0) -> Tensor:
    """``max network(x')`` over ``|x' - x|_inf <= epsilon``, x' in [0, 1], bounded from above.

    Args:
        network: See ``propagate``.
        x: ``[N, ...]`` in [0, 1].
        epsilon: L-infinity radius, in units of the input.
        unit: See ``propagate``.
    """
    bound: Tensor = propagate(network, box(x, epsilon=epsilon), unit=unit).upper
    return bound


@checked
def confidence_bound(logits: Interval) -> Tensor:
    r"""The largest softmax of any class, for logits in a box: ``[N, C]`` twice -> ``[N]``.

    ``max_i 1 / (1 + sum_{j != i} exp(l_j - u_i))``. (``softmax(u)`` is no bound: with all u equal
    it says 1 / C, whatever the lower ends.)
    """
    lower, upper = logits.lower, logits.upper
    classes = upper.shape[1]
    # u_i against every other l_j, and against itself.
    rivals = lower[:, None, :].expand(-1, classes, -1).clone()
    rivals.diagonal(dim1=1, dim2=2).copy_(upper)
    shares = (upper - torch.logsumexp(rivals, 2)).exp()
    return shares.amax(1)
