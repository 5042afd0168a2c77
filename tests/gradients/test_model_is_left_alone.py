"""What must not change: the model, callers' modes, other threads."""

import copy
import threading

import pytest
import torch
from torch import nn

import gradood
from tests.gradients.oracle import (
    FLOAT32,
    assert_norms,
    reference_norms,
)


def state_of(model):
    return (
        {k: v.clone() for k, v in model.state_dict().items()},
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
        [m.training for m in model.modules()],
        [dict(m._forward_hooks) for m in model.modules()],
        [set(vars(m)) for m in model.modules()],
    )


def assert_same_state(model, before):
    after = state_of(model)
    for name, value in before[0].items():
        assert torch.equal(value, after[0][name]), name
    assert before[1:] == after[1:]


class Failing(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.fail = inner, False

    def forward(self, x):
        out = self.inner(x)
        if self.fail and len(x) > 3:
            raise ArithmeticError("in the middle")
        return out


@pytest.mark.parametrize("method", ["auto", "vmap", "loop"])
def test_the_model_is_unchanged(model, x, method):
    model[0].weight.requires_grad_(False)
    model[6].weight.grad = None
    before = state_of(model)
    gradood.gradient_norms(model, x, method=method)
    assert_same_state(model, before)


def test_the_model_is_unchanged_after_an_exception(model, x):
    model = Failing(model).eval()
    model.inner[0].weight.requires_grad_(False)
    before = state_of(model)
    gradood.gradient_norms(model, x[:2])
    model.fail = True
    with pytest.raises(ArithmeticError):
        gradood.gradient_norms(model, x)
    model.fail = False
    assert_same_state(model, before)


def test_buffers_and_caches_that_a_forward_pass_writes_are_restored(x):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(4, 4)
            self.table = nn.Parameter(torch.randn(3, 4))
            self.register_buffer("calls", torch.zeros(()))
            self.cache, self.kept = {}, {"list": [None]}

        def forward(self, x):
            self.calls += 1
            if "bias" not in self.cache:
                self.cache["bias"] = self.table[torch.tensor([0, 2])].sum(0)
            if self.kept["list"][0] is None:
                self.kept["list"][0] = self.table.exp().sum(0)
            return self.lin(x) + self.cache["bias"] * self.kept["list"][0]

    model = Counting().eval()
    data = torch.randn(3, 4)
    expected = reference_norms(model, data)
    for method in ("auto", "loop", "vmap", "auto"):
        assert_norms(gradood.gradient_norms(model, data, method=method), expected, FLOAT32)
        assert model.calls == 0 and model.cache == {} and model.kept == {"list": [None]}


def test_callers_may_have_gradients_off(model, x):
    expected = gradood.gradient_norms(model, x).values
    with torch.no_grad():
        assert torch.equal(gradood.gradient_norms(model, x).values, expected)
    with torch.inference_mode():
        made_here = x.clone()
        norms = gradood.gradient_norms(model, made_here).values
        loaded = copy.deepcopy(model)
        also = gradood.gradient_norms(loaded, made_here).values
    assert torch.equal(norms, expected)
    assert torch.equal(also, expected)
    assert not norms.requires_grad


def test_two_threads_score_two_models(x):
    torch.manual_seed(0)
    models = [
        nn.Sequential(nn.Flatten(), nn.Linear(147, n), nn.ReLU(), nn.Linear(n, 5)) for n in (8, 9)
    ]
    expected = [gradood.gradient_norms(m, x).values for m in models]
    wrong = []

    def score(model, values):
        for _ in range(20):
            if not torch.equal(gradood.gradient_norms(model, x).values, values):
                wrong.append(model)

    jobs = [(m, v) for m, v in zip(models, expected, strict=True)] * 2
    threads = [threading.Thread(target=score, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_model_may_call_gradient_norms_itself(x):
    inner = nn.Sequential(nn.Flatten(), nn.Linear(147, 4))

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(2, 3)

        def forward(self, x):
            return self.out(gradood.gradient_norms(inner, x).values.log())

    model = Outer().eval()
    features = gradood.gradient_norms(inner, x).values.log()
    expected = gradood.gradient_norms(model.out, features)
    torch.testing.assert_close(gradood.gradient_norms(model, x).values, expected.values)
