"""Parameters that meet a batch element by element: position embeddings, scales, slopes, bounds.

Every element of the output depends on one element of each operand, so its derivative is a tensor
like the output: a per-sample gradient is d times that, summed wherever the operand repeats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from gradood.errors import first_line
from gradood.gradients.axis import SampleAxis
from gradood.gradients.rules.call import Call
from gradood.gradients.source import is_source
from gradood.ops.row_norms import row_sqnorm

_TERMS = ("term", "other term")
_FACTORS = ("factor", "second factor", "third factor", "fourth factor")


class BroadcastCall(Call):
    """``y = f(p, …)``, element by element: d times ``∂f/∂p``, summed where p repeats.

    The derivative is the number ``slope`` for a term of a sum. For factors it is a tensor: the data
    ``x``, which has the shape of the output, so that it is split into samples as d is. Derivatives
    with respect to several operands stand beside one another in one more dimension.
    """

    needs_data: ClassVar[frozenset[str]] = frozenset(_FACTORS)

    def __init__(
        self,
        operands: Mapping[str, Tensor],
        output: torch.Size,
        derivatives: Sequence[Tensor] = (),
        slopes: Mapping[str, float] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        self.operands = operands
        self.output = output
        self.data = None
        if derivatives:
            every = [t.expand(output) for t in derivatives]
            self.data = every[0] if len(every) == 1 else torch.stack(every, -1)
        self._several = len(derivatives) > 1
        self._slopes = slopes or {}
        #: Where an operand's dimensions are not the last ones of the output.
        self._shapes = shapes or {}

    @property
    def name(self) -> str:
        return "broadcast"

    @classmethod
    def bind(cls, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Call | str:
        if function in _BINDERS:
            return _BINDERS[function](*args, **kwargs)
        return _bind_pointwise(function, args, kwargs)

    def norms(self, x: Tensor | None, d: Tensor, roles: Sequence[str]) -> dict[str, Tensor]:
        return {role: row_sqnorm(self.gradient(x, d, role)) for role in roles}

    def gradient(self, x: Tensor | None, d: Tensor, role: str) -> Tensor:
        if role in self.needs_data:
            assert x is not None
            x = x[..., _FACTORS.index(role)] if self._several else x
            d = d * x.to(d.dtype)
        gradient = self._sum_repeats(d, role)
        slope = self._slopes.get(role, 1)
        return gradient if slope == 1 else gradient * slope

    def refuses(self, axis: SampleAxis) -> str | None:
        place = axis.dim - len(self.output)
        for role in self.operands:
            shape = self._shape(role)
            if len(shape) >= -place and shape[place] != 1:
                return "the parameter has a size of its own along the samples"
        return None

    def _shape(self, role: str) -> Sequence[int]:
        return self._shapes.get(role, self.operands[role].shape)

    def _sum_repeats(self, d: Tensor, role: str) -> Tensor:
        d = sum_repeats(d, self._shape(role), len(self.output), self.axis)
        return d.reshape(d.shape[0], *self.operands[role].shape)


def sum_repeats(d: Tensor, shape: Sequence[int], dims: int, axis: SampleAxis) -> Tensor:
    """Sum ``d`` ``[N, …]`` over every dimension in which an operand of ``shape`` has size one.

    Beside the samples, ``d`` has the output's ``dims`` dimensions; of these the batch dimension,
    where the operand has size one, is there only when it was merged.
    """
    padded = [1] * (dims - len(shape)) + list(shape)
    if not axis.merged:
        del padded[axis.dim]
    repeated = [i + 1 for i, size in enumerate(padded) if size == 1]
    accumulate = torch.promote_types(d.dtype, torch.float32)
    d = d.sum(repeated, dtype=accumulate) if repeated else d.to(accumulate)
    return d.reshape(d.shape[0], *shape)


def _bind_sum(left: Any, right: Any, *, alpha: float = 1) -> Call | str:
    return _sum((left, 1), (right, alpha))


def _bind_difference(left: Any, right: Any, *, alpha: float = 1) -> Call | str:
    return _sum((left, 1), (right, -alpha))


def _bind_reversed_difference(right: Any, left: Any, alpha: float = 1) -> Call | str:
    return _sum((left, 1), (right, -alpha))


def _sum(left: tuple[Any, float], right: tuple[Any, float]) -> Call | str:
    found = [(value, slope) for value, slope in (left, right) if is_source(value)]
    if len(found) == 2 and left[0] is right[0]:
        found = [(left[0], left[1] + right[1])]
    named = dict(zip(_TERMS, found, strict=False))
    operands = {role: value for role, (value, _) in named.items()}
    slopes = {role: slope for role, (_, slope) in named.items()}
    return BroadcastCall(operands, _common_shape([left[0], right[0]]), slopes=slopes)


def _bind_product(left: Any, right: Any) -> Call | str:
    if is_source(left) and is_source(right):
        return _bind_pointwise(torch.mul, (left, right), {})
    factor, x = (left, right) if is_source(left) else (right, left)
    if not isinstance(x, Tensor):
        return "a parameter times a number holds no samples"
    return BroadcastCall({"factor": factor}, _common_shape([left, right]), [x.detach()])


def _bind_product_in_place(left: Tensor, right: Any) -> Call | str:
    # The operator overwrites its input, which the gradient of the factor needs.
    return _bind_product(left.detach().clone(), right)


def _bind_prelu(x: Tensor, weight: Tensor) -> Call | str:
    shape = [1] * x.dim()
    shape[min(1, x.dim() - 1)] = weight.numel()
    slope = x.detach().clamp(max=0)
    return BroadcastCall({"factor": weight}, x.shape, [slope], shapes={"factor": shape})


def _bind_pointwise(function: Callable[..., Any], args: Any, kwargs: Any) -> Call | str:
    """Differentiate the operator itself, with every operand expanded to the output's shape."""
    tensors = [t for t in (*args, *kwargs.values()) if isinstance(t, Tensor)]
    shape = _common_shape(tensors)
    operands = {id(t): t for t in tensors if is_source(t)}
    leaves = {key: plain(t).expand(shape).requires_grad_() for key, t in operands.items()}

    def given(value: Any) -> Any:
        if id(value) in leaves:
            return leaves[id(value)]
        return plain(value) if isinstance(value, Tensor) else value

    arguments = list(map(given, args))
    if function.__name__.startswith("masked_fill"):  # it wants a value that is not expanded
        function = _fill
    if changes_in_place(function):
        arguments[0] = arguments[0].clone()
    named = {name: given(value) for name, value in kwargs.items() if name != "out"}
    with torch.enable_grad():
        try:
            out = function(*arguments, **named)
            slopes = torch.autograd.grad(
                out, list(leaves.values()), torch.ones_like(out), allow_unused=True
            )
        except RuntimeError as error:
            return f"{function.__name__} has no derivative: {first_line(error)}"
    if out.shape != shape or out.is_complex():
        return f"{function.__name__} does not work element by element"
    derivatives = [out.new_zeros(()) if s is None else s.to(out.dtype) for s in slopes]
    roles = dict(zip(_FACTORS, operands.values(), strict=False))
    return BroadcastCall(roles, shape, derivatives)


def _fill(x: Tensor, mask: Tensor, value: Any) -> Tensor:
    return torch.where(mask, value, x)


def _bind_expand(operand: Tensor, *sizes: Any, size: Any = None) -> Call | str:
    sizes = sizes if size is None else (size,)
    given = list(sizes if isinstance(sizes[0], int) else sizes[0])
    kept = [1] * (len(given) - operand.dim()) + list(operand.shape)
    output = [k if g == -1 else g for g, k in zip(given, kept, strict=True)]
    return BroadcastCall({"term": operand}, torch.Size(output))


def _bind_expand_as(operand: Tensor, other: Tensor) -> Call | str:
    return BroadcastCall({"term": operand}, other.shape)


def _common_shape(values: Sequence[Any]) -> torch.Size:
    shapes = [v.shape for v in values if isinstance(v, Tensor)]
    return torch.Size(torch.broadcast_shapes(*shapes))


def plain(t: Tensor) -> Tensor:
    """A tensor's value as a constant that autograd may save."""
    return t.detach().clone() if t.is_inference() else t.detach()


def changes_in_place(function: Callable[..., Any]) -> bool:
    """Whether an operator writes its result into its first argument."""
    name = function.__name__
    return name.endswith("_") and not name.endswith("__") or name.startswith("__i")


def _variants(*names: str) -> Iterator[Callable[..., Any]]:
    """Every form in which PyTorch offers an operator: function, method, operator, in place."""
    for name in names:
        forms = (name, f"{name}_", f"__{name}__", f"__r{name}__", f"__i{name}__")
        for owner in (torch, Tensor, functional, torch.special):
            yield from (getattr(owner, form) for form in forms if hasattr(owner, form))


_BINDERS: dict[Callable[..., Any], Callable[..., Call | str]] = {
    **dict.fromkeys(_variants("add"), _bind_sum),
    **dict.fromkeys(_variants("sub", "subtract"), _bind_difference),
    **dict.fromkeys((torch.rsub, Tensor.__rsub__), _bind_reversed_difference),
    **dict.fromkeys(_variants("mul", "multiply"), _bind_product),
    **dict.fromkeys((Tensor.mul_, Tensor.multiply_, Tensor.__imul__), _bind_product_in_place),
    **dict.fromkeys(_variants("prelu"), _bind_prelu),
    **dict.fromkeys((Tensor.expand, torch.broadcast_to, Tensor.broadcast_to), _bind_expand),
    Tensor.expand_as: _bind_expand_as,
}

RULES: dict[Callable[..., Any], type[Call]] = dict.fromkeys(
    (
        *_BINDERS,
        *_variants(
            "div", "divide", "true_divide", "truediv", "pow", "float_power", "where", "clamp",
            "clip", "clamp_min", "clamp_max", "maximum", "minimum", "fmax", "fmin", "max", "min",
            "addcdiv", "addcmul", "lerp", "hypot", "atan2", "arctan2", "logaddexp", "logaddexp2",
            "xlogy", "xlog1py", "copysign", "fmod", "remainder", "ldexp", "masked_fill",
        ),
    ),
    BroadcastCall,
)  # fmt: skip
