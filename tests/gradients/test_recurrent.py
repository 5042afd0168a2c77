"""Recurrent layers and cells: every norm equal to a loop's, and no fallback."""

import pytest
import torch
from torch import nn
from torch.nn.utils import rnn

import gradood
from tests.gradients.edge_models import Apply
from tests.gradients.oracle import assert_norms, randomise, reference_norms

LAYERS = {
    "lstm": (nn.LSTM, {}),
    "lstm-two-ways": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "lstm-projected": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
    "lstm-projected-no-bias": (nn.LSTM, {"proj_size": 2, "bias": False}),
    "lstm-no-bias": (nn.LSTM, {"num_layers": 3, "bias": False}),
    "lstm-dropout": (nn.LSTM, {"num_layers": 2, "dropout": 0.5}),
    "gru": (nn.GRU, {}),
    "gru-two-ways": (nn.GRU, {"num_layers": 2, "bidirectional": True}),
    "gru-no-bias": (nn.GRU, {"num_layers": 2, "bias": False}),
    "rnn-tanh": (nn.RNN, {"num_layers": 2, "bidirectional": True}),
    "rnn-relu": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
    "rnn-no-bias": (nn.RNN, {"nonlinearity": "relu", "bias": False, "bidirectional": True}),
}
CELLS = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}
EXACT = {torch.float64: 1e-11, torch.float32: 1e-5}

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class Sequences(nn.Module):
    """Outputs, last states and initial states all lead to the logits."""

    def __init__(self, kind, batch_first, given, **options):
        super().__init__()
        self.layers = kind(6, 5, batch_first=batch_first, **options)
        width = (options.get("proj_size") or 5) * (1 + options.get("bidirectional", False))
        self.head = nn.Linear(width, 4)
        self.first = nn.Linear(6, 5) if given else None
        self.batch_first = batch_first

    def states(self, x):
        """Initial states that depend on the sample: hidden ones, then cells."""
        layers = self.layers
        count = layers.num_layers * (2 if layers.bidirectional else 1)
        state = torch.tanh(self.first(x[:, 0])).expand(count, -1, -1)
        hidden = state[..., : layers.proj_size or 5]
        return (hidden, state * 0.3) if isinstance(layers, nn.LSTM) else hidden

    def forward(self, x):
        states = None if self.first is None else self.states(x)
        out, last = self.layers(x if self.batch_first else x.transpose(0, 1), states)
        out = out if self.batch_first else out.transpose(0, 1)
        last = torch.cat(last, -1) if isinstance(last, tuple) else last
        return self.head(torch.tanh(out.sum(1)) + out[:, 2]) + last.square().sum((0, 2))[:, None]


def prepare(model, x, dtype):
    model = randomise(model).eval().to(dtype)
    return model, x.to(dtype) if x.is_floating_point() else x


def check(model, x, dtype):
    """No fallback, the logits of the model itself, and exact norms."""
    model, x = prepare(model, x, dtype)
    explanation = gradood.explain(model, x)
    assert not explanation.fallbacks, explanation
    norms = gradood.gradient_norms(model, x)
    assert_norms(norms, reference_norms(model, x), EXACT[dtype])
    torch.testing.assert_close(norms.logits, model(x).detach())


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("given", [False, True], ids=["zero", "given"])
@pytest.mark.parametrize("name", LAYERS)
def test_norms_of_a_layer_equal_a_loop(name, given, dtype):
    torch.manual_seed(0)
    kind, options = LAYERS[name]
    check(Sequences(kind, given, given, **options), torch.randn(4, 7, 6), dtype)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("samples", [1, 3])
def test_short_sequences_and_lone_samples(steps, samples):
    torch.manual_seed(0)
    model = Apply(
        lambda m, x: m.head(m.layer(x)[0].sum(1)),
        layer=nn.GRU(6, 5, batch_first=True),
        head=nn.Linear(5, 4),
    )
    check(model, torch.randn(samples, steps, 6), torch.float64)


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", CELLS)
def test_norms_of_a_cell_equal_a_loop(name, bias, dtype):
    def forward(m, x):
        state = None
        for step in x.unbind(1):
            state = m.cell(step, state)
        return m.head(state[0] + state[1] if isinstance(state, tuple) else state)

    torch.manual_seed(0)
    model = Apply(forward, cell=CELLS[name](6, 5, bias=bias), head=nn.Linear(5, 4))
    check(model, torch.randn(4, 3, 6), dtype)


def test_a_layer_used_twice_and_a_learned_state():
    def forward(m, x):
        first = m.first.expand(-1, len(x), -1)
        once = m.layer(x, (first, first * 0.5))[0]
        return m.head(m.layer(once)[0][:, -1])

    torch.manual_seed(0)
    layer = nn.LSTM(5, 5, batch_first=True)
    model = Apply(forward, layer=layer, first=torch.randn(1, 1, 5), head=nn.Linear(5, 4))
    check(model, torch.randn(4, 3, 5), torch.float64)


def test_grams_of_a_layer_give_its_norms():
    torch.manual_seed(0)
    model, x = prepare(Sequences(nn.LSTM, True, True), torch.randn(3, 4, 6), torch.float64)
    norms = gradood.gradient_grams(model, x).norms()
    assert_norms(norms, reference_norms(model, x), 1e-9)


def test_parameters_after_a_layer_alone():
    torch.manual_seed(0)
    model, x = prepare(Sequences(nn.GRU, True, False), torch.randn(3, 4, 6), torch.float64)
    norms = gradood.gradient_norms(model, x, parameters="head.*")
    assert_norms(norms, reference_norms(model, x)[:, -2:], 1e-11)


class Packed(nn.Module):
    """Sequences of several lengths, up to the first zero; outputs and last states are read."""

    def __init__(self, kind, batch_first, enforce_sorted, given, **options):
        super().__init__()
        self.layers = kind(6, 5, batch_first=batch_first, **options)
        width = (options.get("proj_size") or 5) * (1 + options.get("bidirectional", False))
        self.second = nn.GRU(width, 4)
        self.head = nn.Linear(4 + width, 4)
        self.first = nn.Linear(6, 5) if given else None
        self.order = {"batch_first": batch_first}
        self.enforce_sorted = enforce_sorted

    def forward(self, x):
        lengths = (x != 0).all(2).sum(1)
        states = None if self.first is None else Sequences.states(self, x)
        steps = x if self.order["batch_first"] else x.transpose(0, 1)
        packed = rnn.pack_padded_sequence(
            steps, lengths.cpu(), **self.order, enforce_sorted=self.enforce_sorted
        )
        out, last = self.layers(packed, states)
        _, again = self.second(out)
        out, found = rnn.pad_packed_sequence(out, **self.order)
        assert torch.equal(found, lengths.cpu())
        out = out if self.order["batch_first"] else out.transpose(0, 1)
        last = torch.cat(last, -1) if isinstance(last, tuple) else last
        mean = out.sum(1) / lengths[:, None]
        logits = self.head(torch.cat([torch.tanh(mean), again[-1]], 1))
        return logits + last.square().sum((0, 2))[:, None]


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("enforce_sorted", [False, True])
@pytest.mark.parametrize("name", ["lstm-two-ways", "lstm-projected", "gru-two-ways", "rnn-tanh"])
def test_packed_sequences(name, enforce_sorted, dtype):
    torch.manual_seed(0)
    kind, options = LAYERS[name]
    first = name != "gru-two-ways"
    model = Packed(kind, first, enforce_sorted, name != "rnn-tanh", **options)
    x = torch.randn(5, 7, 6)
    lengths = (7, 7, 5, 3, 1) if enforce_sorted else (3, 7, 1, 7, 5)
    for row, length in zip(x, lengths, strict=True):
        row[length:] = 0
    model, x = prepare(model, x, dtype)
    # Whole batches of one length tell a probe nothing, and longer ones come later.
    for rows in (slice(0, 1), slice(0, 5), slice(2, 5), slice(2, 3)):
        norms = gradood.gradient_norms(model, x[rows])
        assert_norms(norms, reference_norms(model, x[rows]), EXACT[dtype])
        torch.testing.assert_close(norms.logits, model(x[rows]).detach())
    explanation = gradood.explain(model, x)
    assert not explanation.fallbacks, explanation


def test_samples_that_were_moved_and_then_changed():
    def forward(m, x):
        order = (x[..., 0] < 0).sum(1).argsort()
        y = m.cell(x).index_select(0, order)
        y.mul_(2).register_hook(lambda d: d * 3)
        return m.head(y.index_select(0, order.argsort()).sum(1))

    torch.manual_seed(0)
    model = Apply(forward, cell=nn.Linear(6, 5), head=nn.Linear(5, 4))
    model, x = prepare(model, torch.randn(4, 3, 6), torch.float64)
    norms = gradood.gradient_norms(model, x)
    assert_norms(norms, reference_norms(model, x), 1e-11)
    torch.testing.assert_close(norms.logits, model(x).detach())


def test_packed_steps_that_are_changed_between_layers():
    def forward(m, x):
        lengths = (x != 0).all(2).sum(1).cpu()
        packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        data = torch.tanh(m.before(packed.data))
        _, last = m.layer(rnn.PackedSequence(data, *packed[1:]))
        return m.head(last[0])

    torch.manual_seed(0)
    model = Apply(forward, before=nn.Linear(6, 5), layer=nn.GRU(5, 4), head=nn.Linear(4, 3))
    model, x = prepare(model, torch.randn(4, 3, 6), torch.float64)
    x[1, 2:] = 0
    x[3, 1:] = 0
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-11)
