"""Random small models, composed of operators that move the batch about and share parameters."""

import torch
from hypothesis import HealthCheck, given, settings, strategies as st
from torch import nn
from torch.nn import functional

import gradood
from gradood.errors import ModelError
from tests.gradients.oracle import assert_norms, reference_norms

TOKENS, WIDTH, CLASSES = 3, 4, 3

#: Shapes of the parameters that every model has; each operator uses some, and may share them.
SHAPES = {
    "square": (WIDTH, WIDTH),
    "tall": (2 * WIDTH, WIDTH),
    "row": (WIDTH,),
    "column": (TOKENS, 1),
    "position": (1, TOKENS, WIDTH),
    "kernel": (WIDTH, WIDTH, 3),
    "depthwise": (WIDTH, 1, 3),
    "scalar": (),
    "table": (5, WIDTH),
}


def _attention(m, x):
    q, k = functional.linear(x, m.tall, m.tall[:, 0]).chunk(2, -1)
    return functional.scaled_dot_product_attention(q, k, x, attn_mask=m.square[:TOKENS, :TOKENS])


def _in_place(m, x):
    y = functional.linear(x, m.square)
    y *= m.row
    y[..., 0] = m.scalar
    return y.relu_()


def _weight_in_place(m, x):
    w = m.square.clone()
    w[1:3] = m.tall[:2]
    return functional.linear(x, w * m.row)


def _sequence_first(m, x):
    y = x.transpose(0, 1)
    return (functional.linear(y, m.square, m.row) + m.position.transpose(0, 1)).transpose(0, 1)


def _token_added(m, x):
    token = m.row.expand(len(x), 1, WIDTH)
    return functional.linear(torch.cat([token, x], 1), m.square)[:, 1:]


#: Every operator maps [N, TOKENS, WIDTH] to the same shape.
OPERATORS = {
    "linear": lambda m, x: functional.linear(x, m.square, m.row),
    "transposed linear": lambda m, x: functional.linear(x, m.square.t()),
    "matmul": lambda m, x: x @ m.square,
    "left matmul": lambda m, x: m.square[:TOKENS, :TOKENS] @ x,
    "einsum": lambda m, x: torch.einsum("ntd,de->nte", x, m.square),
    "addmm": lambda m, x: torch.addmm(m.row, x.flatten(0, 1), m.square).view(x.shape),
    "views": lambda m, x: functional.linear(x, m.tall[:WIDTH]) * functional.linear(x, m.tall[2:6]),
    "interleaved views": lambda m, x: functional.linear(x, m.tall[::2], m.tall[1::2, 0]),
    "made weight": lambda m, x: functional.linear(x, m.square.softmax(0) + m.row),
    "hyper": lambda m, x: x * functional.linear(x.mean(1, keepdim=True), m.square, m.row),
    "attention": _attention,
    "in place": _in_place,
    "weight in place": _weight_in_place,
    "sequence first": _sequence_first,
    "token added": _token_added,
    "features first": lambda m, x: (x.permute(2, 0, 1) + m.row[:, None, None]).permute(1, 2, 0),
    "position": lambda m, x: x + m.position - m.column,
    "scale": lambda m, x: x * m.row / (1 + m.scalar.square()),
    "column": lambda m, x: torch.addcmul(x, x, m.column),
    "gate": lambda m, x: torch.where(x > 0, x, m.scalar * x),
    "prelu": lambda m, x: functional.prelu(x.transpose(1, 2), m.row).transpose(1, 2),
    "layer norm": lambda m, x: functional.layer_norm(x, (WIDTH,), m.row, m.square[0]),
    "rms norm": lambda m, x: functional.rms_norm(x, (TOKENS, WIDTH), m.position[0]),
    "group norm": lambda m, x: functional.group_norm(
        x.transpose(1, 2), 2, m.row, m.tall[:WIDTH, 1]
    ).transpose(1, 2),
    "batch norm": lambda m, x: functional.batch_norm(
        x.transpose(1, 2), m.mean, m.variance, m.row, m.square[1]
    ).transpose(1, 2),
    "conv": lambda m, x: functional.conv1d(x.transpose(1, 2), m.kernel, m.row, padding=1).mT,
    "depthwise conv": lambda m, x: functional.conv1d(
        x.transpose(1, 2), m.depthwise, padding="same", dilation=2, groups=WIDTH
    ).mT,
    "transposed conv": lambda m, x: functional.conv_transpose1d(x.mT, m.kernel, padding=1).mT,
    "table": lambda m, x: x + m.table[(x.detach() * 2).long().clamp(-4, 4)[..., 0]],
    "embedding": lambda m, x: functional.embedding((x[..., 1] > 0).long() + 1, m.table, 2) - x,
    "merged tokens": lambda m, x: functional.layer_norm(
        functional.linear(x.reshape(-1, WIDTH), m.square), (WIDTH,), m.row
    ).view_as(x),
    "merged twice": lambda m, x: (
        functional.linear(torch.cat([x, -x]), m.square).view(2, *x.shape).sum(0)
    ),
    "flipped": lambda m, x: functional.linear(x.flip(0), m.square).flip(0),
    "rolled": lambda m, x: (x.roll(1, 0) * m.row).roll(-1, 0),
    "sorted": lambda m, x: functional.linear(x[_order(x)], m.square)[_order(x).argsort()],
    "sample by sample": lambda m, x: torch.stack([torch.tanh(row @ m.square) for row in x]),
    "pairs": lambda m, x: torch.cat([functional.linear(p, m.square) for p in x.split(2)]),
    "tokens apart": lambda m, x: torch.stack([t * m.row + m.scalar for t in x.unbind(1)], 1),
    "no gradient": lambda m, x: x * functional.linear(x, m.square).detach(),
    "tanh": lambda m, x: torch.tanh(x),
}  # fmt: skip

#: Operators through which samples influence one another.
COUPLING = {
    "centred": lambda m, x: x - x.mean(0),
    "the first subtracted": lambda m, x: x - 0.5 * x[:1],
    "the opposite added": lambda m, x: x + 0.5 * x.flip(0),
    "softmax over the batch": lambda m, x: x * x.softmax(0),
    "divided by the size": lambda m, x: x / len(x),
}


def _order(x):
    return (x.detach()[:, 0, 0] > 0).long().argsort(stable=True)


class Composed(nn.Module):
    """Operators in a row, some with a residual connection, and a linear classifier."""

    def __init__(self, steps, seed):
        super().__init__()
        self.steps = steps
        generator = torch.Generator().manual_seed(seed)
        for name, shape in SHAPES.items():
            value = torch.randn(shape, generator=generator, dtype=torch.float64)
            self.register_parameter(name, nn.Parameter(value / 2))
        self.register_buffer("mean", torch.randn(WIDTH, generator=generator, dtype=torch.float64))
        variance = 0.5 + torch.rand(WIDTH, generator=generator, dtype=torch.float64)
        self.register_buffer("variance", variance)
        self.out = nn.Linear(TOKENS * WIDTH, CLASSES).double()

    def forward(self, x):
        for name, residual in self.steps:
            y = {**OPERATORS, **COUPLING}[name](self, x)
            x = torch.tanh(x + y if residual else y)
        return self.out(x.flatten(1))


def steps_of(names, most):
    return st.lists(
        st.tuples(st.sampled_from(sorted(names)), st.booleans()), min_size=1, max_size=most
    )


def inputs(samples, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(samples, TOKENS, WIDTH, generator=generator, dtype=torch.float64)


steadily = settings(
    derandomize=True,
    deadline=None,
    database=None,
    max_examples=90,
    suppress_health_check=list(HealthCheck),
)


@settings(steadily, max_examples=45)
@given(steps_of(OPERATORS, 4), st.integers(1, 6), st.integers(0, 99), st.integers(0, 3))
def test_composed_models_equal_the_loop(steps, samples, seed, option):
    torch.manual_seed(seed)
    model = Composed(steps, seed).eval()
    model.square.requires_grad_(option > 0)
    x = inputs(samples, seed)
    expected = reference_norms(model, x)
    assert_norms(gradood.gradient_norms(model, x[:1]), expected[:1], 1e-8)  # plans for another size
    assert_norms(gradood.gradient_norms(model, x), expected, 1e-8)
    assert_norms(gradood.gradient_norms(model, x, micro_batch=option or None), expected, 1e-8)
    part = gradood.gradient_norms(model, x, parameters=["row", "out.*"])
    columns = [[n for n, _ in model.named_parameters()].index(name) for name in part.names]
    assert_norms(part, expected[:, columns], 1e-8)


@settings(steadily, max_examples=30)
@given(steps_of(OPERATORS, 2), st.sampled_from(sorted(COUPLING)), steps_of(OPERATORS, 2))
def test_composed_models_that_couple_samples_are_refused(before, coupling, after):
    torch.manual_seed(0)
    model = Composed([*before, (coupling, False), *after], 0).eval()
    x = inputs(4, 0)
    with torch.no_grad():
        alone = torch.cat([model(row[None]) for row in x])
        coupled = not torch.allclose(alone, model(x), rtol=0.02, atol=0.02)
    try:
        norms = gradood.gradient_norms(model, x)
    except ModelError as error:
        assert "depend on" in str(error) or "influence" in str(error)
    else:
        assert not coupled
        del norms
