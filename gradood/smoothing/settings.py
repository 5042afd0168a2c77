"""Settings of smoothing and of the confidence of certificates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor, nn

from gradood.arguments import checked, number_between, one_of
from gradood.errors import InputError

Denoiser = Callable[[Tensor, float], Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@checked
@dataclass(frozen=True, kw_only=True)
class Smoothing:
    """Gaussian smoothing ``x + sigma Z`` of a model, and the confidence of its certificates.

    Certificates are about the smoothed model: the random one that adds the noise, applies the
    denoiser if there is one, and then the model in the precision and layout chosen here. It may be
    random itself (dropout that is left on), provided that its randomness does not depend on x, and
    is drawn for every row: rows that influence one another, or share a coin, are an error.

    Attributes:
        sigma: Standard deviation of the noise, in units of the input.
        n: Noisy samples an input; for sequential tests the most.
        alpha: Probability, for each input, that its certificate is false; over a seed that is
            drawn after the input is chosen.
        seed: Of the noise, 64 bits; None draws one from the operating system for every
            certification, and the evidence records it. Whoever knows the seed beforehand can find
            inputs whose certificates are false: give one only to repeat a run, or as
            ``Commitment.open`` drew it. A certificate is a function of the seed, the number of the
            input and the model; batch size, order, threads and interruptions do not matter.
        denoiser: ``(noisy, sigma) -> clean``, applied to every noisy batch, or None; see
            ``smoothing.denoisers`` for diffusion networks. It adds no noise, and runs in a
            precision of its own.
        batch_size: Noisy copies drawn at once, rounded up to whole tiles; "auto" is four.
        n0: Samples of a stream of its own that choose the class, or the edges of a histogram.
        tile: Rows of every forward pass. It never varies within a run, since results of a model
            may vary with it in the last bit; "auto" depends on the size of an input and on the
            kind of device alone.
        clamp: Limits to which noisy inputs are clamped, or None.
        futility: Probability of giving up early on an input that deserves its certificate.
        dtype: "float32", "bfloat16" or "float16": of noisy inputs, and of a copy of the model.
        channels_last: Memory layout of noisy images, and of a copy of the model.
        fold_batch_norm: Merge batch normalisation into the convolution or linear layer before it.
        compile: Run ``torch.compile``'s version of the model.
        cuda_graph: Capture denoiser and model in a CUDA graph and replay it for every tile, so that
            launching kernels takes no time. For modules on a GPU that neither look at values nor
            copy from or to the CPU; not with ``compile``, which has graphs of its own.
        exact_grid: Round noisy inputs to multiples of 1/255, as 8-bit pictures are, instead of
            about sigma / 200. Certificates are sound in floating point with either; see
            ``smoothing.rounding``.
        progress: Show a progress bar on stderr; None shows it only on a terminal.

    Raises:
        InputError: A value is out of range.
    """

    sigma: float
    n: int = 10_000
    alpha: float = 1e-3
    seed: int | None = None
    denoiser: Denoiser | None = None
    batch_size: int | Literal["auto"] = "auto"
    n0: int = 64
    tile: int | Literal["auto"] = "auto"
    clamp: tuple[float, float] | None = None
    futility: float = 0.02
    dtype: str = "float32"
    channels_last: bool = False
    fold_batch_norm: bool = False
    compile: bool = False
    cuda_graph: bool = False
    exact_grid: bool = False
    progress: bool | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise InputError(f"sigma = {self.sigma}; expected a positive number")
        number_between("alpha", self.alpha)
        if not 0 <= self.futility < 1:
            raise InputError(f"futility = {self.futility}; expected a probability in [0, 1)")
        for name in ("n", "n0", "batch_size", "tile"):
            value, most = getattr(self, name), 2 ** (32 if name in ("n", "n0") else 31) - 1
            if value != "auto" and not 1 <= value <= most:
                raise InputError(f"{name} = {value!r}; expected an integer from 1 to {most}")
        if self.seed is not None and not -(2**63) <= self.seed < 2**63:
            raise InputError(f"seed = {self.seed}; expected 64 bits, signed")
        one_of("dtype", self.dtype, DTYPES)
        if self.cuda_graph and self.compile:
            raise InputError("cuda_graph and compile exclude one another; leave one of them off")
        if self.clamp is not None:
            low, high = self.clamp
            if not low < high:
                raise InputError(f"clamp = {self.clamp}; expected (low, high) with low < high")

    def as_json(self) -> dict[str, Any]:
        """The settings on which a certificate depends, as JSON values."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["denoiser"] = None if self.denoiser is None else _name_of(self.denoiser)
        values["clamp"] = None if self.clamp is None else [float(v) for v in self.clamp]
        del values["batch_size"], values["cuda_graph"], values["progress"]
        return values


def _name_of(denoiser: Denoiser) -> str:
    name: str = getattr(denoiser, "__qualname__", type(denoiser).__qualname__)
    return f"{name}({denoiser.extra_repr()})" if isinstance(denoiser, nn.Module) else name
