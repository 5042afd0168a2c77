"""Models for test_unusual_models.py: two linear layers with something odd between."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from tests.gradients.edge_models import Apply

CASES = {}


def case(make):
    CASES[make.__name__] = make
    return make


def two_layers(forward, rows=5, **more):
    """A function of two linear layers ``a`` (6 → 5), ``out`` (5 → 4) and a batch of vectors."""
    return Apply(forward, a=nn.Linear(6, 5), out=nn.Linear(5, 4), **more), torch.randn(rows, 6)


@case
def batch_flipped_inside():
    return two_layers(lambda m, x: m.out(torch.tanh(m.a(x.flip(0))).flip(0)))


@case
def batch_sorted_by_length():
    def forward(m, x):  # the probe sees samples of one length, which stay where they are
        order = (x != 0).sum(1).argsort(stable=True)
        y = torch.tanh(m.a(x[order]))
        return m.out(torch.empty_like(y).index_copy(0, order, y))

    model, x = two_layers(forward, rows=6)
    x[3, 4:] = 0
    x[4, 2:] = 0
    return model, x


@case
def padding_removed():
    def forward(m, x):
        mask = x.abs().sum(-1) > 0
        y = torch.zeros(*x.shape[:2], 5, dtype=x.dtype)
        y[mask] = torch.tanh(m.a(x[mask]))
        return m.out(y.mean(1))

    model, _ = two_layers(forward)
    x = torch.randn(6, 5, 6)
    x[:, 4] = 0
    x[3, 2] = 0  # a token less here, and one more there: the total is that of the probe
    x[4, 4] = 1
    return model, x


@case
def experts_chosen_by_the_sample():
    def forward(m, x):
        gate = m.gate(x).softmax(-1)
        y = torch.zeros(len(x), 5, dtype=x.dtype)
        for e, expert in enumerate((m.a, m.b)):
            rows = gate.argmax(-1) == e
            y[rows] = expert(x[rows]) * gate[rows, e, None]
        return m.out(torch.tanh(y))

    return two_layers(forward, rows=7, gate=nn.Linear(6, 2), b=nn.Linear(6, 5))


@case
def batch_padded_inside():
    def forward(m, x):
        y = functional.pad(torch.tanh(m.a(x)), (0, 0, 0, -len(x) % 8))
        return m.out(torch.tanh(m.b(y)).index_select(0, torch.arange(len(x))))

    return two_layers(forward, b=nn.Linear(5, 5))


@case
def one_index_a_sample():
    model = Apply(lambda m, x: m.out(m.table(x)), table=nn.Embedding(7, 5), out=nn.Linear(5, 4))
    return model, torch.randint(0, 7, (5,))


@case
def token_chosen_by_the_sample():
    model, _ = two_layers(lambda m, x: m.out(m.a(x)[torch.arange(len(x)), x[..., 0].argmax(1)]))
    return model, torch.randn(5, 3, 6)


class _Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w

    @staticmethod
    def backward(ctx, d):
        x, w = ctx.saved_tensors
        return d * w, (d * x).sum(0)


@case
def batch_sorted_before_a_custom_function():
    def forward(m, x):
        order = (x != 0).sum(1).argsort(stable=True)
        y = m.b(_Scale.apply(x[order], torch.ones(6).to(x)))
        return m.out(torch.tanh(m.a(torch.empty_like(y).index_copy(0, order, y))))

    model, x = two_layers(forward, rows=6, b=nn.Linear(6, 6))
    x[3, 4:] = 0
    x[4, 2:] = 0
    return model, x


class _Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx, w):
        return w.sign()

    @staticmethod
    def backward(ctx, d):
        return d


@case
def view_of_a_parameter_in_a_custom_function():
    return two_layers(lambda m, x: m.out(_Scale.apply(m.a(x), m.w[0])), w=torch.randn(2, 5))


@case
def product_of_a_parameter_in_a_custom_function():
    return two_layers(
        lambda m, x: m.out(torch.tanh(m.a(x) + functional.linear(x, _Sign.apply(m.w * 2)))),
        w=torch.randn(5, 6),
    )


@case
def layers_after_a_custom_function():
    return two_layers(
        lambda m, x: m.out(torch.tanh(m.a(_Scale.apply(x, m.w[0])))), w=torch.randn(2, 6)
    )


@case
def parameter_written_into_a_batch():
    def forward(m, x):
        y = torch.zeros(len(x), 5, dtype=x.dtype)
        y[:, :3] = m.w
        y[:, 3:] = m.a(x)[:, 3:]
        return m.out(torch.tanh(y))

    return two_layers(forward, w=torch.randn(3))


@case
def weight_put_together_in_place():
    def forward(m, x):
        w = m.u.clone()
        w[1:3] = m.v
        w.t().mul_(m.s)
        z = torch.zeros_like(m.u)
        z[:3] = m.u[2:]
        z[3:].copy_(m.v)
        return m.out(torch.tanh(m.a(x) + functional.linear(x, w) + functional.linear(x, z)))

    return two_layers(forward, u=torch.randn(5, 6), v=torch.randn(2, 6), s=torch.randn(5))


@case
def gradient_scaled_by_a_hook():
    def forward(m, x):
        y = m.a(x)
        y.register_hook(lambda gradient: gradient * 3)
        return m.out(torch.tanh(y))

    return two_layers(forward)


@case
def part_recomputed_in_the_backward_pass():
    return two_layers(
        lambda m, x: m.out(
            checkpoint(lambda y: torch.tanh(m.b(torch.tanh(y))), m.a(x), use_reentrant=False)
        ),
        b=nn.Linear(5, 5),
    )


@case
def energy_whose_gradient_is_the_feature():
    def forward(m, x):
        x = x.detach().requires_grad_()
        energy = torch.tanh(m.a(x)).sum()
        return m.out(torch.autograd.grad(energy, x, create_graph=True)[0][:, :5])

    return two_layers(forward)


@case
def functions_of_parameters_transformed():
    def forward(m, x):
        y = torch.func.vmap(lambda row: torch.tanh(functional.linear(row, m.a.weight)))(x)
        slope = torch.func.grad(lambda x: torch.tanh(functional.linear(x, m.w)).sum())(x)
        return m.out(y + slope[:, :5])

    return two_layers(forward, w=torch.randn(3, 6))


@case
def spectrum_times_a_mask():
    def forward(m, x):
        spectrum = torch.fft.fft(x, dim=1) * torch.view_as_complex(m.w)
        return m.out(m.a(torch.fft.ifft(spectrum, dim=1).real + 1).mean(1))

    model, _ = two_layers(forward, w=torch.randn(6, 2))
    return model, torch.randn(4, 3, 6)


@case
def real_scale_of_a_spectrum():
    model, _ = two_layers(
        lambda m, x: m.out(m.a((torch.fft.fft(x, dim=1) * m.w).abs()).mean(1)), w=torch.randn(6)
    )
    return model, torch.randn(4, 3, 6)


@case
def vector_as_a_weight():
    model, _ = two_layers(
        lambda m, x: m.out(torch.tanh(m.a(x).sum(1) + functional.linear(x, m.w, m.b)[:, :1])),
        w=torch.randn(6),
        b=torch.randn(()),
    )
    return model, torch.randn(5, 3, 6)


@case
def attention_with_a_bias_and_no_scale():
    def forward(m, x):
        q = m.q(x).view(len(x), 3, 4, 2).transpose(1, 2)
        return m.out(functional.scaled_dot_product_attention(q, q, q, m.bias, scale=0.0).flatten(1))

    model = Apply(forward, q=nn.Linear(6, 8), bias=torch.randn(4, 3, 3), out=nn.Linear(24, 4))
    return model, torch.randn(5, 3, 6)


@case
def sparse_weight():
    return two_layers(
        lambda m, x: m.out(m.a(x) + torch.sparse.mm(m.w.to_sparse(), x.t()).t()),
        w=torch.randn(5, 6),
    )


@case
def one_sample_through_a_functional_batch_norm():
    def forward(m, x):
        y = functional.batch_norm(m.conv(x), m.mean, m.variance, m.w)
        return m.out(torch.tanh(y.flatten(2).transpose(1, 2)).mean(1))

    model = Apply(forward, conv=nn.Conv2d(3, 5, 1), w=torch.randn(5), out=nn.Linear(5, 4))
    model.register_buffer("mean", torch.randn(5))
    model.register_buffer("variance", torch.rand(5) + 0.5)
    return model, torch.randn(1, 3, 3, 3)
