"""What the tests of Opacus and BackPACK cover, as classifiers of our own.

The grids are those of ``opacus/tests/grad_samples`` and of BackPACK's ``test/extensions`` and
``test/converter``; of Opacus's random grids a seeded share is drawn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.gradients.oracle import randomise
from tests.suites.entry import Case, Entry, seed

#: Draws from each of Opacus's grids.
DRAWS = 12
SAMPLES = 3

#: A module and a batch, samples first.
Made = tuple[nn.Module, Tensor]


def of_opacus() -> list[Entry]:
    """Every module that Opacus's tests cover."""
    return [Entry("opacus", f.__name__.strip("_"), partial(_drawn, f)) for f in _OPACUS]


def of_backpack() -> list[Entry]:
    """Every module that BackPACK's tests cover."""
    return [Entry("backpack", name, partial(_listed, made)) for name, made in _BACKPACK.items()]


class Headed(nn.Module):
    """A module, the first of its results, and a fixed linear head."""

    def __init__(self, module: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.module = module
        with torch.no_grad():
            width = self.features(x).shape[1]
        generator = torch.Generator().manual_seed(0)
        head = torch.randn(width, 3, generator=generator, dtype=torch.float64)
        self.register_buffer("head", head / max(width, 1) ** 0.5)

    def features(self, x: Tensor) -> Tensor:
        out = self.module(x)
        return (out if isinstance(out, Tensor) else out[0]).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x) @ self.head


class Transposed(nn.Module):
    """A module that has the samples second."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x.transpose(0, 1))
        return (out if isinstance(out, Tensor) else out[0]).transpose(0, 1)


class Of(nn.Module):
    """A function of modules and of the batch."""

    def __init__(self, function: Callable[..., Tensor], *modules: nn.Module) -> None:
        super().__init__()
        self.function, self.parts = function, nn.ModuleList(modules)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *self.parts)


def _case(name: str, module: nn.Module, x: Tensor) -> Case:
    randomise(module.double()).eval()
    x = x.double() if x.is_floating_point() else x
    return Case(name, Headed(module, x).eval(), x)


def _listed(made: list[Callable[[], Made]]) -> Iterator[Case]:
    for i, make in enumerate(made):
        seed(i)
        yield _case(str(i), *make())


def _drawn(make: Callable[[random.Random], Made | None]) -> Iterator[Case]:
    """``DRAWS`` of a grid that make sense; None is one that does not."""
    draw, found = random.Random(0), 0
    while found < DRAWS:
        seed(found)
        made = make(draw)
        if made is not None:
            yield _case(str(found), *made)
            found += 1


def _conv(kind: type[nn.Module], sides: list[tuple[int, int]], draw: random.Random) -> Made | None:
    c = draw.choice([1, 3, 32])
    out = draw.choice([c * 2, max(c // 2, 1)])
    groups, stride = draw.randint(1, 16), draw.randint(1, 2)
    kernel, padding = draw.randint(2, 3), draw.choice([0, 1, 2, "same", "valid"])
    if c % groups or out % groups or (padding == "same" and stride != 1):
        return None
    module = kind(c, out, kernel, stride, padding, draw.randint(1, 2), groups)
    return module, torch.randn(SAMPLES, c, *(draw.randint(*side) for side in sides))


def _conv1d(draw: random.Random) -> Made | None:
    return _conv(nn.Conv1d, [(6, 10)], draw)


def _conv2d(draw: random.Random) -> Made | None:
    return _conv(nn.Conv2d, [(11, 17)] * 2, draw)


def _conv3d(draw: random.Random) -> Made | None:
    return _conv(nn.Conv3d, [(5, 6), (6, 10), (6, 10)], draw)


def _shape(draw: random.Random, width: int) -> list[int]:
    return [SAMPLES, draw.randint(1, 4), draw.randint(1, 3)][: draw.randint(1, 3)] + [width]


def _linear(draw: random.Random) -> Made:
    width = draw.randint(10, 17)
    shape = _shape(draw, width)
    linear = nn.Linear(width, width + 2, bias=draw.random() < 0.5)
    second = len(shape) > 2 and draw.random() < 0.5
    return Transposed(linear) if second else linear, torch.randn(shape)


def _normalisation(kind: type[nn.Module], draw: random.Random) -> Made:
    shape = _shape(draw, draw.randint(5, 10))
    return kind(shape[draw.randint(1, len(shape) - 1) :]), torch.randn(shape)


def _layer_norm(draw: random.Random) -> Made:
    return _normalisation(nn.LayerNorm, draw)


def _rms_norm(draw: random.Random) -> Made:
    return _normalisation(nn.RMSNorm, draw)


def _group_norm(draw: random.Random) -> Made | None:
    c = draw.randint(1, 8)
    groups = draw.choice([1, 4, c])
    if c % groups:
        return None
    return nn.GroupNorm(groups, c), torch.randn(SAMPLES, c, draw.randint(5, 10), 6)


def _instance_norm(draw: random.Random) -> Made:
    c, dims = draw.randint(1, 3), draw.randint(1, 3)
    kind = (nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)[dims - 1]
    return kind(c, affine=True), torch.randn(SAMPLES, c, *[draw.randint(4, 8)] * dims)


def _embedding(draw: random.Random) -> Made:
    words = draw.randint(2, 32)
    shape = [SAMPLES, draw.randint(1, 5), draw.randint(1, 4), draw.randint(1, 2)]
    return nn.Embedding(words, 11), torch.randint(0, words, shape[: draw.randint(2, 4)])


def _embedding_bag(draw: random.Random) -> Made:
    words = draw.randint(10, 32)
    mode = draw.choice(["sum", "mean", "max"])
    bag = nn.EmbeddingBag(words, draw.randint(10, 17), mode=mode)
    return bag, torch.randint(0, words, (SAMPLES, draw.randint(1, 7)))


def _multihead_attention(draw: random.Random) -> Made:
    from opacus.layers import DPMultiheadAttention

    sizes = {"kdim": 4, "vdim": 4} if draw.random() < 0.5 else {}
    flags = {k: draw.random() < 0.5 for k in ("bias", "add_bias_kv", "add_zero_attn")}
    kind = draw.choice([DPMultiheadAttention, nn.MultiheadAttention])
    attention = kind(4, draw.choice([1, 2]), **flags, **sizes)

    def forward(x: Tensor, attention: nn.Module) -> Tensor:
        return attention(*x.transpose(0, 1).unbind(-1))[0].transpose(0, 1)

    return Of(forward, attention), torch.randn(SAMPLES, draw.randint(5, 8), 4, 3)


def _sequence_bias(draw: random.Random) -> Made:
    from opacus.layers.dp_multihead_attention import SequenceBias

    width, first = draw.randint(4, 8), draw.random() < 0.5
    bias = SequenceBias(width, first)
    return bias if first else Transposed(bias), torch.randn(SAMPLES, draw.randint(10, 20), width)


def _recurrent(draw: random.Random) -> Made:
    from opacus.layers import DPGRU, DPLSTM, DPRNN

    width = draw.randint(4, 5)
    options = {k: draw.random() < 0.5 for k in ("bias", "batch_first", "bidirectional")}
    kind = draw.choice([DPRNN, DPGRU, DPLSTM, nn.RNN, nn.GRU, nn.LSTM])
    layers = kind(width, draw.randint(6, 8), num_layers=draw.choice([1, 2]), **options)
    x = torch.randn(SAMPLES, draw.randint(2, 4), width)
    if draw.random() < 0.4:
        return Of(partial(_packed, options["batch_first"]), layers), x
    return layers if options["batch_first"] else Transposed(layers), x


def _packed(batch_first: bool, x: Tensor, layers: nn.Module) -> Tensor:
    """Sequences whose lengths the batch gives: the first value of each says how long it is."""
    lengths = 1 + (x[:, 0, 0].detach() > 0) * (x.shape[1] - 1)
    x = x if batch_first else x.transpose(0, 1)
    packed = pack_padded_sequence(x, lengths.cpu(), batch_first, enforce_sorted=False)
    out = pad_packed_sequence(layers(packed)[0], batch_first=True)[0]
    return out.sum(1)


_OPACUS = (
    *(_conv1d, _conv2d, _conv3d, _linear, _layer_norm, _rms_norm, _group_norm, _instance_norm),
    *(_embedding, _embedding_bag, _multihead_attention, _sequence_bias, _recurrent),
)


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
