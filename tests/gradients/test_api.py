"""Labels, losses, selections, bad input, and what must not change."""

import copy
import itertools
import logging
import threading

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradood
from gradood.errors import InputError, ModelError
from tests.gradients.oracle import (
    FLOAT32,
    HiddenSlope,
    assert_as_promised,
    assert_norms,
    bce,
    randomise,
    reference_norms,
)

LOSSES = {
    "bce": bce,
    "bce_softmax": lambda z, y: functional.binary_cross_entropy(z.softmax(1), y, reduction="sum"),
    "ce": lambda z, y: functional.cross_entropy(z, y / y.sum(1, keepdim=True), reduction="sum"),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 8, 3, 2, bias=False)]
    return randomise(nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(32, 5))).eval()


@pytest.fixture
def x():
    return torch.randn(6, 3, 7, 7, generator=torch.Generator().manual_seed(1))


def hot(*classes):
    return functional.one_hot(torch.tensor(classes), 5).sum(0).float()


def labels_of(logits):
    soft = torch.rand(6, 5, generator=torch.Generator().manual_seed(2))
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    other = torch.randperm(5, generator=torch.Generator().manual_seed(7))
    return {
        "all_hot": ("all_hot", torch.ones(6, 5)),
        "zero_hot": ("zero_hot", torch.zeros(6, 5)),
        "k_hot:2": ("k_hot:2", hot(*order[:2].tolist()).expand(6, 5)),
        "k_hot:3:7": ("k_hot:3:7", hot(*other[:3].tolist()).expand(6, 5)),
        "top_k_hot:2": ("top_k_hot:2", torch.zeros(6, 5).scatter(1, logits.topk(2).indices, 1.0)),
        "one_hot:3": ("one_hot:3", hot(3).expand(6, 5)),
        "predicted": ("predicted", functional.one_hot(logits.argmax(1), 5).float()),
        "uniform": ("uniform", torch.full((6, 5), 0.2, dtype=torch.float64)),
        "tensor_C": (soft[0], soft[0].expand(6, 5)),
        "tensor_NC": (soft, soft),
    }


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", list(labels_of(torch.randn(6, 5))))
def test_every_label_and_loss_matches_autograd(model, x, name, loss):
    model, x = model.double(), x.double()
    label, target = labels_of(model(x).detach())[name]
    if loss == "ce" and name == "zero_hot":
        with pytest.raises(InputError, match="positive sum"):
            gradood.gradient_norms(model, x, label=label, loss=loss)
        return
    expected = reference_norms(model, x, target, LOSSES[loss])
    assert_norms(gradood.gradient_norms(model, x, label=label, loss=loss), expected, 1e-9)
    rows = gradood.gradient_norms(model, x, label=label, loss=loss, micro_batch=4)
    assert_norms(rows, expected, 1e-9)


def test_a_confident_prediction_has_a_tiny_gradient_and_not_zero():
    model = nn.Linear(2, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.tensor([60.0, 0.0, 1.0]))
    for loss in ("ce", "bce_softmax"):
        norms = gradood.gradient_norms(
            model.double(), torch.ones(1, 2).double(), label="predicted", loss=loss
        )
        # p_j = e^(z_j − 60) for the other classes, and 1 − p_0 their sum.
        p = torch.tensor([0.0, 1.0]).double().sub(60).exp()
        rest = torch.cat([p, p.sum()[None]])
        scale = 1.0 if loss == "ce" else None
        if scale:
            assert norms.values[0, 1] == pytest.approx(float(rest.square().sum()), rel=1e-9)
        assert 0 < norms.values[0, 1] < 1e-40


def test_several_labels_share_one_forward_pass(model, x):
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    labels = ["all_hot", "uniform", torch.rand(6, 5), "predicted"]
    gradood.gradient_norms(model, x, label=labels)  # the probe has its own passes
    calls.clear()
    norms = gradood.gradient_norms(model, x, label=labels)
    assert len(calls) == 1
    assert norms.values.shape == (6, 4, len(norms.names))
    for k, label in enumerate(labels):
        torch.testing.assert_close(
            norms.values[:, k],
            gradood.gradient_norms(model, x, label=label).values,
            rtol=1e-5,
            atol=0,
        )
    torch.testing.assert_close(norms.logits, model(x).detach())


@pytest.mark.parametrize("method", ["vmap", "loop", "rules"])
def test_methods_agree(model, x, method):
    model, x = model.double(), x.double()
    labels = ["all_hot", "predicted"]
    expected = gradood.gradient_norms(model, x, label=labels)
    other = gradood.gradient_norms(model, x, label=labels, method=method)
    torch.testing.assert_close(other.values, expected.values, rtol=1e-10, atol=0)


@pytest.mark.parametrize("micro_batch", [1, 2, 4, 5, 6, 100])
def test_norms_do_not_depend_on_the_micro_batch(model, x, micro_batch):
    whole = gradood.gradient_norms(model.double(), x.double())
    parts = gradood.gradient_norms(model, x.double(), micro_batch=micro_batch)
    torch.testing.assert_close(parts.values, whole.values, rtol=1e-12, atol=0)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_small_batches_in_micro_batches_of_one(model, x, samples):
    model, x = model.double(), x[:samples].double()
    label = torch.rand(samples, 5, generator=torch.Generator().manual_seed(3))
    for method in ("auto", "loop", "vmap"):
        norms = gradood.gradient_norms(model, x, label=label, micro_batch=1, method=method)
        assert_norms(norms, reference_norms(model, x, label), 1e-9)


def test_selection_by_name_pattern_and_predicate(model, x):
    every = gradood.gradient_norms(model, x)
    for selection, names in (
        ("6.bias", ("6.bias",)),
        ("*.bias", ("0.bias", "1.bias", "6.bias")),
        (["6.*", "0.weight"], ("0.weight", "6.weight", "6.bias")),
        (lambda name, p: p.dim() == 4, ("0.weight", "3.weight")),
    ):
        norms = gradood.gradient_norms(model, x, parameters=selection)
        assert norms.names == names
        columns = [every.names.index(n) for n in names]
        torch.testing.assert_close(norms.values, every.values[:, columns], rtol=1e-5, atol=0)


def test_selection_finds_a_shared_parameter_under_either_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    norms = gradood.gradient_norms(model, torch.randn(3, 4), parameters="2.weight")
    assert norms.names == ("0.weight",)


class _Saved:
    """Count the tensors that autograd keeps, and the operators of a backward pass."""

    def __enter__(self):
        self.count = 0

        def pack(t):
            self.count += 1
            return t

        self._hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t)
        self._hooks.__enter__()
        return self

    def __exit__(self, *error):
        self._hooks.__exit__(*error)


def test_a_late_selection_keeps_nothing_before_it(model, x):
    gradood.gradient_norms(model, x, parameters="6.*")  # probe first
    with _Saved() as saved:
        gradood.gradient_norms(model, x, parameters="6.*")
    assert saved.count == 0  # the classifier's gradient is the logits' own
    gradood.gradient_norms(model, x, parameters="3.weight")
    with _Saved() as late:
        gradood.gradient_norms(model, x, parameters="3.weight")
    gradood.gradient_norms(model, x)
    with _Saved() as full:
        gradood.gradient_norms(model, x)
    assert 0 < late.count < full.count


def test_no_weight_gradient_is_computed(model, x):
    gradood.gradient_norms(model, x)
    with torch.profiler.profile() as profile:
        gradood.gradient_norms(model, x)
    names = {e.key for e in profile.key_averages()}
    assert "aten::convolution_backward" in names
    with torch.profiler.profile(record_shapes=True) as profile:
        gradood.gradient_norms(model, x)
    # One input gradient is needed, of the second convolution; no backward of the first.
    count = sum(e.count for e in profile.key_averages() if e.key == "aten::convolution_backward")
    assert count == 1


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models(model, x, dtype):
    expected = reference_norms(model, x)
    norms = gradood.gradient_norms(model.to(dtype), x.to(dtype))
    assert norms.values.dtype == torch.float32
    assert_norms(norms, expected, 0.1)


def test_autocast(model, x):
    expected = reference_norms(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        norms = gradood.gradient_norms(model, x)
    assert_norms(norms, expected, 0.1)
    assert_norms(gradood.gradient_norms(model, x), expected, FLOAT32)


def test_empty_batch(model, x):
    assert gradood.gradient_norms(model, x[:0]).values.shape == (0, 7)
    assert gradood.gradient_norms(model, x[:0], label=["all_hot", "uniform"]).values.shape == (
        0,
        2,
        7,
    )


def test_a_model_without_parameters(x):
    norms = gradood.gradient_norms(nn.Flatten(), x)
    assert norms.values.shape == (6, 0)


def test_an_edited_model_is_planned_anew(model, x):
    gradood.gradient_norms(model, x)
    model[4] = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False), nn.Tanh())
    assert_as_promised(gradood.gradient_norms(model, x), model, x)
    model[1] = nn.Identity()
    assert_as_promised(gradood.gradient_norms(model, x), model, x)


def test_operators_that_change_from_call_to_call_fall_back(caplog):
    calls = itertools.count()

    class Moody(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.b(
                torch.tanh(self.a(x)).clone() if next(calls) % 2 else torch.tanh(self.a(x))
            )

    model, data = Moody().eval(), torch.randn(3, 4)
    with caplog.at_level(logging.INFO, "gradood"):
        norms = gradood.gradient_norms(model, data)
    assert_as_promised(norms, model, data)
    assert "the operators that the model runs" in caplog.text


def test_torchscript_falls_back(model, x):
    data = x[:, 0, 0]
    inner = nn.Sequential(nn.Linear(7, 4), nn.Tanh(), nn.Linear(4, 3))
    with pytest.warns(FutureWarning):
        scripted = torch.jit.script(inner)
    expected = reference_norms(inner, data)
    outer = nn.Sequential(scripted, nn.Linear(3, 3))
    norms = gradood.gradient_norms(outer, data)
    assert_norms(gradood.gradient_norms(inner, data), expected, FLOAT32)
    assert norms.values.min() > 0


def test_an_output_with_logits_is_understood(model, x):
    class Wrapped(nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.inner, self.kind = model, kind

        def forward(self, x):
            return self.kind(self.inner(x))

    class Output:
        def __init__(self, logits):
            self.logits = logits

    expected = gradood.gradient_norms(model, x).values
    for kind in (Output, lambda z: {"logits": z}):
        assert torch.equal(gradood.gradient_norms(Wrapped(kind).eval(), x).values, expected)


def test_nan_is_an_error_that_names_the_rows_or_is_flagged(model, x):
    bad = x.clone()
    bad[1, 0, 0, 0] = float("nan")
    bad[4, 2, 1, 1] = float("inf")
    with pytest.raises(InputError, match=r"2 of 6 rows \(1, 4\)"):
        gradood.gradient_norms(model, bad)
    flagged = gradood.gradient_norms(model, bad, nan_policy="flag").values
    assert flagged[[1, 4]].isinf().all()
    good = [0, 2, 3, 5]
    torch.testing.assert_close(flagged[good], gradood.gradient_norms(model, x).values[good])


def test_large_finite_input_is_not_called_infinite():
    model = nn.Linear(4, 2)
    with torch.no_grad():
        model.weight.mul_(1e-38)  # logits that float32 holds
    norms = gradood.gradient_norms(model, torch.full((3, 4), 3e38), parameters="bias")
    assert norms.values.isfinite().all() and norms.values.shape == (3, 1)


BAD = {
    "batch statistics": (lambda m, x: (m.train(), x), {}, ModelError, r"model\.eval\(\)"),
    "no statistics": (
        lambda m, x: (nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), m).eval(), x),
        {},
        ModelError,
        "statistics of the batch",
    ),
    "logits not [N, C]": (lambda m, x: (m[:3], x), {}, ModelError, r"not floating-.*\[N, C\]"),
    "a tuple": (
        lambda m, x: (nn.Sequential(nn.Flatten(), nn.LSTM(147, 3)), x), {}, ModelError, "tuple"
    ),  # fmt: skip
    "integers": (lambda m, x: (m, (x * 50).to(torch.uint8)), {}, InputError, r"x\.float\(\) / 255"),
    "not a tensor": (lambda m, x: (m, x.tolist()), {}, InputError, "must be a Tensor"),
    "no batch": (lambda m, x: (m, x[0, 0, 0, 0]), {}, InputError, "dimension 0"),
    "not a module": (lambda m, x: (m.forward, x), {}, InputError, "torch.nn.Module"),
    "label": (lambda m, x: (m, x), {"label": "hot"}, InputError, "not known; use"),
    "label k": (lambda m, x: (m, x), {"label": "k_hot:9"}, InputError, "0 to 5"),
    "label number": (lambda m, x: (m, x), {"label": "one_hot:x"}, InputError, "whole number"),
    "label size": (lambda m, x: (m, x), {"label": torch.ones(3)}, InputError, r"\[5\] or \[6, 5\]"),
    "label range": (lambda m, x: (m, x), {"label": torch.ones(5) * 2}, InputError, "0 and 1"),
    "label list": (lambda m, x: (m, x), {"label": []}, InputError, "not empty"),
    "loss": (lambda m, x: (m, x), {"loss": "mse"}, InputError, "bce_softmax"),
    "method": (lambda m, x: (m, x), {"method": "fast"}, InputError, "rules"),
    "micro batch": (lambda m, x: (m, x), {"micro_batch": 0}, InputError, "samples a pass"),
    "policy": (lambda m, x: (m, x), {"nan_policy": "ignore"}, InputError, "flag"),
    "pattern": (lambda m, x: (m, x), {"parameters": "head.*"}, InputError, "matches none"),
    "max norm": (
        lambda m, x: (
            nn.Sequential(nn.Embedding(5, 3, max_norm=1.0), nn.Flatten()),
            x[:, 0, 0].long() * 0,
        ),
        {},
        ModelError,
        "max_norm",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_raises_its_error(model, x, name):
    change, arguments, error, message = BAD[name]
    model, x = change(model, x)
    with pytest.raises(error, match=message):
        gradood.gradient_norms(model, x, **arguments)


def test_samples_that_influence_one_another_are_an_error(x):
    class Centred(nn.Module):
        def __init__(self):
            super().__init__()
            self.lin = nn.Linear(147, 4)

        def forward(self, x):
            x = x.flatten(1)
            return self.lin(x - x.mean(0))

    with pytest.raises(ModelError, match="depend on the other samples"):
        gradood.gradient_norms(Centred().eval(), x)


def test_rules_only_names_what_is_not_covered():
    model = nn.Sequential(nn.Linear(4, 4), HiddenSlope(), nn.Linear(4, 2))
    with pytest.raises(ModelError, match="1.weight: used where no operator can be seen"):
        gradood.gradient_norms(model, torch.randn(3, 4), method="rules")


def test_explain_prints_a_table(model, x):
    text = str(gradood.explain(model, x))
    assert "3.weight" in text and "conv" in text and "batchnorm" in text
    with pytest.raises(InputError, match="a sample or more"):
        gradood.explain(model, x[:0])
    rows = gradood.explain(model, x, method="loop")
    assert all(row.rule == "loop" for row in rows)
