"""Closed forms of the last layer's gradient, against autograd and against pytorch-ood."""

import pytest
import torch
from torch import nn

import gradood
from gradood.detectors import ExGrad, GradNorm, GradUncertainty
from gradood.errors import ModelError


def last_layer_gradient(logits, weight):
    return torch.autograd.grad(logits, weight)[0].abs().sum()


def test_grad_norm_is_the_l1_norm_of_the_last_weight_gradient(model, pictures):
    x, weight = pictures.normal[:5].double(), model.linear.weight.double().detach()
    features = model.double().features(x).detach()
    model.float()
    expected = []
    for h in features:
        w = weight.clone().requires_grad_()
        z = w @ h + model.linear.bias.double().detach()
        expected.append(-last_layer_gradient(-z.log_softmax(0).mean(), w))
    scores = GradNorm(model).score(pictures.normal[:5]).double()
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-4, atol=1e-6)


def test_ex_grad_is_the_expected_l1_norm(model, pictures):
    x = pictures.anomalous[:5]
    features = model.features(x).double().detach()
    expected = []
    for h in features:
        w = model.linear.weight.double().detach().requires_grad_()
        log_p = (w @ h + model.linear.bias.double().detach()).log_softmax(0)
        norms = [torch.autograd.grad(each, w, retain_graph=True)[0].abs().sum() for each in log_p]
        expected.append((log_p.exp() * torch.stack(norms)).sum().detach())
    scores = ExGrad(model).score(x).double()
    torch.testing.assert_close(scores, torch.stack(expected), rtol=1e-3, atol=1e-6)


def test_scores_equal_pytorch_ood(model, pictures):
    peers = pytest.importorskip("pytorch_ood.detector")
    x = pictures.normal[:6]
    theirs = peers.GradNorm(model, param_filter=lambda name: name == "linear.weight")
    torch.testing.assert_close(GradNorm(model).score(x), theirs.predict(x), rtol=1e-3, atol=1e-6)
    theirs = peers.GradUncertainty(model)
    torch.testing.assert_close(
        GradUncertainty(model).score(x), theirs.predict(x), rtol=1e-3, atol=0
    )


def test_a_model_without_a_last_linear_layer_is_an_error():
    model = nn.Sequential(nn.Conv2d(1, 3, 28), nn.Flatten()).eval()
    x = torch.rand(2, 1, 28, 28)
    with pytest.raises(ModelError, match="last layer"):
        GradNorm(model).score(x)
    assert gradood.GradUncertainty(model).score(x).shape == (2,)
