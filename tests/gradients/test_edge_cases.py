"""The table of cases in which peers are silently wrong, fail, or leave parameters out."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import gradood
from gradood.errors import ModelError
from tests.gradients.oracle import assert_as_promised, randomise

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


@case
def layer_norm_without_bias():
    return head(30, nn.LayerNorm(6, bias=False)), torch.randn(3, 5, 6)


@case
def layer_norm_over_several_dimensions():
    return head(60, nn.LayerNorm((5, 6))), torch.randn(3, 2, 5, 6)


@case
def group_norm():
    return head(54, nn.GroupNorm(2, 6)), torch.randn(3, 6, 3, 3)


@case
def instance_norm():
    return head(54, nn.InstanceNorm2d(6, affine=True)), torch.randn(3, 6, 3, 3)


@case
def instance_norm_with_running_statistics():
    layer = nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 1.5)
    return head(18, layer), torch.randn(3, 6, 3)


for epsilon in (None, 1e-3):
    CASES[f"rms_norm_eps_{epsilon}"] = lambda epsilon=epsilon: (
        head(30, nn.RMSNorm(6, eps=epsilon)),
        torch.randn(3, 5, 6),
    )

for dims, layer in ((1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d)):
    CASES[f"batch_norm_{dims}d"] = lambda dims=dims, layer=layer: (
        head(6 * 2**dims, layer(6)),
        torch.randn(3, 6, *(2,) * dims),
    )


@case
def batch_norm_of_vectors():
    return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)), torch.randn(5, 6)


@case
def batch_norm_with_a_gradient_that_is_not_contiguous():
    def forward(m, x):
        return m.out(torch.tanh(m.norm(x).flatten(2).transpose(1, 2)).mean(1))

    return Apply(forward, norm=nn.BatchNorm2d(6), out=nn.Linear(6, 4)), torch.randn(1, 6, 3, 3)


@case
def weight_norm():
    layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    return head(4 * 9, layer), torch.randn(3, 3, 5, 5)


@case
def spectral_norm():
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Linear(5, 4)
    ), torch.randn(3, 6)


@case
def weight_standardisation():
    def forward(m, x):
        w = m.w.flatten(1)
        w = functional.batch_norm(w[None], None, None, m.gain, training=True, eps=1e-6)
        return m.out(functional.conv2d(x, w.view_as(m.w)).flatten(1))

    model = Apply(forward, w=torch.randn(4, 3, 3, 3), gain=torch.rand(4), out=nn.Linear(36, 4))
    return model, torch.randn(3, 3, 5, 5)


@case
def raw_parameters_by_broadcasting():
    def forward(m, x):
        tokens = torch.cat([m.token.expand(len(x), -1, -1), m.lin(x)], 1) + m.position
        tokens = tokens * m.scale - m.shift
        return m.out((tokens / m.divisor).mean(1) + m.mask * 0.5)

    model = Apply(
        forward,
        lin=nn.Linear(6, 5),
        token=torch.randn(1, 1, 5),
        position=torch.randn(1, 4, 5),
        scale=torch.randn(5),
        shift=torch.randn(4, 1),
        divisor=1 + torch.rand(5),
        mask=torch.randn(()),
        out=nn.Linear(5, 4),
    )
    return model, torch.randn(4, 3, 6)


@case
def queries_repeated_for_the_batch():
    def forward(m, x):
        queries = m.query.unsqueeze(1).repeat(1, len(x), 1) + m.lin(x)
        return m.out(torch.tanh(queries).mean(0))

    model = Apply(forward, query=torch.randn(3, 5), lin=nn.Linear(6, 5), out=nn.Linear(5, 4))
    return model, torch.randn(4, 6)


@case
def scale_in_place():
    def forward(m, x):
        y = m.lin(x)
        y *= m.scale
        y += m.shift
        return m.out(y)

    model = Apply(
        forward,
        lin=nn.Linear(6, 5),
        scale=torch.randn(5),
        shift=torch.randn(5),
        out=nn.Linear(5, 4),
    )
    return model, torch.randn(4, 6)


@case
def relu_in_place_after_every_layer():
    layers = nn.Conv2d(3, 4, 3), nn.ReLU(True), nn.BatchNorm2d(4), nn.ReLU(True), nn.Conv2d(4, 4, 1)
    return head(4 * 9, *layers, nn.ReLU(True)), torch.randn(3, 3, 5, 5)


@case
def relu_in_place_after_a_linear_layer_on_tokens():
    return head(15, nn.Linear(6, 5), nn.ReLU(True), nn.Linear(5, 5), nn.ReLU(True)), torch.randn(
        3, 3, 6
    )


@case
def output_changed_in_place_through_a_view():
    def forward(m, x):
        y = m.a(x)
        y[:, 0] = 0
        y.view(-1).relu_()
        return m.out(y)

    return Apply(forward, a=nn.Linear(6, 5), out=nn.Linear(5, 4)), torch.randn(4, 6)


@case
def residual_added_in_place():
    def forward(m, x):
        y = m.a(x)
        z = m.b(y)
        z += y
        return m.out(z.relu_())

    return Apply(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 5), out=nn.Linear(5, 4)), torch.randn(
        4, 6
    )


@case
def frozen_parameters():
    model = head(16, nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4))
    for p in model[0].parameters():
        p.requires_grad_(False)
    return model, torch.randn(3, 3, 4, 4)


@case
def channels_last():
    model = head(4 * 16, nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    model = model.to(memory_format=torch.channels_last)
    return model, torch.randn(3, 3, 4, 4).to(memory_format=torch.channels_last)


@case
def one_sample():
    return head(16, nn.Conv2d(3, 4, 3), nn.ReLU()), torch.randn(1, 3, 4, 4)


@case
def one_token():
    return head(5, nn.Linear(6, 5), nn.LayerNorm(5)), torch.randn(3, 1, 6)


@case
def images_merged_into_the_batch():
    def forward(m, x):
        n, frames = x.shape[:2]
        y = m.norm(m.conv(x.flatten(0, 1))).relu()
        return m.out(y.mean((2, 3)).view(n, frames, -1).mean(1))

    model = Apply(forward, conv=nn.Conv2d(3, 5, 3), norm=nn.BatchNorm2d(5), out=nn.Linear(5, 4))
    return model, torch.randn(3, 4, 3, 5, 5)


@case
def images_merged_into_the_batch_frame_by_frame():
    def forward(m, x):
        y = m.lin(m.conv(x.transpose(0, 1).flatten(0, 1)).relu().mean((2, 3)))
        return m.out(y.view(x.shape[1], len(x), -1).mean(0))

    model = Apply(forward, conv=nn.Conv2d(3, 5, 3), lin=nn.Linear(5, 5), out=nn.Linear(5, 4))
    return model, torch.randn(3, 4, 3, 5, 5)


@case
def images_merged_into_the_batch_of_a_group_norm():
    def forward(m, x):
        y = m.norm(x.flatten(0, 1)).relu().mean((2, 3))
        return m.out(y.view(*x.shape[:2], -1).mean(1))

    return Apply(forward, norm=nn.GroupNorm(3, 6), out=nn.Linear(6, 4)), torch.randn(3, 2, 6, 3, 3)


@case
def samples_along_the_columns():
    def forward(m, x):
        y = torch.tanh(m.a(x)).t()  # [features, N]
        return m.out((y + m.shift).t())

    return Apply(
        forward, a=nn.Linear(6, 5), shift=torch.randn(5, 1), out=nn.Linear(5, 4)
    ), torch.randn(3, 6)


@case
def a_square_batch():
    def forward(m, x):  # every dimension has the size of the batch
        return m.out(torch.tanh(m.a(x.transpose(1, 2))).transpose(1, 2).sum(1))

    return Apply(forward, a=nn.Linear(3, 3), out=nn.Linear(3, 3)), torch.randn(3, 3, 3)


@case
def addmm_and_matmul():
    def forward(m, x):
        y = torch.addmm(m.b, x.flatten(0, 1), m.w).view(*x.shape[:2], -1)
        return m.out((torch.tanh(y) @ m.v).mean(1))

    model = Apply(
        forward, b=torch.randn(5), w=torch.randn(6, 5), v=torch.randn(5, 7), out=nn.Linear(7, 4)
    )
    return model, torch.randn(4, 3, 6)


@case
def prelu_bilinear_and_lstm():
    def forward(m, x):
        y = m.bilinear(m.prelu(m.lin(x)), x)
        return m.out(m.lstm(y)[0][:, -1])

    model = Apply(
        forward,
        lin=nn.Linear(6, 5),
        prelu=nn.PReLU(5),
        bilinear=nn.Bilinear(5, 6, 4),
        lstm=nn.LSTM(4, 3, batch_first=True),
        out=nn.Linear(3, 4),
    )
    model.prelu = nn.PReLU()
    return model, torch.randn(4, 3, 6)


@case
def unused_parameter():
    model = Apply(lambda m, x: m.out(x), out=nn.Linear(6, 4), spare=nn.Linear(3, 3))
    return model, torch.randn(3, 6)


@case
def part_under_no_grad():
    def forward(m, x):
        with torch.no_grad():
            y = m.a(x)
        return m.out(torch.tanh(m.b(y)) + y.detach())

    return Apply(forward, a=nn.Linear(6, 5), b=nn.Linear(5, 5), out=nn.Linear(5, 4)), torch.randn(
        4, 6
    )


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x * w.square()

    @staticmethod
    def backward(ctx, d):
        x, w = ctx.saved_tensors
        return d * w.square(), (2 * d * x * w).sum(0)


@case
def a_parameter_hidden_in_a_custom_function():
    model = Apply(
        lambda m, x: m.out(_Square.apply(m.a(x), m.w) + m.w),
        a=nn.Linear(6, 5), w=torch.randn(5), out=nn.Linear(5, 4),
    )  # fmt: skip
    return model, torch.randn(4, 6)


@case
def a_frozen_parameter_hidden_in_a_custom_function():
    model, x = a_parameter_hidden_in_a_custom_function()
    return model.requires_grad_(False), x


def build(name):
    torch.manual_seed(0)
    model, x = CASES[name]()
    return randomise(model).eval(), x


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_norms_equal_a_loop_over_samples(name, dtype):
    model, x = build(name)
    model = model.to(dtype)
    x = x.to(dtype) if x.is_floating_point() else x
    norms = gradood.gradient_norms(model, x)
    assert norms.values.dtype == dtype
    assert norms.names == tuple(n for n, _ in model.named_parameters())
    assert_as_promised(norms, model, x)


FALL_BACK = {
    "a_parameter_hidden_in_a_custom_function",
    "a_frozen_parameter_hidden_in_a_custom_function",
}


@pytest.mark.parametrize("name", CASES)
def test_rules_cover_what_they_claim(name):
    model, x = build(name)
    explanation = gradood.explain(model, x)
    assert [row.parameter for row in explanation] == [n for n, _ in model.named_parameters()]
    assert bool(explanation.fallbacks) == (name in FALL_BACK), str(explanation)
    for row in explanation.fallbacks:
        assert row.reason


def test_an_input_overwritten_after_its_use_is_an_error_as_in_autograd():
    def forward(m, x):
        y = torch.sigmoid(x)
        z = m.a(y)
        y.zero_()
        return z

    with pytest.raises(ModelError, match="modified by an inplace operation"):
        gradood.gradient_norms(Apply(forward, a=nn.Linear(6, 5)), torch.randn(4, 6))


def test_a_large_derived_weight_in_float32():
    """Materialised gradients of 3.6 million numbers."""

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(0.02 * torch.randn(1900, 1900))
            self.head = nn.Linear(1900, 5)

        def forward(self, x):
            return self.head(functional.linear(x, 2 * self.weight))

    torch.manual_seed(0)
    model, x = Scaled().eval(), torch.randn(2, 1900)
    assert_as_promised(gradood.gradient_norms(model, x), model, x)
