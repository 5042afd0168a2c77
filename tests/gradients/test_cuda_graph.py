"""What a CUDA graph cannot hold is refused in words; where there is a GPU, replays equal passes."""

import pytest
import torch
from torch import nn

import gradood
from gradood.errors import InputError, ModelError
from tests.gradients.oracle import HiddenSlope


def network():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.Flatten(), nn.Linear(288, 5)]
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"label": "k_hot:2"}, "label k_hot:2.*use one of all_hot"),
        ({"label": torch.ones(5)}, "label a tensor"),
        ({"label": ["all_hot", torch.ones(5)]}, "label a tensor"),
        ({"loss": "ce"}, 'loss "ce".*"bce"'),
        ({"micro_batch": 2}, "micro_batch=2 splits 4 samples"),
    ],
)
def test_arguments_that_cannot_be_captured(options, words):
    with pytest.raises(InputError, match=words):
        gradood.gradient_norms(network(), torch.rand(4, 3, 8, 8), cuda_graph=True, **options)


def test_a_parameter_without_a_rule():
    model = nn.Sequential(nn.Linear(4, 6), HiddenSlope(6), nn.Linear(6, 3)).eval()
    with pytest.raises(ModelError, match="1.weight has none.*cuda_graph=False"):
        gradood.gradient_norms(model, torch.rand(2, 4), cuda_graph=True)
    with pytest.raises(InputError, match="on a CUDA device"):  # the rest would do
        gradood.gradient_norms(model, torch.rand(2, 4), parameters="[02].*", cuda_graph=True)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return self.head(x)


def test_a_model_that_writes_to_itself():
    with pytest.raises(ModelError, match="writes to 'calls'"):
        gradood.gradient_norms(Counting().eval(), torch.rand(2, 4), cuda_graph=True)


def test_tensors_on_the_cpu():
    with pytest.raises(InputError, match="needs x on a CUDA device, not on cpu"):
        gradood.gradient_norms(network(), torch.rand(4, 3, 8, 8), cuda_graph=True)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("label", ["all_hot", ["all_hot", "predicted"]])
def test_replays_equal_passes(label):
    model = network().cuda()
    for seed in range(3):
        x = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(seed)).cuda()
        wanted = gradood.gradient_norms(model, x, label=label)
        got = gradood.gradient_norms(model, x, label=label, cuda_graph=True)
        torch.testing.assert_close(got.values, wanted.values, rtol=1e-5, atol=1e-12)
        with torch.no_grad():  # weights may change in place
            model[4].weight.mul_(1.5)
