"""Models for test_edge_cases.py: layers with odd options, parameters that are shared or derived."""

import torch
from torch import nn
from torch.nn import functional

CASES = {}


def case(make):
    CASES[make.__name__] = make
    return make


def head(features, *layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 4))


class Apply(nn.Module):
    """A module made of a function, its parameters registered by name."""

    def __init__(self, function, **children):
        super().__init__()
        for name, child in children.items():
            if isinstance(child, torch.Tensor):
                self.register_parameter(name, nn.Parameter(child))
            else:
                self.add_module(name, child)
        self._function = function

    def forward(self, x):
        return self._function(self, x)


for groups, inner in ((1, 6), (2, 6), (4, 8), (4, 4)):
    for stride, padding, dilation, kernel in (
        (1, 1, 1, 3), (2, 0, 1, 3), (1, 2, 2, 3), (3, 1, 1, 2), (1, 0, 1, 1), (2, 0, 1, 1),
    ):  # fmt: skip

        def conv2d(g=groups, c=inner, s=stride, p=padding, d=dilation, k=kernel):
            layer = nn.Conv2d(4, c, k, s, p, d, g)
            size = layer(torch.zeros(1, 4, 9, 7)).numel()
            return head(size, layer, nn.ReLU()), torch.randn(3, 4, 9, 7)

        name = f"conv2d_g{groups}_c{inner}_s{stride}_p{padding}_d{dilation}_k{kernel}"
        CASES[name] = conv2d


@case
def grouped_conv1d():
    return head(48, nn.Conv1d(6, 8, 3, 2, 1, groups=2)), torch.randn(3, 6, 11)


@case
def conv3d():
    return head(60, nn.Conv3d(2, 5, (1, 3, 2), (2, 1, 2), (0, 1, 1))), torch.randn(3, 2, 4, 3, 3)


@case
def conv_on_large_images_uses_the_gram():
    layers = nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1)
    return head(64 * 9, *layers), torch.randn(2, 3, 6, 6)


for mode in ("circular", "reflect", "replicate"):

    def padding_mode(mode=mode):
        layer = nn.Conv2d(3, 4, 3, padding=2, padding_mode=mode)
        return head(4 * 8 * 7, layer), torch.randn(3, 3, 6, 5)

    CASES[f"padding_mode_{mode}"] = padding_mode

for kernel in (2, 3, 4, 5):

    def same(kernel=kernel):
        layer = nn.Conv2d(3, 4, kernel, padding="same", dilation=2)
        return head(4 * 6 * 5, layer), torch.randn(3, 3, 6, 5)

    CASES[f"padding_same_k{kernel}"] = same


@case
def padding_valid():
    return head(4 * 4 * 3, nn.Conv2d(3, 4, 3, padding="valid")), torch.randn(3, 3, 6, 5)


for groups, stride, extra, dilation in ((1, 1, 0, 1), (2, 2, 1, 1), (4, 3, 2, 1), (1, 2, 1, 2)):

    def transposed(g=groups, s=stride, e=extra, d=dilation):
        layer = nn.ConvTranspose2d(4, 8, 3, s, 1, e, g, dilation=d)
        size = layer(torch.zeros(1, 4, 5, 4)).numel()
        return head(size, layer), torch.randn(3, 4, 5, 4)

    CASES[f"conv_transpose2d_g{groups}_s{stride}_o{extra}_d{dilation}"] = transposed


@case
def conv_transpose1d():
    layer = nn.ConvTranspose1d(4, 6, 4, 2, 1, groups=2)
    return head(6 * 12, layer), torch.randn(3, 4, 6)


@case
def conv_transpose3d():
    return head(3 * 5 * 5 * 5, nn.ConvTranspose3d(2, 3, 3)), torch.randn(2, 2, 3, 3, 3)


@case
def one_parameter_in_two_modules():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), second, nn.Linear(6, 4)), torch.randn(5, 6)


@case
def one_module_called_twice():
    shared = nn.Linear(6, 6)
    return nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(6, 4)), torch.randn(5, 6)


@case
def one_linear_on_tokens_called_three_times():
    model = Apply(
        lambda m, x: m.out(m.a(torch.tanh(m.a(torch.tanh(m.a(x))))).mean(1)),
        a=nn.Linear(6, 6),
        out=nn.Linear(6, 4),
    )
    return model, torch.randn(5, 3, 6)


@case
def one_convolution_called_twice():
    shared = nn.Conv2d(3, 3, 3, padding=1)
    return head(48, shared, nn.ReLU(), shared), torch.randn(4, 3, 4, 4)


@case
def one_norm_layer_called_twice():
    shared = nn.LayerNorm(6)
    return nn.Sequential(shared, nn.Linear(6, 6), shared, nn.Linear(6, 4)), torch.randn(5, 6)


@case
def a_weight_tied_between_embedding_and_linear():
    model = Apply(
        lambda m, x: m.out(functional.linear(m.table(x), m.table.weight).mean(1)),
        table=nn.Embedding(11, 6),
        out=nn.Linear(11, 4),
    )
    return model, torch.randint(0, 11, (4, 7))


@case
def a_weight_and_its_transpose():
    model = Apply(
        lambda m, x: m.out(functional.linear(torch.tanh(functional.linear(x, m.w)), m.w.t())),
        w=torch.randn(5, 6),
        out=nn.Linear(6, 4),
    )
    return model, torch.randn(4, 6)


@case
def disjoint_views_of_one_parameter():
    def forward(m, x):
        q, k, v = m.w.chunk(3)
        return m.out(
            functional.linear(torch.tanh(functional.linear(x, q)) * functional.linear(x, k), v)
        )

    return Apply(forward, w=torch.randn(18, 6), out=nn.Linear(6, 4)), torch.randn(4, 6)


@case
def interleaved_views_of_one_parameter():
    def forward(m, x):
        return m.out(
            torch.tanh(functional.linear(x, m.w[:, ::2])) + functional.linear(x, m.w[:, 1::2])
        )

    return Apply(forward, w=torch.randn(5, 12), out=nn.Linear(5, 4)), torch.randn(4, 6)


@case
def overlapping_views_of_one_parameter():
    def forward(m, x):
        return m.out(torch.tanh(functional.linear(x, m.w[:5])) + functional.linear(x, m.w[2:]))

    return Apply(forward, w=torch.randn(7, 6), out=nn.Linear(5, 4)), torch.randn(4, 6)


@case
def a_view_changed_in_place_after_a_copy():
    def forward(m, x):
        bias = m.b.clone()
        bias[2:4].zero_()
        return m.out(torch.tanh(functional.linear(x, m.w, bias)))

    return Apply(forward, w=torch.randn(6, 6), b=torch.randn(6), out=nn.Linear(6, 4)), torch.randn(
        4, 6
    )


@case
def embedding_with_padding_index():
    layers = nn.Embedding(9, 5, padding_idx=2), nn.Tanh()
    return head(35, *layers), torch.tensor([[2, 2, 1, 4, 4, 4, 0], [0, 1, 3, 5, 6, 7, 8]])


@case
def embedding_with_negative_padding_index():
    return head(15, nn.Embedding(9, 5, padding_idx=-1)), torch.tensor([[8, 8, 1], [0, 1, 1]])


@case
def embedding_scaled_by_frequency():
    class Twice(nn.Module):
        # A batch of one sample is what a sample's gradient means; the oracle shows it two copies.
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3)
            self.out = nn.Linear(12, 4)

        def forward(self, x):
            return self.out(self.table(x).flatten(1))

    return Twice(), torch.randint(0, 5, (4, 4))


@case
def table_indexed_by_the_batch():
    model = Apply(
        lambda m, x: m.out(m.table[x].mean(1)), table=torch.randn(9, 6), out=nn.Linear(6, 4)
    )
    return model, torch.randint(0, 9, (4, 5))


@case
def linear_on_four_dimensions():
    return head(2 * 3 * 5, nn.Linear(6, 5)), torch.randn(4, 2, 3, 6)


@case
def multihead_attention():
    def forward(m, x):
        return m.out(m.attention(x, x, x, need_weights=False)[0].mean(1))

    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    return Apply(forward, attention=attention, out=nn.Linear(8, 4)), torch.randn(3, 5, 8)


@case
def multihead_attention_sequence_first():
    def forward(m, x):
        x = x.transpose(0, 1)
        return m.out(m.attention(x, x, x)[0].mean(0))

    attention = nn.MultiheadAttention(8, 2, add_bias_kv=True)
    return Apply(forward, attention=attention, out=nn.Linear(8, 4)), torch.randn(3, 3, 8)


@case
def multihead_attention_other_key_sizes():
    def forward(m, x):
        return m.out(m.attention(x, x[..., :6], x[..., 2:])[0].mean(1))

    attention = nn.MultiheadAttention(8, 2, kdim=6, vdim=6, batch_first=True)
    return Apply(forward, attention=attention, out=nn.Linear(8, 4)), torch.randn(3, 5, 8)


@case
def transformer_encoder():
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    return head(40, nn.TransformerEncoder(layer, 2)), torch.randn(3, 5, 8)
