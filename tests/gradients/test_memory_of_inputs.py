"""Models that look at the memory their input lies in, where every sample alone is the first."""

import pytest
import torch
from torch import nn

import gradood
from gradood.errors import ModelError


class Written(nn.Module):
    """Writes a parameter over elements 1 and 2 of the batch's memory: those of its first sample."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.weight, self.head = nn.Parameter(torch.randn(2)), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.as_strided_scatter(x, self.weight, (2,), (1,), 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_is_done_to_the_first_sample_alone_is_refused(dtype):
    model = Written().to(dtype).eval()
    with pytest.raises(ModelError, match="place"):
        gradood.gradient_norms(model, torch.randn(3, 4, dtype=dtype))
