"""Models for test_edge_cases.py: normalisation, derived weights, parameters that broadcast."""

import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from tests.gradients.edge_models import CASES, Apply, case, head


@case
def layer_norm_without_bias():
    return head(30, nn.LayerNorm(6, bias=False)), torch.randn(3, 5, 6)


@case
def layer_norm_over_several_dimensions():
    return head(60, nn.LayerNorm((5, 6))), torch.randn(3, 2, 5, 6)


@case
def group_norm():
    return head(54, nn.GroupNorm(2, 6)), torch.randn(3, 6, 3, 3)


@case
def instance_norm():
    return head(54, nn.InstanceNorm2d(6, affine=True)), torch.randn(3, 6, 3, 3)


@case
def instance_norm_with_running_statistics():
    layer = nn.InstanceNorm1d(6, affine=True, track_running_stats=True)
    layer.running_mean.normal_()
    layer.running_var.uniform_(0.5, 1.5)
    return head(18, layer), torch.randn(3, 6, 3)


for epsilon in (None, 1e-3):
    CASES[f"rms_norm_eps_{epsilon}"] = lambda epsilon=epsilon: (
        head(30, nn.RMSNorm(6, eps=epsilon)),
        torch.randn(3, 5, 6),
    )

for dims, layer in ((1, nn.BatchNorm1d), (2, nn.BatchNorm2d), (3, nn.BatchNorm3d)):
    CASES[f"batch_norm_{dims}d"] = lambda dims=dims, layer=layer: (
        head(6 * 2**dims, layer(6)),
        torch.randn(3, 6, *(2,) * dims),
    )


@case
def batch_norm_of_vectors():
    return nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)), torch.randn(5, 6)


@case
def batch_norm_with_a_gradient_that_is_not_contiguous():
    def forward(m, x):
        return m.out(torch.tanh(m.norm(x).flatten(2).transpose(1, 2)).mean(1))

    return Apply(forward, norm=nn.BatchNorm2d(6), out=nn.Linear(6, 4)), torch.randn(1, 6, 3, 3)


@case
def weight_norm():
    layer = parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    return head(4 * 9, layer), torch.randn(3, 3, 5, 5)


@case
def spectral_norm():
    return nn.Sequential(
        parametrizations.spectral_norm(nn.Linear(6, 5)), nn.Linear(5, 4)
    ), torch.randn(3, 6)


@case
def weight_standardisation():
    def forward(m, x):
        w = m.w.flatten(1)
        w = functional.batch_norm(w[None], None, None, m.gain, training=True, eps=1e-6)
        return m.out(functional.conv2d(x, w.view_as(m.w)).flatten(1))

    model = Apply(forward, w=torch.randn(4, 3, 3, 3), gain=torch.rand(4), out=nn.Linear(36, 4))
    return model, torch.randn(3, 3, 5, 5)


@case
def raw_parameters_by_broadcasting():
    def forward(m, x):
        tokens = torch.cat([m.token.expand(len(x), -1, -1), m.lin(x)], 1) + m.position
        tokens = tokens * m.scale - m.shift
        return m.out((tokens / m.divisor).mean(1) + m.mask * 0.5)

    model = Apply(
        forward,
        lin=nn.Linear(6, 5),
        token=torch.randn(1, 1, 5),
        position=torch.randn(1, 4, 5),
        scale=torch.randn(5),
        shift=torch.randn(4, 1),
        divisor=1 + torch.rand(5),
        mask=torch.randn(()),
        out=nn.Linear(5, 4),
    )
    return model, torch.randn(4, 3, 6)


@case
def queries_repeated_for_the_batch():
    def forward(m, x):
        queries = m.query.unsqueeze(1).repeat(1, len(x), 1) + m.lin(x)
        return m.out(torch.tanh(queries).mean(0))

    model = Apply(forward, query=torch.randn(3, 5), lin=nn.Linear(6, 5), out=nn.Linear(5, 4))
    return model, torch.randn(4, 6)
