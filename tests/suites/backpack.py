"""What BackPACK's tests cover (``test/extensions`` and ``test/converter`` of its repository)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from tests.suites.entry import Case, Entry, seed
from tests.suites.headed import Made, Of, Transposed, case


def entries() -> list[Entry]:
    """Every module that BackPACK's tests cover."""
    return [Entry("backpack", name, partial(_listed, made)) for name, made in _BACKPACK.items()]


def _listed(made: list[Callable[[], Made]]) -> Iterator[Case]:
    for i, make in enumerate(made):
        seed(i)
        yield case(str(i), *make())


def _followed(shape: tuple[int, ...], *modules: nn.Module) -> Made:
    """Modules, an activation, and a linear layer on everything."""
    x = torch.rand(shape)
    body = nn.Sequential(*modules, nn.ReLU(), nn.Flatten())
    with torch.no_grad():
        width = body(x).shape[1]
    return nn.Sequential(body, nn.Linear(width, 5)), x


def _convolutions(name: str, dims: int, grid: list[tuple[tuple[int, ...], tuple[Any, ...]]]) -> Any:
    kind = getattr(nn, f"{name}{dims}d")
    side = {1: (), 2: (7,), 3: (3, 7)}[dims]
    return [
        partial(lambda s, o: _followed(s, kind(*o)), (n, c, *side, t), options)
        for (n, c, t), options in grid
    ]


_CONV = [
    ((3, 3, 7), (3, 2, 2)),
    ((3, 2, 7), (2, 3, 2, 2, 0, 2)),
    ((3, 3, 7), (3, 2, 2, 2, 1)),
    ((3, 3, 8), (3, 6, 2, 4, 2, 3)),
    ((3, 3, 7), (3, 2, 2, 4, 2, 1, 1, False)),
]
_TRANSPOSED = [
    ((3, 3, 7), (3, 2, 2)),
    ((3, 2, 7), (2, 3, 2, 2, 0, 0, 1, True, 2)),
    ((3, 3, 7), (3, 2, 2, 2, 1)),
    ((3, 3, 8), (3, 6, 2, 4, 2, 0, 1, True, 3)),
    ((3, 3, 7), (3, 2, 2, 4, 2, 0, 1, False)),
]
_ACTIVATIONS = (
    *("ReLU", "Sigmoid", "Tanh", "LeakyReLU", "LogSigmoid", "ELU", "SELU", "GELU", "SiLU"),
    *("Softplus", "Hardswish", "Mish", "PReLU"),
)
_POOLS = {
    1: [("MaxPool1d", (2,)), ("AvgPool1d", (2, 2, 1)), ("AdaptiveAvgPool1d", (3,))],
    2: [("MaxPool2d", (2, 1)), ("AvgPool2d", (2,)), ("AdaptiveAvgPool2d", (2,))],
    3: [("MaxPool3d", (2, 1)), ("AvgPool3d", (2,)), ("AdaptiveAvgPool3d", (2,))],
}


def _linears() -> list[Callable[[], Made]]:
    middles = (nn.Identity, nn.ReLU, nn.Sigmoid)
    shapes = ((3, 10), (3, 4, 5), (3, 4, 2, 5), (3, 4, 2, 3, 5))
    return [
        partial(
            lambda s, m: (nn.Sequential(nn.Linear(s[-1], 7), m(), nn.Linear(7, 5)), torch.rand(s)),
            *pair,
        )
        for pair in product(shapes, middles)
    ]


def _batch_norms() -> list[Callable[[], Made]]:
    return [
        lambda: (nn.BatchNorm1d(3), torch.rand(2, 3, 4)),
        lambda: (nn.BatchNorm2d(2), torch.rand(3, 2, 4, 3)),
        lambda: (nn.BatchNorm3d(3), torch.rand(3, 3, 4, 1, 2)),
        lambda: (
            nn.Sequential(
                nn.BatchNorm3d(3), nn.Linear(2, 3), nn.BatchNorm3d(3), nn.ReLU(), nn.BatchNorm3d(3)
            ),
            torch.rand(3, 3, 4, 1, 2),
        ),
    ]


def _converted() -> list[Callable[[], Made]]:
    """Networks whose forward pass is a function: branches, repeated modules, methods."""

    def add(x: Tensor, a: nn.Module, b: nn.Module, c: nn.Module) -> Tensor:
        x = a(x)
        left, right = b(x), c(x)
        return (left + right).relu().add(right)

    def flat(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        return b(torch.flatten(a(x), 2)).flatten(1)

    def permuted(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        return torch.permute(b(a(x).permute(0, 2, 1)), (0, 2, 1))

    def transposed(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        return torch.transpose(b(a(x).transpose(1, 2)), 1, 2)

    def characters(x: Tensor, table: nn.Module, layers: nn.Module, head: nn.Module) -> Tensor:
        return head(layers(table(x))[0]).permute(0, 2, 1)

    def text(kind: type[nn.Module]) -> Made:
        parts = nn.Embedding(25, 16), kind(16, 16, 2, batch_first=True), nn.Linear(16, 25)
        return Of(characters, *parts), torch.randint(0, 25, (4, 15))

    in_place = (nn.Linear(3, 2), nn.ReLU(inplace=True), nn.Linear(2, 2))
    return [
        lambda: (nn.Sequential(*in_place), torch.rand(3, 3)),
        lambda: (
            Of(lambda x, a: (0.5 * a(x * 2.5)).multiply(3.1), nn.Linear(4, 3)),
            torch.rand(2, 4),
        ),
        lambda: (Of(add, nn.Linear(3, 3), nn.Linear(3, 2), nn.Linear(3, 2)), torch.rand(3, 3)),
        lambda: (Of(flat, nn.Linear(4, 3), nn.Linear(6, 3)), torch.rand(3, 2, 2, 4)),
        lambda: (Of(permuted, nn.Linear(3, 2), nn.Linear(5, 2)), torch.rand(3, 5, 3)),
        lambda: (Of(transposed, nn.Linear(3, 2), nn.Linear(5, 3)), torch.rand(3, 5, 3)),
        lambda: text(nn.LSTM),
        lambda: text(nn.RNN),
    ]


def _recurrents() -> list[Callable[[], Made]]:
    return [
        partial(lambda k: (Transposed(k(input_size=6, hidden_size=3)), torch.rand(8, 5, 6)), kind)
        for kind in (nn.RNN, nn.LSTM, nn.GRU)
    ]


def _rest() -> list[Callable[[], Made]]:
    return [
        lambda: _followed((3, 3, 7, 7), nn.Conv2d(3, 2, 2), nn.ZeroPad2d((1, 2, 0, 1))),
        lambda: _followed((3, 3, 7), nn.Conv1d(3, 2, 2), Of(lambda x: x[:, :, 1:4])),
        lambda: _followed((3, 4), nn.Linear(4, 4), Of(lambda x: 3.0 * x)),
        lambda: (nn.Embedding(5, 3), torch.randint(0, 5, (4, 6))),
        lambda: (nn.Embedding(5, 3, padding_idx=0), torch.randint(0, 5, (4, 6, 2))),
        lambda: (Of(lambda x, b: b(x, x), nn.Bilinear(4, 4, 3)), torch.rand(3, 4)),
    ]


_BACKPACK: dict[str, list[Callable[[], Made]]] = {
    "linear": _linears(),
    **{f"conv{d}d": _convolutions("Conv", d, _CONV) for d in (1, 2, 3)},
    **{f"transposed conv{d}d": _convolutions("ConvTranspose", d, _TRANSPOSED) for d in (1, 2, 3)},
    "activations": [
        partial(
            lambda a: _followed((3, 3, 7, 7), nn.Conv2d(3, 2, 2, bias=False), getattr(nn, a)()),
            name,
        )
        for name in _ACTIVATIONS
    ],
    "pools": [
        partial(
            lambda d, p, o: _followed(
                (3, 3, *[7] * d), getattr(nn, f"Conv{d}d")(3, 2, 2), getattr(nn, p)(*o)
            ),
            *(dims, pool, options),
        )
        for dims, pools in _POOLS.items()
        for pool, options in pools
    ],
    "batch norm": _batch_norms(),
    "recurrent": _recurrents(),
    "converted": _converted(),
    "others": _rest(),
}
