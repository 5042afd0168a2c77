"""The table of cases in which peers are silently wrong, fail, or leave parameters out."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradood
from gradood.errors import ModelError
from tests.gradients import edge_norms  # noqa: F401  (more cases)
from tests.gradients.edge_models import CASES, Apply, case, head
from tests.gradients.oracle import assert_as_promised, randomise


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
