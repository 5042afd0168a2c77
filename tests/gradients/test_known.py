"""Passes that repeat what earlier ones found out: whatever changes in between must be seen."""

import copy
import gc

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import gradood
from gradood.errors import ModelError
from gradood.gradients import known
from gradood.gradients.known_kernels import Kernel
from gradood.ops import cpp_backend
from gradood.ops.dispatch import prepare
from tests.gradients.oracle import assert_as_promised, randomise

pytestmark = pytest.mark.skipif(bool(cpp_backend.unavailable()), reason="needs the C++ kernels")


class Network(nn.Module):
    """Convolutions, batch norms, a layer norm and linear layers, with room for changes."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1, groups=2, bias=False)
        self.layer_norm = nn.LayerNorm(8)
        self.fc = nn.Linear(8, 4)
        self.slope, self.kept, self.layout = 0.0, 1.0, torch.contiguous_format
        self.axis = 2
        self.change = None

    def forward(self, x):
        h = self.norm(self.first(x)).contiguous(memory_format=self.layout)
        h = functional.leaky_relu(h, self.slope) * self.kept
        h = self.second(h) + torch.roll(h, 1, self.axis)
        if self.change is not None:
            h = self.change(h)
        return self.fc(self.layer_norm(h.flatten(2).mean(2)))


@pytest.fixture
def repeated(monkeypatch):
    """The kernels that ran because they were known, one entry a call."""
    found = []
    run = Kernel.run

    def counted(self, *arguments):
        found.append(self.repeated.kernel.__name__)
        return run(self, *arguments)

    monkeypatch.setattr(Kernel, "run", counted)
    return found


@pytest.fixture
def network():
    torch.manual_seed(0)
    return randomise(Network()).eval()


@pytest.fixture
def x():
    return torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def settle(model, x, **options):
    """Enough passes to know everything."""
    for _ in range(3):  # arguments are known after one, kernels after two
        gradood.gradient_norms(model, x, **options)


def test_later_passes_are_the_first_one_to_the_bit(network, x, repeated):
    first = gradood.gradient_norms(network, x)
    assert repeated == []
    second = gradood.gradient_norms(network, x)
    assert repeated == []
    third = gradood.gradient_norms(network, x)
    assert len(repeated) == 5
    for later in (second, third):
        assert torch.equal(first.values, later.values)
        assert torch.equal(first.features, later.features)
        assert torch.equal(first.logits, later.logits)
    assert_as_promised(third, network, x)


def batch_norm_eps(model):
    model.norm.eps = 0.3


def layer_norm_eps(model):
    model.layer_norm.eps = 0.4


def slope(model):
    model.slope = 0.2


def scale(model):
    model.kept = 0.25


def axis(model):
    model.axis = 3


def new_statistics(model):
    model.norm.running_var = torch.rand(8) + 0.2
    model.norm.running_mean = torch.rand(8)


def statistics_in_place(model):
    model.norm.running_var.mul_(3)


def statistics_by_data(model):
    model.norm.running_var.data = torch.rand(8) + 0.2


def strided_statistics(model):
    model.norm.running_var.data = (torch.rand(16) + 0.2)[::2]


def weights_in_place(model):
    with torch.no_grad():
        model.second.weight.mul_(2)


def weights_by_data(model):
    model.second.weight.data = torch.randn(8, 4, 3, 3)


def another_kernel(model):
    model.first.weight.data = torch.randn(8, 3, 4, 4)  # the output is as large as before


def strided_weight(model):
    model.norm.weight.data = (torch.rand(16) + 0.5)[::2]


def new_weights(model):
    model.second.weight = nn.Parameter(torch.randn(8, 4, 3, 3))


def groups(model):
    model.second.weight.data = torch.randn(8, 2, 3, 3)
    model.second.groups = 4


def dilation(model):
    model.second.dilation, model.second.padding = (2, 2), (2, 2)


def layout(model):
    model.layout = torch.channels_last


def another_layer(model):
    model.norm = nn.Sequential(nn.BatchNorm2d(8), nn.BatchNorm2d(8)).eval()


def another_shape(model):
    model.change = lambda h: h[:, :, 1:]


def negated(model):
    model.change = lambda h: torch._neg_view(h)


def hooked(model):
    model.second.register_forward_hook(lambda module, args, out: out * 2)


def untracked(model):
    model.change = lambda h: h.detach()


CHANGES = (
    *(batch_norm_eps, layer_norm_eps, slope, scale, axis, new_statistics, statistics_in_place),
    *(statistics_by_data, strided_statistics, weights_in_place, weights_by_data, another_kernel),
    *(strided_weight, new_weights, groups, dilation, layout, another_layer, another_shape),
    *(negated, hooked, untracked),
)


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_changes_between_passes_is_seen(change, network, x, repeated):
    settle(network, x)
    assert repeated
    before = gradood.gradient_norms(network, x).values
    torch.manual_seed(2)
    change(network)
    for _ in range(3):
        norms = gradood.gradient_norms(network, x)
        assert_as_promised(norms, network, x)
        assert not torch.equal(norms.values, before)


def test_samples_that_are_mixed(network, x):
    settle(network, x)
    network.axis = 0
    with pytest.raises(ModelError, match="depend on the other samples"):
        gradood.gradient_norms(network, x)


def test_constants_that_are_made_anew(network, x):
    """A number that is gone leaves its identity to another."""
    for eps in ("0.1", "0.2", "0.3"):
        gc.collect()  # copies of the network
        del network.norm.eps
        network.norm.eps = float(eps)
        settle(network, x)
        assert_as_promised(gradood.gradient_norms(network, x), network, x)


@pytest.mark.parametrize("rows", [1, 3, 5])
def test_other_batches(rows, network, x):
    settle(network, x)
    for batch in (x[:rows], x[-rows:].contiguous(), x.flip(0)[:rows]):
        assert_as_promised(gradood.gradient_norms(network, batch), network, batch)


def test_layouts_of_the_batch(network, x, repeated):
    settle(network, x)
    for batch in (x.contiguous(memory_format=torch.channels_last), x.transpose(2, 3), x):
        assert_as_promised(gradood.gradient_norms(network, batch), network, batch)
    assert "batch_norm" in repeated


def test_gradients_of_other_layouts(network, x):
    """What follows decides how a gradient lies in memory."""
    settle(network, x)
    network.change = lambda h: h.transpose(2, 3) * h.new_ones(4, 1)
    settle(network, x)
    assert_as_promised(gradood.gradient_norms(network, x), network, x)


def test_an_input_that_is_overwritten(network, x):
    settle(network, x)

    def overwrite(module, args, out):
        with torch.no_grad():
            args[0].detach().mul_(2)
        return out

    handle = network.norm.register_forward_hook(overwrite)
    with pytest.raises(ModelError, match="overwritten|inplace"):
        gradood.gradient_norms(network, x, method="rules")
    handle.remove()
    assert_as_promised(gradood.gradient_norms(network, x), network, x)


def test_several_labels(network, x, repeated):
    labels = ["all_hot", "zero_hot", "all_hot"]
    settle(network, x, label=labels)
    repeated.clear()
    values = gradood.gradient_norms(network, x, label=labels).values
    assert len(repeated) == 15
    assert torch.equal(values[:, 0], values[:, 2])
    for k in (0, 1):
        alone = gradood.gradient_norms(network, x, label=labels[k]).values
        assert torch.equal(values[:, k], alone)


def test_a_selection(network, x):
    for chosen in ("second.*", "norm.bias", ["first.weight", "fc.*"]):
        settle(network, x, parameters=chosen)
        norms = gradood.gradient_norms(network, x, parameters=chosen)
        every = gradood.gradient_norms(network, x)
        places = [every.names.index(name) for name in norms.names]
        torch.testing.assert_close(norms.values, every.values[:, places], rtol=1e-5, atol=0)
    assert all(p.grad is None for p in network.parameters())


def test_parameters_that_are_used_twice(x):
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 4)

        def forward(self, x):
            return self.fc(self.conv(self.conv(x)).mean((2, 3)))

    model = randomise(Twice()).eval()
    settle(model, x)
    assert_as_promised(gradood.gradient_norms(model, x), model, x)


def test_activations_are_measured_all_the_same(network, x):
    first = gradood.gradient_norms(network, x, activations=True)
    for _ in range(2):
        later = gradood.gradient_norms(network, x, activations=True)
        assert torch.equal(first.activations, later.activations)
        assert torch.equal(first.channels, later.channels)
        assert torch.equal(first.values, later.values)


def test_backend_and_instruction_set(network, x, repeated, monkeypatch):
    settle(network, x)
    repeated.clear()
    monkeypatch.setenv("GRADOOD_BACKEND", "torch")
    gradood.gradient_norms(network, x)
    assert repeated == []
    monkeypatch.delenv("GRADOOD_BACKEND")
    before = cpp_backend.instruction_set()
    try:
        cpp_backend.use_instruction_set("baseline")
        assert_as_promised(gradood.gradient_norms(network, x), network, x)
        assert repeated == []
    finally:
        cpp_backend.use_instruction_set(before)


def test_operators_that_somebody_watches(network, x, repeated):
    settle(network, x)
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(str(function))
            return function(*args, **(kwargs or {}))

    repeated.clear()
    with Watch():
        gradood.gradient_norms(network, x)
    assert repeated == []
    assert any("conv_sqnorm" in name for name in seen)
    rows = gradood.explain(network, x)
    assert repeated == [] and not rows.fallbacks


def test_checkpoints(network, x):
    settle(network, x)
    network.change = lambda h: checkpoint(torch.sigmoid, h, use_reentrant=False)
    settle(network, x)
    assert_as_promised(gradood.gradient_norms(network, x), network, x)


def test_operators_that_return_nothing(x):
    """They run once."""
    calls = []

    class Switching(Network):
        def forward(self, x):
            calls.append(None)
            with torch.no_grad():
                offset = x.mean() * 0
            return super().forward(x) + offset

    model = randomise(Switching()).eval()
    settle(model, x)
    calls.clear()
    norms = gradood.gradient_norms(model, x)
    assert len(calls) == 1
    assert_as_promised(norms, model, x)


def test_passes_of_many_sizes_are_forgotten(network):
    for rows in range(1, 14):
        settle(network, torch.randn(rows, 3, 8, 8))
    (plan,) = {id(p): p for p in gradood.gradients.scorer._PLANS[network].values()}.values()
    assert len(plan.known) <= known._KEPT


def test_copies_of_a_model_know_nothing(network, x):
    settle(network, x)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.first.weight.mul_(2)
    assert_as_promised(gradood.gradient_norms(other, x), other, x)


def test_a_kernel_that_fails_is_done_without(network, x, monkeypatch):
    settle(network, x)

    def broken(*numbers):
        raise MemoryError("no scratch")

    monkeypatch.setattr(cpp_backend, "_call", broken)
    assert_as_promised(gradood.gradient_norms(network, x), network, x)


def test_requests_are_repeated():
    torch.manual_seed(0)
    x, d = torch.randn(3, 5, 4), torch.randn(3, 5, 6)
    request, repeat = prepare("linear_sqnorm", x, d, True)
    repeated, found = repeat(request, [(0, x), (1, d)]), torch.zeros(2, 3)
    addresses = [row.data_ptr() for row in found]
    other = torch.randn(3, 5, 4), torch.randn(3, 5, 6)
    assert repeated.run(other, *addresses)
    assert torch.equal(found, torch.stack(cpp_backend.linear_sqnorm(*other, True)))
    kept = found.clone()
    unlike = (
        *(x.double(), x.half(), x[:2], x[:, :4], x.transpose(1, 2), x.mT.contiguous().mT),
        *(x.to("meta"), x.to_sparse(), torch._neg_view(x)),
    )
    for t in unlike:
        assert not repeated.run((t, d), *addresses)
        assert torch.equal(found, kept)
    for wrong in (None, (x,), 3):
        with pytest.raises((TypeError, IndexError, AttributeError)):
            repeated.run((x, wrong) if wrong != (x,) else wrong, *addresses)
    assert prepare("linear_sqnorm", x.double(), d.double(), True) is None
    assert prepare("linear_sqnorm", x[:0], d[:0], True) is None
