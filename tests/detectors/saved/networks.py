"""The network of the saved detectors in this folder, and inputs: the same on every PyTorch."""

import torch
from torch import nn


def network():
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4)).eval()
    for i, parameter in enumerate(model.parameters()):
        values = torch.linspace(-1, 1, parameter.numel(), dtype=torch.float64).add(i).sin()
        parameter.data = values.reshape(parameter.shape).float()
    return model


def inputs(count, shift=0.0):
    values = torch.linspace(0, 40, count * 6, dtype=torch.float64).add(shift).cos()
    return values.reshape(count, 6).float()
