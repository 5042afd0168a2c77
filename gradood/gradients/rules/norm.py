"""Normalisation layers: weight gradient ``Σ_t d x̂``, bias gradient ``Σ_t d``, per channel."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from gradood import ops
from gradood.errors import ModelError
from gradood.gradients.axis import SampleAxis
from gradood.gradients.rules.call import Call, Operator, batch_comes_first, tensors
from gradood.ops.row_norms import row_sqnorm


class _NormCall(Call):
    """Shared by every normalisation: both norms come from one pass over x and d."""

    normalises = True
    defers = True

    def __init__(self, x: Tensor, weight: Any, bias: Any) -> None:
        self.data = x
        self.operands = tensors(weight=weight, bias=bias)

    def operator(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> Operator | None:
        d = self._arrange(d)
        if "weight" not in roles:
            return Operator("bias_sqnorm", (self._channels_first(d),), ("bias",))
        assert x is not None
        return self._fused(self._arrange(x), d)

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        operator = self.operator(x, d, roles)
        assert operator is not None
        return operator.norms()

    def backward(self, x: Tensor, d: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        operator = self.backward_operator(x, d)
        assert operator is not None
        weight, bias, gradient = operator.results()
        return {"weight": weight, "bias": bias}, gradient.view(x.shape)

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        shape = self.operands[role].shape
        d = self._arrange(d)
        if role == "weight":
            assert x is not None
            d = d * self._normalised(self._arrange(x).to(d.dtype))
        return self._channels_first(d).sum(2).view(d.shape[0], *shape)

    @abstractmethod
    def _arrange(self, t: Tensor) -> Tensor:
        """Bring ``[N, …]`` into the layout of the fused operator."""

    @abstractmethod
    def _fused(self, x: Tensor, d: Tensor) -> Operator:
        """What gives both squared norms."""

    @abstractmethod
    def _normalised(self, x: Tensor) -> Tensor:
        """The normalised input x̂."""

    def _channels_first(self, t: Tensor) -> Tensor:
        return t


class BatchNormCall(_NormCall):
    """``x̂ = (x − running mean) / √(running variance + eps)``, in evaluation mode only."""

    channels = 1

    def __init__(
        self, x: Tensor, weight: Any, bias: Any, mean: Tensor, variance: Tensor, eps: float
    ) -> None:
        super().__init__(x, weight, bias)
        self.mean, self._variance, self._eps = mean, variance, eps

    @classmethod
    def bind(
        cls,
        function: Callable[..., Any],
        input: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Any = None,
        bias: Any = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Call | str:
        if training or running_mean is None or running_var is None:
            raise ModelError(
                "a batch norm layer uses the statistics of the batch, so a sample's gradient "
                "depends on the other samples; call model.eval() first (layers with "
                "track_running_stats=False need their statistics fixed)"
            )
        mean, var = (_accurate(t) for t in (running_mean, running_var))
        return cls(input, weight, bias, mean, var, eps)

    def refuses(self, axis: SampleAxis) -> str | None:
        return batch_comes_first(axis)

    def takes_over(self) -> bool:
        # PyTorch's own reads x and d once more for sums that are not asked for.
        assert self.data is not None
        fused = ops.offers("batch_norm_backward_sqnorm", self.data)
        return fused and not self.axis.merged and self.data.requires_grad

    def measures(self) -> bool:
        x = self.data
        assert x is not None
        if self.axis.merged or not ops.offers("batch_norm_sums", x):
            return False
        dense = x.is_contiguous() or x.movedim(1, -1).is_contiguous()
        floats = all(t.dtype == torch.float32 for t in (x, self.mean, *self.operands.values()))
        # The kernel has one task a sample, PyTorch's own has one a channel.
        return dense and floats and len(x) >= torch.get_num_threads()

    def measured(self) -> tuple[Tensor, Tensor]:
        x, weight, bias = self.data, self.operands.get("weight"), self.operands.get("bias")
        out, sums = ops.batch_norm_sums(x, self.mean, self._variance, weight, bias, self._eps)
        return out, sums

    def backward_operator(self, x: Tensor, d: Tensor) -> Operator:
        scale = self.operands.get("weight")
        scale = None if scale is None else scale.detach()
        arguments = self._arrange(x), self._arrange(d), self.mean, self._variance, scale
        return Operator("batch_norm_backward_sqnorm", (*arguments, self._eps))

    def _arrange(self, t: Tensor) -> Tensor:
        return channels_first(t, self.axis.merged)

    def _fused(self, x: Tensor, d: Tensor) -> Operator:
        return Operator("batch_norm_sqnorm", (x, d, self.mean, self._variance, self._eps))

    def _normalised(self, x: Tensor) -> Tensor:
        return (x - self.mean[:, None]) * torch.rsqrt(self._variance + self._eps)[:, None]


class GroupNormCall(_NormCall):
    """``x̂`` over groups of channels; instance norm is one channel a group."""

    channels = 1

    def __init__(self, x: Tensor, weight: Any, bias: Any, groups: int, eps: float) -> None:
        super().__init__(x, weight, bias)
        self.groups, self.eps = groups, eps

    @classmethod
    def bind(
        cls,
        function: Callable[..., Any],
        input: Tensor,
        num_groups: int,
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
    ) -> Call | str:
        return cls(input, weight, bias, num_groups, eps)

    def refuses(self, axis: SampleAxis) -> str | None:
        return batch_comes_first(axis)

    def operator(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> Operator | None:
        return None if self.axis.merged else super().operator(x, d, roles)

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        if self.axis.merged:  # gradients of a sample's images are added before they are squared
            return {role: row_sqnorm(self.gradient(x, d, role)) for role in roles}
        return super().norms(x, d, roles)

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        if not self.axis.merged:
            return super().gradient(x, d, role)
        images = super().gradient(None if x is None else x.flatten(0, 1), d.flatten(0, 1), role)
        total: Tensor = images.unflatten(0, d.shape[:2]).sum(1)
        return total

    def _arrange(self, t: Tensor) -> Tensor:
        return channels_first(t, False)

    def _fused(self, x: Tensor, d: Tensor) -> Operator:
        return Operator("group_norm_sqnorm", (x, d, self.groups, self.eps))

    def _normalised(self, x: Tensor) -> Tensor:
        rows = x.reshape(x.shape[0], self.groups, -1)
        return functional.layer_norm(rows, rows.shape[2:], eps=self.eps).view_as(x)


class InstanceNormCall(GroupNormCall):
    """``x̂`` over the positions of every channel of every sample."""

    @classmethod
    def bind(  # type: ignore[override]
        cls,
        function: Callable[..., Any],
        input: Tensor,
        running_mean: Tensor | None = None,
        running_var: Tensor | None = None,
        weight: Any = None,
        bias: Any = None,
        use_input_stats: bool = True,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Call | str:
        if not use_input_stats:
            return BatchNormCall.bind(
                function, input, running_mean, running_var, weight, bias, False, momentum, eps
            )
        return cls(input, weight, bias, input.shape[1], eps)


class LayerNormCall(_NormCall):
    """``x̂`` over the last dimensions, to zero mean and unit variance."""

    rms = False

    def __init__(self, x: Tensor, weight: Any, bias: Any, shape: Sequence[int], eps: float) -> None:
        super().__init__(x, weight, bias)
        self.dims, self.width, self.eps = len(shape), prod(shape), eps

    @classmethod
    def bind(
        cls,
        function: Callable[..., Any],
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Any = None,
        bias: Any = None,
        eps: float = 1e-5,
    ) -> Call | str:
        if input.dim() <= len(normalized_shape):
            return "the input has no batch dimension"
        return cls(input, weight, bias, normalized_shape, eps)

    def refuses(self, axis: SampleAxis) -> str | None:
        assert self.data is not None
        if axis.dim >= self.data.dim() - self.dims:
            return "the samples lie along the features"
        return None

    def takes_over(self) -> bool:
        assert self.data is not None
        fused = ops.offers("layer_norm_backward_sqnorm", self.data) and "weight" in self.operands
        first = self.axis.dim == 0 and not self.axis.merged
        return fused and first and self.data.requires_grad

    def backward_operator(self, x: Tensor, d: Tensor) -> Operator:
        scale = self.operands["weight"].detach().flatten()
        arguments = self._arrange(x), self._arrange(d), scale, self.eps, self.rms
        return Operator("layer_norm_backward_sqnorm", arguments)

    def _arrange(self, t: Tensor) -> Tensor:
        return t.reshape(len(t), -1, self.width)

    def _fused(self, x: Tensor, d: Tensor) -> Operator:
        return Operator("layer_norm_sqnorm", (x, d, self.eps, self.rms))

    def _normalised(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, (self.width,), eps=self.eps)

    def _channels_first(self, t: Tensor) -> Tensor:
        return t.transpose(1, 2)


class RMSNormCall(LayerNormCall):
    """``x̂ = x / √(mean x² + eps)`` over the last dimensions."""

    rms = True

    @classmethod
    def bind(  # type: ignore[override]
        cls,
        function: Callable[..., Any],
        input: Tensor,
        normalized_shape: Sequence[int],
        weight: Any = None,
        eps: float | None = None,
    ) -> Call | str:
        # PyTorch computes half-precision inputs in float32 and takes float32's eps for them.
        dtype = torch.promote_types(input.dtype, torch.float32)
        eps = torch.finfo(dtype).eps if eps is None else eps
        return cls(input, weight, None, normalized_shape, eps)

    def _normalised(self, x: Tensor) -> Tensor:
        return x * (x.square().mean(2, keepdim=True) + self.eps).rsqrt()


def _accurate(statistic: Tensor) -> Tensor:
    """A running statistic in float32 or better, without its graph."""
    statistic = statistic.detach() if statistic.requires_grad else statistic
    return statistic.float() if statistic.dtype in _HALF else statistic


_HALF = (torch.float16, torch.bfloat16)


def channels_first(t: Tensor, merged: bool) -> Tensor:
    """View ``[N, C, …]``, or ``[N, m, C, …]`` where images were merged, as ``[N, C, T]``."""
    t = t.transpose(1, 2) if merged else t
    return t.flatten(2) if t.dim() > 2 else t.unsqueeze(2)


RULES: dict[Callable[..., Any], type[Call]] = {
    functional.batch_norm: BatchNormCall,
    functional.group_norm: GroupNormCall,
    functional.instance_norm: InstanceNormCall,
    functional.layer_norm: LayerNormCall,
    functional.rms_norm: RMSNormCall,
}
