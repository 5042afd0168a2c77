"""Balls that attacks must stay in: projection, steepest direction, starting points."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from gradood.errors import InputError
from gradood.inputs import require_one_tensor

Norm: TypeAlias = Literal["linf", "l2"]
Limits: TypeAlias = "tuple[float, float] | None"

#: By how much distances stay below epsilon, as a share of it: a distance that is computed in
#: float32 may be rounded up.
_MARGIN = 2.0**-22
_BISECTIONS = 20


class Ball:
    """All y with ``‖y − x_n‖ ≤ epsilon_n`` and ``low ≤ y ≤ high``, for each of n centres.

    Args:
        centres: Floating point ``[n, ...]``, within the limits; points have the same dtype.
        norm: "linf" or "l2".
        epsilon: Float64 ``[n]``, at least 0.
        limits: (low, high), or None for none.
    """

    def __init__(self, centres: Tensor, norm: Norm, epsilon: Tensor, limits: Limits) -> None:
        # Inference tensors cannot be part of a graph.
        self.centres = centres.clone() if centres.is_inference() else centres.detach()
        self.norm = norm
        self.epsilon = self._of_inputs(epsilon)
        self._limits = limits
        self._reach = self.epsilon * (1 - _MARGIN)

    def project(self, points: Tensor) -> Tensor:
        """The nearest points ``[n, ...]`` of the balls.

        For l2 within limits, ``y = clamp(x + s (p - x))`` with the largest s in [0, 1] for which
        ``‖y - x‖ <= epsilon``: what the optimality conditions leave, since x is within the limits.
        """
        offset = points.double() - self.centres
        if self.norm == "linf":
            offset = offset.clamp(-self._reach, self._reach)
        else:
            offset = self._shorten(offset)
        return self._limited(self._rounded(offset))

    def ascend(self, points: Tensor, gradient: Tensor, size: Tensor | float) -> Tensor:
        """Points moved by ``size`` (``[n]``, or one for all) in the steepest direction, projected.

        Steepest within the norm: the sign of the gradient for l∞, ``g / ‖g‖`` for l2, where g
        leaves out what points past a limit that has been reached.
        """
        gradient = gradient.double().nan_to_num()
        if self.norm == "linf":
            direction = gradient.sign()
        else:
            if self._limits is not None:
                low, high = self._limits
                stuck = ((points <= low) & (gradient < 0)) | ((points >= high) & (gradient > 0))
                gradient = gradient.masked_fill(stuck, 0)
            # Scaled first: the square of a tiny gradient, of a confident prediction, would vanish.
            largest = self._of_inputs(gradient.flatten(1).abs().amax(1))
            gradient = gradient / largest.clamp_min(1e-300)
            direction = gradient / self._length(gradient).clamp_min(1e-300)
        if isinstance(size, Tensor):
            size = self._of_inputs(size)
        return self.project(points + size * direction)

    def uniform(self, noise: Tensor, gaussian: Tensor) -> Tensor:
        """Random points of the balls, projected to the limits.

        Args:
            noise: ``[n, ...]``, uniform in [0, 1).
            gaussian: ``[n, ...]``, standard normal: the direction of l2 points.
        """
        if self.norm == "linf":
            return self.project(self.centres + (2 * noise.double() - 1) * self.epsilon)
        radius = self._of_inputs(noise.double().flatten(1)[:, 0] ** (1 / noise[0].numel()))
        direction = gaussian.double() / self._length(gaussian).clamp_min(1e-300)
        return self.project(self.centres + radius * self.epsilon * direction)

    def less_contrast(self) -> Tensor:
        """The centres, moved as far towards their own mean grey as the balls reach."""
        grey = self._of_inputs(self.centres.double().flatten(1).mean(1))
        return self.project(grey.expand_as(self.centres))

    def rows(self, rows: Tensor) -> Ball:
        """The balls of some centres."""
        return Ball(self.centres[rows], self.norm, self.epsilon.flatten()[rows], self._limits)

    def _of_inputs(self, numbers: Tensor) -> Tensor:
        """``[n]`` in a shape that broadcasts over inputs."""
        return numbers.to(self.centres.device).view(-1, *[1] * (self.centres.dim() - 1))

    def _length(self, offset: Tensor) -> Tensor:
        return self._of_inputs(torch.linalg.vector_norm(offset.double().flatten(1), dim=1))

    def _rounded(self, offset: Tensor) -> Tensor:
        """``centres + offset`` in the dtype of the centres, rounded towards them: still inside."""
        centres = self.centres.double()
        points = (centres + offset).to(self.centres.dtype)
        further = (points.double() - centres).abs() > offset.abs()
        return torch.where(further, torch.nextafter(points, self.centres), points)

    def _limited(self, points: Tensor) -> Tensor:
        return points if self._limits is None else points.clamp(*self._limits)

    def _shorten(self, offset: Tensor) -> Tensor:
        """The largest multiple up to 1 that keeps each offset, clamped to the limits, in reach."""
        length = self._length(offset)
        scale = (self._reach / length.clamp_min(1e-300)).clamp_max(1)
        if self._limits is None:
            return offset * scale
        longer = torch.ones_like(scale)  # ``scale`` is short enough: clamping shortens further
        for _ in range(_BISECTIONS):
            middle = (scale + longer) / 2
            fits = self._length(self._clamped(offset * middle)) <= self._reach
            scale, longer = torch.where(fits, middle, scale), torch.where(fits, longer, middle)
        return self._clamped(offset * scale)

    def _clamped(self, offset: Tensor) -> Tensor:
        """Offsets from the centres to points within the limits."""
        if self._limits is None:
            return offset
        low, high = self._limits
        return offset.clamp(low - self.centres.double(), high - self.centres.double())


def make_ball(x: Tensor, norm: Norm, epsilon: float | Tensor, limits: Limits) -> Ball:
    """The balls about ``x``, checked.

    Raises:
        InputError: ``x`` is not float ``[N, ...]`` within the limits, the norm is not known, or
            ``epsilon`` is negative, not finite, or neither a number nor ``[N]``.
    """
    require_one_tensor(x)
    if not x.is_floating_point() or x.dim() < 2:
        raise InputError(f"images must be float [N, ...], got {x.dtype} {list(x.shape)}")
    low, high = limits if limits is not None else (-torch.inf, torch.inf)
    if not bool(((x >= low) & (x <= high) & x.isfinite()).all()):
        raise InputError(f"images must be finite and in [{low:g}, {high:g}], these leave the range")
    if norm not in ("linf", "l2"):
        raise InputError(f'norm = {norm!r}; expected "linf" or "l2"')
    radius = torch.as_tensor(epsilon, dtype=torch.float64, device="cpu")
    if radius.shape not in ((), (len(x),)):
        raise InputError(f"epsilon has shape {list(radius.shape)}; give a number or [{len(x)}]")
    if not bool(((radius >= 0) & radius.isfinite()).all()):
        raise InputError(f"epsilon = {epsilon}; expected a radius >= 0")
    return Ball(x, norm, radius.expand(len(x)), limits)
