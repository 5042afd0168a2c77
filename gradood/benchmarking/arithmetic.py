"""Is this machine's arithmetic right? What PyTorch and the libraries under it make of known sums.

Some versions are wrong on some processors or with some numbers of threads, silently. Each check
holds one operation against another path to the same number, in a process of its own for every
number of threads, since a wrong library may also crash or never come back.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional

from gradood.benchmarking.operators import noise_checks, small_checks
from gradood.ops import reference
from gradood.ops.dispatch import load

#: Threads that everything is checked with.
THREADS = (1, 2)
#: Seconds after which a check counts as one that never comes back.
PATIENCE = 60.0


class Operation(NamedTuple):
    """One operation to check.

    Attributes:
        error: Runs it and returns the largest error, relative to the largest right number.
        tolerance: What rounding explains.
        avoided: How gradood does without it where it is wrong; empty where gradood needs it.
    """

    error: Callable[[], float]
    tolerance: float
    avoided: str = ""


class Verdict(NamedTuple):
    """What one operation did with one number of threads."""

    name: str
    threads: int
    right: bool
    detail: str
    avoided: str

    @property
    def passed(self) -> bool:
        """Whether gradood's results can be trusted as far as this operation goes."""
        return self.right or bool(self.avoided)


def _relative(found: Tensor, right: Tensor) -> float:
    found, right = found.detach().double(), right.detach().double()
    error = (found - right).abs().max() / right.abs().max()
    return float(error.nan_to_num(torch.inf))


def _generic(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(dtype)


def _batched_lu() -> float:
    matrices = _generic(8, 256, 256, dtype=torch.float64)
    expected = torch.from_numpy(np.linalg.slogdet(matrices.numpy())[1])
    return _relative(torch.linalg.slogdet(matrices).logabsdet, expected)


def _eigenvalues() -> float:
    root = _generic(256, 256, dtype=torch.float64)
    covariance = root @ root.T
    values, vectors = torch.linalg.eigh(covariance)
    expected = torch.from_numpy(np.linalg.eigvalsh(covariance.numpy()))
    back = _relative((vectors * values) @ vectors.T, covariance)
    return max(_relative(values, expected), back)


def _matrix_products() -> float:
    x, y = _generic(4, 100, 70), _generic(4, 70, 90)
    expected = torch.from_numpy(np.matmul(x.double().numpy(), y.double().numpy()))
    alone = torch.stack([a @ b for a, b in zip(x, y, strict=True)])
    return max(_relative(torch.bmm(x, y), expected), _relative(alone, expected))


def _convolution() -> float:
    """Output and both gradients, against sums of shifted products in float64."""
    x, weight, d = _generic(2, 16, 9, 9), _generic(24, 16, 3, 3), _generic(2, 24, 9, 9)
    x, weight = x.requires_grad_(), weight.requires_grad_()
    out = torch.conv2d(x, weight, padding=1)
    of_x, of_weight = torch.autograd.grad(out, (x, weight), d)
    exact, one = (x.detach().double(), d.double()), (1, 1)
    right = reference.conv_gradient(*exact, (3, 3), one, one, one, groups=1).sum(0)
    taps = functional.unfold(exact[0], 3, padding=1)
    flat = weight.detach().double().flatten(1)
    right_out = (flat @ taps).view(d.shape)
    back = functional.fold(flat.T @ exact[1].flatten(2), (9, 9), 3, padding=1)
    pairs = ((out, right_out), (of_weight, right), (of_x, back))
    return max(_relative(found, wanted) for found, wanted in pairs)


def _batch_norm(samples: int) -> float:
    """Backward in evaluation mode, with gradients that are not contiguous."""
    x, mean, weight = _generic(samples, 16, 8, 8), _generic(16), _generic(16) + 2
    variance, bias = _generic(16).square() + 0.5, _generic(16)
    rstd = (variance.double() + 1e-5).rsqrt()
    errors = []
    for layout in (torch.contiguous_format, torch.channels_last):
        inputs = x.contiguous(memory_format=layout).requires_grad_()
        parameters = (weight.clone().requires_grad_(), bias.clone().requires_grad_())
        for d in (
            _generic(samples, 8, 8, 16).permute(0, 3, 1, 2),
            _generic(samples, 16, 1, 1).expand(samples, 16, 8, 8),
            _generic(samples, 16, 8, 16)[..., ::2],
        ):
            out = functional.batch_norm(inputs, mean, variance, *parameters)
            found = torch.autograd.grad(out, (inputs, *parameters), d)
            exact = d.double()
            centred = x.double() - mean.double()[:, None, None]
            scale = (weight.double() * rstd)[:, None, None]
            sums = (exact * centred).sum((0, 2, 3)) * rstd, exact.sum((0, 2, 3))
            pairs = zip(found, (exact * scale, *sums), strict=True)
            errors += [_relative(f, right) for f, right in pairs]
    return max(errors)


def _lstm_under_vmap() -> float:
    torch.manual_seed(0)
    lstm = nn.LSTM(5, 8, num_layers=2, batch_first=True)
    values = {name: p.detach() for name, p in lstm.named_parameters()}
    x = _generic(4, 6, 5)

    def loss(values: dict[str, Tensor], sample: Tensor) -> Tensor:
        out: Tensor = functional_call(lstm, values, (sample[None],))[0]
        return out.square().sum()

    together = vmap(grad(loss), (None, 0))(values, x)
    alone = [grad(loss)(values, sample) for sample in x]
    return max(_relative(together[n], torch.stack([a[n] for a in alone])) for n in values)


def _layer_norm_twice() -> float:
    """Slope of a weight gradient's norm, under vmap, against the written-out formula."""
    x, weight = _generic(5, 3, 8, dtype=torch.float64), _generic(8, dtype=torch.float64)

    def written_out(x: Tensor, weight: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + 1e-5).rsqrt() * weight

    def library(x: Tensor, weight: Tensor) -> Tensor:
        return functional.layer_norm(x, (8,), weight)

    def slope_with(layer: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
        def norm(x: Tensor) -> Tensor:
            of_weight: Tensor = grad(lambda w: (layer(x, w) ** 3).sum())(weight)
            return of_weight.square().sum()

        slope: Callable[[Tensor], Tensor] = grad(norm)
        return slope

    alone = torch.stack([slope_with(written_out)(sample) for sample in x])
    return _relative(vmap(slope_with(library))(x), alone)


def _kernels(backend_name: str) -> float:
    """The largest error of one backend's operators; infinite where a check fails."""
    backend, reason = load(backend_name)
    if backend is None:
        raise NotImplementedError(reason)
    checks = list(small_checks(backend, "cpu"))
    if backend_name == "cpp":
        checks += noise_checks(backend, "cpu")
    failed = [check.name for check in checks if not check.passed]
    if failed:
        raise ArithmeticError(", ".join(failed))
    return 0.0


_LOOP = "vmap is compared with a loop first"

#: In this order: what may never come back is last.
OPERATIONS = {
    "matrix products": Operation(_matrix_products, 1e-5),
    "convolution, both gradients": Operation(_convolution, 1e-5),
    "eigenvalues": Operation(_eigenvalues, 1e-10),
    "gradood's C++ kernels": Operation(lambda: _kernels("cpp"), 0),
    "gradood's PyTorch backend": Operation(lambda: _kernels("torch"), 0),
    "batch norm backward": Operation(lambda: _batch_norm(2), 1e-5),
    "batch norm backward, a batch of one": Operation(
        lambda: _batch_norm(1), 1e-5, "a lone sample runs beside a copy of itself"
    ),
    "LSTM under vmap": Operation(_lstm_under_vmap, 1e-5, _LOOP),
    "layer norm's second derivative under vmap": Operation(_layer_norm_twice, 1e-9, _LOOP),
    "LU of several matrices (slogdet, inv, solve)": Operation(
        _batched_lu, 1e-10, "determinants come from eigenvalues"
    ),
}


def answer(name: str) -> tuple[bool, str]:
    """Run one check here: whether it is right, and in words how far off."""
    operation = OPERATIONS[name]
    try:
        error = operation.error()
    except NotImplementedError as reason:
        return True, f"not there: {reason}"
    except (ArithmeticError, RuntimeError) as reason:
        return False, str(reason).strip().partition("\n")[0]
    return error <= operation.tolerance, f"relative error {error:.0e}" if error else "right"


def verdicts() -> Iterator[Verdict]:
    """Every operation with one thread and with two."""
    for threads in THREADS:
        pending = list(OPERATIONS)
        while pending:
            for name, right, detail in _run(threads, pending):
                pending.remove(name)
                yield Verdict(name, threads, right, detail, OPERATIONS[name].avoided)


def _run(threads: int, names: list[str]) -> list[tuple[str, bool, str]]:
    """Answers of a process of its own, the last maybe that it crashed or never came back."""
    command = [sys.executable, "-m", "gradood.benchmarking.arithmetic", str(threads), *names]
    try:
        done = subprocess.run(command, capture_output=True, timeout=PATIENCE)
        out, end = done.stdout, f"the process ended with status {done.returncode}"
    except subprocess.TimeoutExpired as late:
        out, end = late.stdout or b"", f"no answer within {PATIENCE:.0f} s"
    lines = [line for line in out.decode(errors="replace").splitlines() if line.startswith("[")]
    answers: list[tuple[str, bool, str]] = [tuple(json.loads(line)) for line in lines]
    if len(answers) < len(names):
        answers.append((names[len(answers)], False, end))
    return answers


def main() -> None:
    """Answer for the named operations, one line of JSON each."""
    torch.set_num_threads(int(sys.argv[1]))
    for name in sys.argv[2:]:
        print("\n" + json.dumps([name, *answer(name)]), flush=True)


if __name__ == "__main__":
    main()
