"""Activations that come with a pass, against hooks on the modules that made them."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradood
from gradood.errors import InputError
from gradood.gradients import forward_norms, gradient_norms


class TimeFirst(nn.Module):
    """Holds the samples along dimension 1, and windows merged with them along dimension 0."""

    def __init__(self):
        super().__init__()
        self.inner, self.norm, self.windowed = nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.norm(self.inner(x.transpose(0, 1)))
        windows = x.transpose(0, 1).unflatten(1, (2, 2)).flatten(0, 1)
        return self.head(self.windowed(windows).unflatten(0, (len(x[0]), 2)).mean((1, 2)))


def convolutional():
    return nn.Sequential(
        *(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)),
    )


CASES = {
    "convolutional": (convolutional, (2, 7, 7)),
    "channels last": (lambda: convolutional().to(memory_format=torch.channels_last), (2, 7, 7)),
    "samples elsewhere": (TimeFirst, (4, 6)),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    torch.manual_seed(0)
    build, shape = request.param
    return build().eval(), torch.randn(5, *shape)


def by_hooks(model, one):
    """``Σ a²`` of every module with parameters, for one sample: no batch dimension to find."""
    found = []
    hooks = [
        module.register_forward_hook(lambda m, args, out: found.append((m, out.double().clone())))
        for module in model.modules()
        if next(module.parameters(recurse=False), None) is not None
    ]
    with torch.no_grad():
        model(one[None])
    for hook in hooks:
        hook.remove()
    return found


def channels_last(module, out):
    return out.movedim(1, -1) if isinstance(module, nn.Conv2d | nn.BatchNorm2d) else out


def test_activations_are_those_of_every_layer_with_parameters(case):
    model, x = case
    norms = gradient_norms(model, x, activations=True)
    for n, one in enumerate(x):
        outs = by_hooks(model, one)
        expected = torch.stack([out.square().sum() for _, out in outs])
        torch.testing.assert_close(norms.activations[n].double(), expected, rtol=1e-4, atol=1e-6)
        by_channel = [channels_last(*pair).flatten(0, -2) for pair in outs]
        means = torch.cat([out.mean(0) for out in by_channel])
        powers = torch.cat([out.square().mean(0) for out in by_channel])
        expected = torch.stack([means, powers])
        torch.testing.assert_close(norms.channels[n].double(), expected, rtol=1e-4, atol=1e-6)
    weights = tuple(name for name in norms.names if name.endswith("weight"))
    assert norms.activation_names == weights
    assert sum(norms.channel_counts) == norms.channels.shape[2]


def test_normalisation_layers_are_measured_alone_where_there_are_three():
    layers = [
        layer for width in (4, 5, 6) for layer in (nn.LazyConv2d(width, 1), nn.BatchNorm2d(width))
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.LazyLinear(3))
    model(torch.ones(2, 2, 3, 3))
    norms = forward_norms(model.eval(), torch.randn(4, 2, 3, 3))
    assert norms.activation_names == ("1.weight", "3.weight", "5.weight")
    assert norms.channel_counts == (4, 5, 6)


def test_wide_layers_keep_some_channels_and_the_norm_of_all():
    model, x = (
        nn.Sequential(nn.Conv2d(2, 150, 1), nn.Flatten(), nn.LazyLinear(3)),
        torch.ones(2, 2, 2, 2),
    )
    model(x)
    norms, out = forward_norms(model.eval(), x), model[0](x).detach()
    assert norms.channel_counts == (50, 3)
    torch.testing.assert_close(norms.channels[:, 0, :50], out[:, ::3].mean((2, 3)))
    torch.testing.assert_close(norms.channels[:, 1, :50], out[:, ::3].square().mean((2, 3)))
    torch.testing.assert_close(norms.activations[:, 0], out.square().sum((1, 2, 3)))


def test_they_are_the_same_without_a_backward_pass(case):
    model, x = case
    with_backward, without = gradient_norms(model, x, activations=True), forward_norms(model, x)
    assert without.values.shape == (5, 0, len(with_backward.names))
    for name in ("activations", "channels", "logits", "features"):
        # The same up to rounding: a weight that needs a gradient may be multiplied by other means.
        pair = getattr(with_backward, name), getattr(without, name)
        torch.testing.assert_close(*pair, rtol=1e-6, atol=1e-6)
    assert not without.activations.requires_grad
    assert without.activation_names == with_backward.activation_names


def test_they_are_not_measured_unless_asked_for(case):
    model, x = case
    assert gradient_norms(model, x).activations is None


def test_micro_batches_rows_and_joins_keep_them(case):
    model, x = case
    whole = gradient_norms(model, x, activations=True)
    micro = gradient_norms(model, x, activations=True, micro_batch=2)
    torch.testing.assert_close(micro.activations, whole.activations)
    parts = [whole.select(slice(0, 2)), whole.select(slice(2, None))]
    joined = gradood.GradientNorms.join(parts)
    assert torch.equal(joined.activations, whole.activations)
    assert joined.activation_names == whole.activation_names
    assert gradood.GradientNorms.join([whole, gradient_norms(model, x)]).activations is None


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_model_that_hides_its_layers_still_has_features_without_a_backward_pass():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 3))

        def forward(self, x):
            return checkpoint(self.layers, x, use_reentrant=True)

    x, model = torch.randn(4, 6), Hidden().eval()
    norms = forward_norms(model, x)
    torch.testing.assert_close(norms.features, model.layers[0](x).detach())
    assert norms.activations is None


def test_rows_that_are_not_finite_have_none():
    x = torch.randn(3, 2, 7, 7)
    x[1, 0, 0, 0] = torch.nan
    norms = forward_norms(convolutional().eval(), x, nan_policy="flag")
    assert norms.activations.isnan().all(1).tolist() == [False, True, False]
    with pytest.raises(InputError, match="NaN"):
        forward_norms(convolutional().eval(), x)
