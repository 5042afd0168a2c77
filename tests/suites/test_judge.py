"""The judge of the suites finds what it is there to find."""

import pytest
import torch
from torch import nn

import gradood
from gradood.errors import ModelError
from tests.suites.judge import Row, judge


class Model(nn.Module):
    """A linear classifier and a function of its logits."""

    def __init__(self, after=lambda logits: logits):
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.after = nn.Linear(4, 3).double(), after
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        return self.after(self.linear(x))


def judged(model, **options):
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return judge(Row("suite", "entry", "case"), model.eval(), x, **options)


def test_a_linear_classifier_is_exact_in_float64_and_float32():
    row = judged(Model())
    assert (row.outcome, row.parameters, row.elements, row.fallbacks) == ("exact", 2, 15, [])
    assert row.error < 1e-12 and 0 < row.error32 < 1e-5


@pytest.mark.parametrize(
    ("after", "reason"),
    [
        (lambda z: z - z.mean(0), "the samples influence one another"),
        (lambda z: z + 1e-9 * z.sum(), "the gradients of the samples influence one another"),
        (lambda z: z * float("nan"), "the logits are not finite"),
        (lambda z: z.detach(), "no gradient reaches a parameter"),
    ],
)
def test_models_without_a_right_answer_must_be_refused(after, reason, monkeypatch):
    norms = gradood.GradientNorms(torch.zeros(3, 2), ("a", "b"), torch.zeros(3, 3))
    monkeypatch.setattr(gradood, "gradient_norms", lambda *_: norms)
    row = judged(Model(after))
    assert (row.outcome, row.reason) == ("no error", reason)

    def refuse(*_):
        raise ModelError("no")

    monkeypatch.setattr(gradood, "gradient_norms", refuse)
    assert judged(Model(after)).outcome == "refused"


def test_random_models_have_no_oracle():
    assert judged(Model(lambda z: z + torch.rand(()))).outcome == "no oracle"


def broken(change):
    """``gradient_norms`` with its result changed."""
    right = gradood.gradient_norms

    def norms(model, x):
        found = right(model, x)
        change(model, x, found.values)
        return found

    return norms


def off_in_float32(model, x, values):
    if values.dtype == torch.float32:
        values[0, 0] *= 1 + 1e-4


def raising(model, x, values):
    raise ValueError("no")


def refusing(model, x, values):
    raise ModelError("no")


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        (lambda model, x, values: values[1, 1].mul_(1 + 1e-8), "mismatch"),
        (off_in_float32, "mismatch in float32"),
        (lambda model, x, values: model.seen.add_(1), "changed"),
        (lambda model, x, values: x[0].add_(1), "changed"),
        (raising, "exception"),
        (refusing, "wrong error"),
    ],
)
def test_every_fault_is_found(change, outcome, monkeypatch):
    monkeypatch.setattr(gradood, "gradient_norms", broken(change))
    assert judged(Model()).outcome == outcome


def test_what_takes_too_long_is_stopped(monkeypatch):
    def for_ever(*_):
        while True:
            pass

    monkeypatch.setattr(gradood, "gradient_norms", for_ever)
    assert judged(Model(), seconds=1).outcome == "time limit"
