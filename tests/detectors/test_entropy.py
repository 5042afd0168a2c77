"""Generalised entropy: the formula, by hand; what it refuses."""

import pytest
import torch

import gradood
from gradood.detectors import GeneralizedEntropy
from gradood.errors import InputError


class Logits(torch.nn.Module):
    """The input is the output."""

    def forward(self, x):
        return x


def test_it_is_the_formula_over_the_largest_probabilities():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.4, 0.35, 0.25]])
    for gamma, top in ((0.1, 100), (0.5, 2), (0.1, 1)):
        expected = (p[:, :top] * (1 - p[:, :top])).pow(gamma).sum(1)
        detector = GeneralizedEntropy(Logits().eval(), gamma=gamma, top=top)
        torch.testing.assert_close(detector.score(p.log()), expected)


def test_a_spread_rest_is_more_anomalous_than_a_single_rival():
    p = torch.tensor([[0.7, 0.3 - 2e-7, 1e-7, 1e-7], [0.7, 0.1, 0.1, 0.1]])
    rival, spread = GeneralizedEntropy(Logits().eval()).score(p.log())
    assert spread > rival


def test_it_has_a_derivative_and_is_saved(tmp_path, model, pictures):
    detector = GeneralizedEntropy(model, gamma=0.3, top=4)
    x = pictures.normal[:4].clone().requires_grad_()
    (slope,) = torch.autograd.grad(detector.differentiable_score(x).sum(), x)
    assert slope.isfinite().all() and slope.any()
    detector.save(tmp_path / "detector.safetensors")
    again = gradood.load(tmp_path / "detector.safetensors", model)
    assert torch.equal(again.score(x.detach()), detector.score(x.detach()))
    assert again.settings() == detector.settings()


def test_a_certain_prediction_has_a_finite_slope():
    x = torch.tensor([[1000.0, 0.0, 0.0]], requires_grad=True)
    detector = GeneralizedEntropy(Logits().eval())
    (slope,) = torch.autograd.grad(detector.differentiable_score(x).sum(), x)
    assert slope.isfinite().all()


@pytest.mark.parametrize("options", [{"gamma": 0.0}, {"gamma": 1.0}, {"top": 0}])
def test_impossible_settings_are_refused(options):
    with pytest.raises(InputError, match=next(iter(options))):
        GeneralizedEntropy(Logits().eval(), **options)
