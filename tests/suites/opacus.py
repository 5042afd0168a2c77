"""What Opacus's tests cover (``opacus/tests/grad_samples``): seeded draws from their grids."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from tests.suites.entry import Case, Entry, seed
from tests.suites.headed import SAMPLES, Made, Of, Transposed, case

#: Draws from each grid.
DRAWS = 12


def entries() -> list[Entry]:
    """Every module that Opacus's tests cover."""
    return [Entry("opacus", f.__name__.strip("_"), partial(_drawn, f)) for f in _OPACUS]


def _drawn(make: Callable[[random.Random], Made | None]) -> Iterator[Case]:
    """``DRAWS`` of a grid that make sense; None is one that does not."""
    draw, found = random.Random(0), 0
    while found < DRAWS:
        seed(found)
        made = make(draw)
        if made is not None:
            yield case(str(found), *made)
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
