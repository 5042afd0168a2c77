"""Models that reorder, couple, hide, cache or recompute: exact, or a clear error, never silence."""

import gc
import threading
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gradood
from gradood.errors import ModelError
from tests.gradients.oracle import (
    HiddenSlope,
    _Slope,
    assert_as_promised,
    assert_norms,
    randomise,
    reference_norms,
)
from tests.gradients.test_edge_cases import Apply

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


def build(name):
    torch.manual_seed(0)
    model, x = CASES[name]()
    model = randomise(model).eval().double()
    return model, x.double() if x.is_floating_point() else x


@pytest.mark.parametrize("name", CASES)
def test_norms_equal_a_loop_over_samples(name):
    model, x = build(name)
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)


@pytest.mark.parametrize("method", ["auto", "loop"])
def test_a_parameter_reached_by_a_reference_of_the_model_s_own(method):
    model, x = two_layers(
        lambda m, x: m.out(_Slope.apply(m.a(x), m.references[0])), slope=torch.rand(1)
    )
    model.references = [model.slope]
    model = randomise(model).eval().double()
    for frozen in (False, True):
        model.slope.requires_grad_(not frozen)
        norms = gradood.gradient_norms(model, x.double(), method=method)
        assert_norms(norms, reference_norms(model, x), 1e-9)
        assert model.slope.requires_grad is not frozen and model.slope.grad is None
    with pytest.raises(ModelError, match="vmap"):
        gradood.gradient_norms(model, x.double(), method="vmap")


def test_vmap_is_refused_where_pytorch_has_it_wrong():
    model = Apply(
        lambda m, x: m.out(m.lstm(x)[0][:, -1]), lstm=nn.LSTM(6, 5, batch_first=True),
        out=nn.Linear(5, 4),
    )  # fmt: skip
    x = torch.randn(4, 3, 6)
    try:
        norms = gradood.gradient_norms(model.eval(), x, method="vmap")
    except ModelError as error:
        assert "vmap" in str(error)
    else:  # a PyTorch in which it is right
        assert_as_promised(norms, model, x)


def test_a_first_batch_of_one_does_not_decide_for_vmap():
    model = nn.Sequential(nn.Linear(6, 8), HiddenSlope(), nn.Linear(8, 4)).eval()
    x = torch.randn(5, 6)
    gradood.gradient_norms(model, x[:1])
    assert_as_promised(gradood.gradient_norms(model, x), model, x)


def test_several_labels_through_the_fallback():
    model = nn.Sequential(nn.Linear(6, 8), HiddenSlope(8), nn.Linear(8, 4)).eval().double()
    x = torch.randn(5, 6).double()
    labels = torch.rand(3, 4).double()
    norms = gradood.gradient_norms(model, x, label=list(labels))
    assert gradood.explain(model, x)[2].rule == "vmap"
    for k, label in enumerate(labels):
        one = gradood.gradient_norms(model, x, label=label)
        assert_norms(one, reference_norms(model, x, label.expand(5, 4)), 1e-9)
        torch.testing.assert_close(norms.values[:, k], one.values, rtol=1e-9, atol=0)


def test_half_precision_through_the_fallback():
    model = nn.Sequential(nn.Linear(6, 8), HiddenSlope(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model[2].weight.mul_(300)  # squares of the gradient overflow in float16
    x = 10 * torch.randn(5, 6)
    expected = reference_norms(model, x)
    norms = gradood.gradient_norms(model.half(), x.half(), method="loop")
    also = gradood.gradient_norms(model, x.half())
    assert_norms(norms, expected, 0.1)
    assert_norms(also, expected, 0.1)


def test_threads_score_one_model_that_needs_the_fallback():
    model = nn.Sequential(nn.Linear(6, 8), HiddenSlope(), nn.Linear(8, 4)).eval()
    x = torch.randn(5, 6)
    expected = gradood.gradient_norms(model, x).values
    found = []

    def score():
        found.extend(gradood.gradient_norms(model, x).values for _ in range(20))

    threads = [threading.Thread(target=score) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60 and all(torch.equal(values, expected) for values in found)


def test_threads_score_two_models_that_share_modules():
    trunk = nn.Sequential(nn.Linear(6, 8), HiddenSlope())
    models = [nn.Sequential(trunk, nn.Linear(8, classes)).eval() for classes in (3, 4)]
    before = dict(trunk.named_parameters())
    x = torch.randn(5, 6)
    expected = [gradood.gradient_norms(model, x).values for model in models]
    wrong = []

    def score(model, values):
        for _ in range(20):
            if not torch.equal(gradood.gradient_norms(model, x).values, values):
                wrong.append(model)

    threads = [
        threading.Thread(target=score, args=job) for job in zip(models, expected, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert all(p is before[name] for name, p in trunk.named_parameters())


def test_tensors_kept_outside_the_model_are_an_error():
    kept = {}

    def forward(m, x):
        if "scale" not in kept:
            kept["scale"] = m.w.exp()
        return m.out(m.a(x) * kept["scale"])

    model, x = two_layers(forward, w=torch.rand(5))
    for _ in range(2):
        with pytest.raises(ModelError, match="keeps tensors made of parameters"):
            gradood.gradient_norms(model.eval(), x)


def test_nothing_made_of_parameters_outlives_the_call():
    model, x = two_layers(
        lambda m, x: m.out(torch.tanh(m.a(x)) + functional.linear(x, m.w.exp() * 2)),
        w=torch.randn(5, 6),
    )
    derived = []
    model.register_forward_hook(lambda m, i, o: derived.append(weakref.ref(m.w.exp())))
    gradood.gradient_norms(model.eval(), x)
    gc.collect()
    gc.disable()
    try:
        derived.clear()
        gradood.gradient_norms(model, x)
        assert derived and all(made() is None for made in derived)
    finally:
        gc.enable()


@pytest.mark.parametrize("method", ["auto", "vmap", "loop"])
def test_random_numbers_and_the_fallback_do_not_mix(method):
    model = nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), HiddenSlope(), nn.Linear(5, 4)).train()
    with pytest.raises(ModelError, match="random|wrongly"):
        gradood.gradient_norms(model, torch.randn(9, 6), method=method)


@pytest.mark.parametrize("method", ["vmap", "loop"])
def test_the_slow_methods_refuse_coupled_samples(method):
    model, x = two_layers(lambda m, x: m.out(m.a(x - x.mean(0))))
    with pytest.raises(ModelError, match="influence one another"):
        gradood.gradient_norms(model.eval(), x, method=method)


COUPLED = {
    "the first sample": lambda m, x: m.out(m.a(x) - m.a(x[:1])),
    "the last sample": lambda m, x: m.out(m.a(x) * x[-1:, :1]),
    "the opposite sample": lambda m, x: m.out(torch.tanh(m.a(x) + m.a(x.flip(0)))),
    "the size of the batch": lambda m, x: m.out(m.a(x)) / len(x),
    "the place in the batch": lambda m, x: m.out(m.a(x)) + m.table[torch.arange(len(x))],
}


@pytest.mark.parametrize("name", COUPLED)
def test_samples_that_depend_on_others_are_an_error(name):
    model, x = two_layers(COUPLED[name], table=torch.randn(9, 4))
    with pytest.raises(ModelError, match="depend on"):
        gradood.gradient_norms(model.eval(), x)


def test_views_that_come_to_overlap_are_planned_anew():
    model, x = two_layers(
        lambda m, x: m.out(
            torch.tanh(m.a(x)) + functional.linear(x, m.w[: m.size]).sum(1, keepdim=True)
            + functional.linear(x, m.w[-m.size :]).sum(1, keepdim=True)
        ),
        w=torch.randn(8, 6),
    )  # fmt: skip
    model = model.eval().double()
    for model.size in (4, 6, 3):
        norms = gradood.gradient_norms(model, x.double())
        assert_norms(norms, reference_norms(model, x), 1e-9)


def test_an_order_of_dimensions_that_changes_between_calls_is_seen():
    model = Apply(
        lambda m, x: m.out(torch.tanh(m.a(x.permute(m.order))).permute(m.order).sum(1)),
        a=nn.Linear(6, 5), out=nn.Linear(5, 4),
    )  # fmt: skip
    model, x = model.eval().double(), torch.randn(5, 5, 6).double()
    for model.order in ((0, 1, 2), (1, 0, 2), (0, 1, 2)):
        assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)


def test_a_large_batch_that_is_treated_otherwise():
    def forward(m, x):
        shift = len(x) // 4  # none in the probe
        return m.out(
            torch.tanh(m.a(x.roll(shift, 0))).roll(-shift, 0) + m.mix * x.roll(shift)[:, :5]
        )

    model, x = two_layers(forward, rows=6)
    model = model.eval().double()
    model.mix = 0.0
    assert_norms(gradood.gradient_norms(model, x.double()), reference_norms(model, x), 1e-9)
    model.mix = 1.0
    with pytest.raises(ModelError, match="influence one another"):
        gradood.gradient_norms(model, x.double())


def test_a_checkpoint_switched_on_between_calls_is_seen():
    def forward(m, x):
        part = lambda y: torch.tanh(m.b(torch.tanh(y)))  # noqa: E731
        y = m.a(x)
        return m.out(checkpoint(part, y, use_reentrant=False) if m.recompute else part(y))

    model, x = two_layers(forward, b=nn.Linear(5, 5))
    model = model.eval().double()
    for model.recompute in (False, True, False):
        norms = gradood.gradient_norms(model, x.double())
        assert_norms(norms, reference_norms(model, x), 1e-9)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_what_autograd_saves_in_another_way_needs_no_fallback(keep, hidden):
    def part(m, y):
        y = torch.tanh(m.b(torch.tanh(y)))
        return _Scale.apply(y, torch.ones(5).to(y)) if hidden else y

    def forward(m, x):
        if not keep:
            return m.out(checkpoint(part, m, m.a(x), use_reentrant=False))
        with torch.autograd.graph.save_on_cpu():
            return m.out(part(m, m.a(x)))

    model, x = two_layers(forward, b=nn.Linear(5, 5))
    model, x = model.eval().double(), x.double()
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)
    explanation = gradood.explain(model, x)
    assert (hidden and not keep) or not explanation.fallbacks, explanation


def test_only_what_picked_places_lead_to_has_no_rule():
    def forward(m, x):
        counts = (x > -9).sum(1)
        assert len(torch.unique_consecutive(counts)) == 1
        best = x.argsort(1)[:, 0].argsort()
        y = torch.tanh(m.b(x[best])).index_select(0, best.argsort())
        return m.out(torch.tanh(m.a(x))) + y[:, :4]

    model, x = two_layers(forward, rows=6, b=nn.Linear(6, 6))
    model, x = model.eval().double(), x.double()
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)
    found = {row.parameter for row in gradood.explain(model, x).fallbacks}
    assert found == {"b.weight", "b.bias"}
