"""Labels, losses, selections."""

import itertools
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradood
from gradood.errors import InputError
from tests.gradients.oracle import (
    FLOAT32,
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


def test_explain_prints_a_table(model, x):
    text = str(gradood.explain(model, x))
    assert "3.weight" in text and "conv" in text and "batchnorm" in text
    with pytest.raises(InputError, match="a sample or more"):
        gradood.explain(model, x[:0])
    rows = gradood.explain(model, x, method="loop")
    assert all(row.rule == "loop" for row in rows)


def seen_batches(model, x, **options):
    """How many samples the first layer gets in a later call, and the norms."""
    gradood.gradient_norms(model, x, **options)
    sizes = []
    handle = next(model.children()).register_forward_hook(
        lambda module, args, out: sizes.append(len(args[0]))
    )
    norms = gradood.gradient_norms(model, x, **options)
    handle.remove()
    return sizes, norms.values


@pytest.mark.parametrize(
    ("parameters", "sizes"),
    [
        (None, [1]),
        ("0.*", [2]),  # PyTorch's own backward of batch norm, which is wrong for one sample
        (["0.*", "1.bias"], [2]),
    ],
)
def test_one_sample_is_scored_beside_a_copy_only_where_batch_norm_is_pytorchs(parameters, sizes):
    layers = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 4)
    model, x = randomise(nn.Sequential(*layers)).eval(), torch.rand(1, 2, 6, 6)
    seen, values = seen_batches(model, x, parameters=parameters)
    assert seen == sizes
    both = gradood.gradient_norms(model, x.repeat(2, 1, 1, 1), parameters=parameters).values
    torch.testing.assert_close(values, both[:1], rtol=1e-5, atol=0)
