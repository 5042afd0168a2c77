"""Every operator in Triton on CUDA: arrange the tensors, choose the algorithm, launch ``kernels/``.

Formulas as in ``reference.py``; float32, bfloat16 and float16 inputs in any layout, sums in
float32. ``precision``, as a context, says how float32 operands are multiplied. Under
``TRITON_INTERPRET=1`` the same kernels run on CPU tensors, slowly.

No figure of this backend was measured on a GPU yet; its kernels are tested in the interpreter and
compiled for the GPUs and with the versions of Triton in ``benchmarks/results/triton_matrix.md``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, lru_cache, wraps
from typing import Any, TypeVar, cast

import torch
import triton
from torch import Tensor
from triton.runtime import driver

from gradood.errors import GradoodError
from gradood.kernels import affine, gram, launch, noise, token_norm, votes
from gradood.kernels.launch import precision as precision
from gradood.kernels.prepared import KEPT
from gradood.ops import gpu_state, triton_choice
from gradood.ops.triton_choice import algorithm as algorithm

NAME = "triton"
#: PyTorch's own kernels make noise in float64.
OPERATORS = (
    *("bias_sqnorm", "linear_sqnorm", "conv_sqnorm", "embedding_sqnorm"),
    *("batch_norm_sqnorm", "layer_norm_sqnorm", "group_norm_sqnorm"),
    *("batch_norm_backward_sqnorm", "layer_norm_backward_sqnorm"),
    *("noisy_batch", "vote_count"),
)
#: One read of d less, and of x where the statistics are its own.
TAKES_OVER = ("batch_norm_backward_sqnorm", "layer_norm_backward_sqnorm")

#: What the kernels are compiled and checked for: NVIDIA from compute capability 8.0, and these.
AMD = ("gfx942", "gfx950")
#: Triton before this lacks what the kernels use; PyTorch 2.6 brings it.
OLDEST = (3, 2)
_BLACKWELL = (3, 3)

Operator = TypeVar("Operator", bound=Callable[..., Any])

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: Offsets inside a sample are 32-bit, offsets of samples 64-bit.
_MOST_ELEMENTS = 2**31 - 2**16


def unavailable() -> str | None:
    """Return why this backend cannot be used on this machine, or None."""
    found = problem()
    if found is None or launch.INTERPRETING:
        return None if found is None else found.sentence
    if found.kind in (gpu_state.NO_BUILD, gpu_state.NO_DRIVER, gpu_state.NO_GPU):
        return (
            f"no GPU that Triton supports is visible: {found.sentence} (TRITON_INTERPRET=1 runs it "
            "on the CPU)"
        )
    return found.sentence


def problem() -> gpu_state.Problem | None:
    """What is missing for kernels to run on some GPU of this machine."""
    if _version(triton.__version__) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        return gpu_state.Problem(
            gpu_state.VERSION,
            f"Triton {triton.__version__} is older than {oldest}, which the kernels need; "
            "upgrade PyTorch, which brings it",
        )
    if launch.INTERPRETING:
        return None
    try:
        driver.active.get_current_target()
    except Exception as error:  # the driver is compiled here, in ways that change by version
        return gpu_state.of_driver(error)
    places = [torch.device("cuda", i) for i in range(torch.cuda.device_count())]
    reasons = [unsupported(place) for place in places or [torch.device("cpu")]]
    if None in reasons:
        return None
    return gpu_state.Problem(gpu_state.VERSION, "; ".join(dict.fromkeys(filter(None, reasons))))


def is_own_failure(error: Exception) -> bool:
    """Whether another backend may do what failed: compiling, loading or launching did."""
    return not isinstance(error, (GradoodError, torch.OutOfMemoryError))


def unsupported(device: torch.device) -> str | None:
    """Return why the kernels cannot run on one of several GPUs, or None."""
    with launch.on(device):
        found = driver.active.get_current_target()
    return _unsupported(found.backend, found.arch)


@cache
def _unsupported(kind: str, architecture: Any) -> str | None:
    if kind == "cuda" and architecture < 80:
        found = f"{architecture // 10}.{architecture % 10}"
        return f"the GPU has compute capability {found}, and the kernels need 8.0 or later"
    if kind == "cuda" and architecture >= 100 and _version(triton.__version__) < _BLACKWELL:
        return (
            f"Triton {triton.__version__} ends the process when it compiles for Blackwell; "
            f"{'.'.join(map(str, _BLACKWELL))} comes with PyTorch 2.7"
        )
    if kind == "hip" and architecture not in AMD:
        return f"the kernels were not checked for {architecture}, only for {' and '.join(AMD)}"
    return None


def reject(op: str, *args: object) -> str | None:
    """Return why this backend cannot serve a call, or None."""
    if op == "layer_norm_backward_sqnorm" and not token_norm.fits(*args[:2]):  # type: ignore[arg-type]
        return "tokens that do not fit registers"
    tensors = [a for a in args if isinstance(a, Tensor)]
    if not launch.INTERPRETING and tensors[0].device.type in ("cuda", "meta"):
        reason = unsupported(tensors[0].device)
        if reason is not None:
            return reason
    for t in tensors[:2]:
        if t.is_floating_point() and t.dtype not in _DTYPES:
            return f"{t.dtype} is left to PyTorch"
        if _extent(t.shape, t.stride()) > _MOST_ELEMENTS:
            return "a sample of 2³¹ elements or more"
    for t in tensors:
        if t.device.type != "cuda" and not (launch.INTERPRETING or _dry()):
            return f"tensor on {t.device}"
        if t.device != tensors[0].device:
            return f"tensors on {tensors[0].device} and {t.device}"
    if op == "conv_sqnorm" and tensors[0].dim() > 5:
        return "more than three spatial dimensions"
    return None


def _there(operator: Operator) -> Operator:
    """Run an operator with its first tensor's device as the current one.

    Tile sizes and the precision of products depend on it, and Triton launches there.
    """

    @wraps(operator)
    def run(first: Tensor, *args: Any) -> Any:
        with launch.on(first.device):
            return operator(first, *args)

    return cast(Operator, run)


@_there
def bias_sqnorm(d: Tensor) -> Tensor:
    """See ``reference.bias_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d)
    return affine.bias_sqnorm(d.transpose(1, 2))


@_there
def linear_sqnorm(x: Tensor, d: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """See ``reference.linear_sqnorm``."""
    if x.numel() == 0 or d.numel() == 0:
        return _zeros(d), bias_sqnorm(d.transpose(1, 2)) if bias else _zeros(d[:0])
    x, d = _alike(x, d)
    return triton_choice.linear(x, d, bias).both(x, d)


@_there
def conv_sqnorm(
    x: Tensor,
    d: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bias: bool,
) -> tuple[Tensor, Tensor]:
    """See ``reference.conv_sqnorm``."""
    if x.numel() == 0 or d.numel() == 0:
        return _zeros(d), bias_sqnorm(d.flatten(2)) if bias else _zeros(d[:0])
    x, d = _alike(x, d)
    sizes = tuple(kernel_size), tuple(stride), tuple(padding), tuple(dilation), groups
    return triton_choice.convolution(x, d, sizes, bias).both(x, d)


@_there
def batch_norm_sqnorm(
    x: Tensor, d: Tensor, mean: Tensor, variance: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See ``reference.batch_norm_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d), _zeros(d)
    known = affine.Statistics.per_channel(mean, torch.rsqrt(variance + eps))
    return affine.affine_sqnorm(x.transpose(1, 2), d.transpose(1, 2), known)


@_there
def batch_norm_backward_sqnorm(
    x: Tensor, d: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.batch_norm_backward_sqnorm``."""
    gradient = torch.empty_like(d)
    if d.numel() == 0:
        return _zeros(d), _zeros(d), gradient
    x, d, flows = (t.transpose(1, 2) for t in (x, d, gradient))
    rstd = torch.rsqrt(variance + eps)
    scale = rstd if weight is None else rstd * weight
    known = affine.Statistics.per_channel(mean, rstd)
    return *affine.affine_sqnorm(x, d, known, scale.float().contiguous(), flows), gradient


@_there
def layer_norm_sqnorm(x: Tensor, d: Tensor, eps: float, rms: bool) -> tuple[Tensor, Tensor]:
    """See ``reference.layer_norm_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d), _zeros(d)
    if not token_norm.fits(x, d):
        return affine.affine_sqnorm(x, d, affine.statistics_of(x, None, eps, rms))
    return token_norm.token_norm_sqnorm(x, d, eps, rms)


@_there
def layer_norm_backward_sqnorm(
    x: Tensor, d: Tensor, scale: Tensor, eps: float, rms: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See ``reference.layer_norm_backward_sqnorm``."""
    gradient = torch.empty_like(x)
    if d.numel() == 0:
        return _zeros(d), _zeros(d), gradient
    scale = scale.contiguous()
    return *token_norm.token_norm_sqnorm(x, d, eps, rms, scale, gradient), gradient


@_there
def group_norm_sqnorm(x: Tensor, d: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """See ``reference.group_norm_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d), _zeros(d)
    x, d = x.transpose(1, 2), d.transpose(1, 2)
    return affine.affine_sqnorm(x, d, affine.statistics_of(x, groups, eps, rms=False))


@_there
def embedding_sqnorm(indices: Tensor, d: Tensor, padding_idx: int) -> Tensor:
    """See ``reference.embedding_sqnorm``."""
    if d.numel() == 0:
        return _zeros(d)
    return gram.prepare_embedding(indices, d, padding_idx).both(indices, d)[0]


@_there
def noisy_batch(
    x: Tensor,
    rows: Tensor,
    inputs: Tensor,
    samples: Tensor,
    key: Tensor,
    sigma: float,
    low: float | None,
    high: float | None,
    mean: Tensor | None,
    rstd: Tensor | None,
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    """Noisy copies of rows of ``x``, see ``kernels.noise``."""
    if rows.numel() == 0 or x.numel() == 0:
        return torch.empty(len(rows), *x.shape[1:], dtype=dtype, device=x.device)
    mean, rstd = (t if t is None else t.float().contiguous() for t in (mean, rstd))
    rows, inputs, samples = rows.contiguous(), inputs.contiguous(), samples.contiguous()
    return noise.noisy_batch(
        x, rows, inputs, samples, key.contiguous(), sigma, low, high, mean, rstd, dtype,
        channels_last,
    )  # fmt: skip


@_there
def vote_count(
    values: Tensor, rows: Tensor, mode: str, thresholds: Tensor | None, inputs: int
) -> Tensor:
    """Counts of the values of each input, see ``kernels.votes``."""
    return votes.vote_count(values, rows.contiguous(), mode, thresholds, inputs)


def _dry() -> bool:
    """Whether launches are recorded instead of executed; see ``benchmarks.gpu.dry_driver``."""
    return not torch.cuda.is_available() and unavailable() is None


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".")[:2])


@lru_cache(KEPT)
def _extent(shape: tuple[int, ...], stride: tuple[int, ...]) -> int:
    """Elements between the first and the last of one sample."""
    return sum((size - 1) * step for size, step in zip(shape[1:], stride[1:], strict=True))


def _alike(x: Tensor, d: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one dtype, as matrix units want them."""
    if x.dtype == d.dtype:
        return x, d
    return x.float(), d.float()


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros(like.shape[0], dtype=torch.float32, device=like.device)
