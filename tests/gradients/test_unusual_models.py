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
from tests.gradients.edge_models import Apply
from tests.gradients.oracle import (
    HiddenSlope,
    _Slope,
    assert_as_promised,
    assert_norms,
    randomise,
    reference_norms,
)
from tests.gradients.unusual_models import CASES, _Scale, two_layers


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
