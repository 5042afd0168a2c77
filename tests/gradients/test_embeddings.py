"""Tables of rows, in bags and alone: equal to a loop; weights that would change are refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradood
from gradood.errors import ModelError
from tests.gradients.edge_models import Apply
from tests.gradients.oracle import assert_norms, randomise, reference_norms


def several_lengths(m, x):
    """Three bags a sample, of one, none and five rows."""
    starts = torch.arange(0, x.numel(), 6)[:, None] + torch.tensor([0, 1, 1])
    return m.bag(x.flatten(), starts.flatten()).view(len(x), 3, 5).sum(1)


BAGS = {
    "sum": ({"mode": "sum"}, lambda m, x: m.bag(x)),
    "mean": ({"mode": "mean"}, lambda m, x: m.bag(x)),
    "max": ({"mode": "max"}, lambda m, x: m.bag(x)),
    "sum, padded": ({"mode": "sum", "padding_idx": 2}, lambda m, x: m.bag(x)),
    "mean, padded": ({"mode": "mean", "padding_idx": -9}, lambda m, x: m.bag(x)),
    "max, padded": ({"mode": "max", "padding_idx": 0}, lambda m, x: m.bag(x)),
    "weighted": (
        {"mode": "sum"},
        lambda m, x: m.bag(x, per_sample_weights=x.to(m.bag.weight) * 0.1),
    ),
    "weighted by a parameter": (
        {"mode": "sum"},
        lambda m, x: m.bag(x, per_sample_weights=m.scale.expand(len(x), -1)),
    ),
    "offsets": (
        {"mode": "mean"},
        lambda m, x: m.bag(x.flatten(), torch.arange(0, x.numel(), x.shape[1])),
    ),
    "offsets, the last included": (
        {"mode": "sum", "include_last_offset": True},
        lambda m, x: m.bag(x.flatten(), torch.arange(0, x.numel() + 1, x.shape[1])),
    ),
    "bags of several lengths": (
        {"mode": "max"},
        several_lengths,
    ),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("name", BAGS)
def test_norms_of_a_bag_equal_a_loop(name, dtype):
    options, forward = BAGS[name]
    torch.manual_seed(0)
    model = Apply(
        lambda m, x: m.out(torch.tanh(forward(m, x))),
        bag=nn.EmbeddingBag(9, 5, **options),
        scale=torch.randn(6),
        out=nn.Linear(5, 3),
    )
    x = torch.randint(0, 9, (4, 6))
    x[1] = 0
    model = randomise(model).eval().to(dtype)
    explanation = gradood.explain(model, x)
    assert not explanation.fallbacks, str(explanation)
    norms = gradood.gradient_norms(model, x)
    assert_norms(norms, reference_norms(model, x), 1e-10 if dtype == torch.float64 else 1e-5)
    torch.testing.assert_close(norms.logits, model(x).detach())


@pytest.mark.parametrize("method", ["auto", "vmap", "loop"])
@pytest.mark.parametrize("layer", [nn.Embedding, nn.EmbeddingBag])
def test_a_weight_that_every_pass_rewrites_is_refused_unchanged(layer, method):
    torch.manual_seed(0)
    table = layer(9, 5, max_norm=0.5)
    model = nn.Sequential(table, nn.Flatten(), nn.LazyLinear(3)).eval()
    x = torch.randint(0, 9, (4, 6))
    with torch.no_grad():
        model(x)
        table.weight.copy_(torch.randn(9, 5) * 3)
    before = table.weight.detach().clone()
    with pytest.raises(ModelError, match="max_norm"):
        gradood.gradient_norms(model, x, method=method)
    assert torch.equal(table.weight, before)


def test_a_functional_table_that_is_rewritten_is_refused_unchanged():
    model = Apply(
        lambda m, x: functional.embedding(x, m.w, max_norm=0.5).sum(1), w=torch.randn(9, 3) * 3
    )
    before = model.w.detach().clone()
    with pytest.raises(ModelError, match="max_norm"):
        gradood.gradient_norms(model.eval(), torch.randint(0, 9, (4, 6)))
    assert torch.equal(model.w, before)


def test_a_functional_bag():
    model = Apply(lambda m, x: functional.embedding_bag(x, m.w, mode="sum"), w=torch.randn(9, 3))
    model, x = model.double().eval(), torch.randint(0, 9, (4, 6))
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-10)
