"""Are a backend's operators right? Each against the float64 reference, noise bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gradood.ops import philox, reference

#: What all backends agree to; half-precision inputs are summed in float32.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 1e-2}


class Check(NamedTuple):
    """One question and its answer."""

    name: str
    passed: bool
    detail: str
    milliseconds: float | None = None
    share_of_roofline: float | None = None


def small_checks(backend: ModuleType, device: str) -> Iterator[Check]:
    """Odd shapes of every operator: seconds in the interpreter."""
    generator = torch.Generator().manual_seed(0)

    def tensor(*shape: int) -> Tensor:
        return (
            torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu") + 0.5
        ).to(device)

    x, d = tensor(2, 37, 41), tensor(2, 37, 41)
    image, change = tensor(2, 18, 9, 7), tensor(2, 20, 9, 7)
    options = ((3, 3), (1, 1), (1, 1), (1, 1))
    calls: dict[str, tuple[Any, ...]] = {
        "bias_sqnorm": (d,),
        "linear_sqnorm": (x, d, True),
        "conv_sqnorm": (image, change, *options, 1, True),
        "batch_norm_sqnorm": (x, x + d, tensor(37), tensor(37).square(), 1e-5),
        "layer_norm_sqnorm": (x, x + d, 1e-5, False),
        "group_norm_sqnorm": (x[:, :36], (x + d)[:, :36], 4, 1e-5),
        "embedding_sqnorm": (
            torch.arange(74, device=device, dtype=torch.int64).view(2, 37) % 5,
            d,
            0,
        ),
    }
    for name, arguments in calls.items():
        for dtype in TOLERANCE:
            yield compare(
                backend, f"{name}, {str(dtype)[6:]}", name, _cast(arguments, dtype), dtype
            )
    depthwise = (image, image + 0.5, *options, 18, False)
    yield compare(backend, "conv_sqnorm, depthwise", "conv_sqnorm", depthwise, torch.float32)


def _philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    low, high = map(torch.tensor, key)
    return tuple(map(int, philox.philox(tuple(map(torch.tensor, counter)), (low, high))))


def noise_checks(backend: ModuleType, device: str) -> Iterator[Check]:
    """Known answers of the generator, and bits of noisy copies."""
    right = all(_philox(counter, key) == answer for counter, key, answer in philox.KNOWN_ANSWERS)
    yield Check("Philox, known answers", right, "Random123's three vectors")
    x = torch.rand(
        2, 3, 9, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float32, device="cpu"
    ).to(device)
    rows = torch.tensor([0, 1, 1], dtype=torch.int64, device=device)
    key = torch.tensor([2**35 + 1, 1], dtype=torch.int64, device=device)
    for last in (False, True):
        arguments: tuple[Any, ...] = (x, rows, rows + 7, rows + 2**31, key)
        options: tuple[Any, ...] = (0.25, None, None, None, None, torch.float32, last)
        got = backend.noisy_batch(*arguments, *options)
        wanted = reference.noisy_batch(*[a.cpu() for a in arguments], *options)
        different = int((got.cpu() != wanted).sum())
        name = f"noise, {'channels last' if last else 'planes'}"
        yield Check(name, different == 0, f"{different} of {wanted.numel()} numbers differ")


def vote_checks(backend: ModuleType, device: str) -> Iterator[Check]:
    """Counts with ties, infinities and NaN."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(97, 300, generator=generator, dtype=torch.float32, device="cpu")
    logits[3], logits[5, 2] = 1.0, torch.nan
    winners = torch.where(logits.isnan().any(1), 300, logits.nan_to_num(-1e9).argmax(1))
    rows = torch.arange(97, dtype=torch.int64, device="cpu") % 3
    wanted = torch.zeros(3, 301, dtype=torch.int64, device="cpu")
    wanted.index_put_((rows, winners), torch.ones_like(rows), accumulate=True)
    got = backend.vote_count(logits.to(device), rows.to(device), "argmax", None, 3)
    yield Check("votes", torch.equal(got.cpu(), wanted), "97 votes, one NaN, one tie")


def _cast(arguments: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(
        a.to(dtype) if i < 2 and isinstance(a, Tensor) and a.is_floating_point() else a
        for i, a in enumerate(arguments)
    )


def compare(
    backend: ModuleType, name: str, operator: str, arguments: tuple[Any, ...], dtype: torch.dtype
) -> Check:
    """Largest relative error of one call against the reference in float64."""
    exact = [a.double() if isinstance(a, Tensor) and a.is_floating_point() else a
             for a in arguments]  # fmt: skip
    got = getattr(backend, operator)(*arguments)
    wanted = getattr(reference, operator)(*exact)
    pairs = zip(*(r if isinstance(r, tuple) else (r,) for r in (got, wanted)), strict=True)
    errors = [
        float(((g - w).abs() / w.abs().clamp_min(1e-30)).max()) for g, w in pairs if w.numel()
    ]
    worst = max(errors, key=lambda e: float("inf") if e != e else e)
    return Check(name, worst < TOLERANCE[dtype], f"relative error {worst:.1e}")
