"""LSTM, GRU and RNN layers as linear operators over all steps, and one recurrence between them.

PyTorch's own layer computes the states ``h_t``. With them known, both products of a layer are one
linear operator each, over all steps at once: ``x W_ihᵀ + b_ih`` and ``h_prev W_hhᵀ + b_hh``. What
remains, :func:`recurrence`, holds no parameter, and its backward pass gives the products'
outputs their whole gradient, through time. The rule of ``linear`` does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import handle_torch_function


class _Weights(NamedTuple):
    """The parameters of one layer in one direction; missing ones are None."""

    w_ih: Tensor
    w_hh: Tensor
    b_ih: Tensor | None = None
    b_hh: Tensor | None = None
    w_hr: Tensor | None = None

    def given(self) -> list[Tensor]:
        """The weights in the order of PyTorch's functions."""
        return [w for w in self if w is not None]


def lstm_cell(
    input: Tensor,
    hx: Sequence[Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Any = None,
    b_hh: Any = None,
) -> tuple[Tensor, Tensor]:
    """``torch.lstm_cell``."""
    gates = functional.linear(input, w_ih, b_ih) + functional.linear(hx[0], w_hh, b_hh)
    i, f, g, o = gates.chunk(4, -1)
    c = f.sigmoid() * hx[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None
) -> Tensor:
    """``torch.gru_cell``."""
    x = functional.linear(input, w_ih, b_ih).chunk(3, -1)
    h = functional.linear(hx, w_hh, b_hh).chunk(3, -1)
    r, z = (x[0] + h[0]).sigmoid(), (x[1] + h[1]).sigmoid()
    n = (x[2] + r * h[2]).tanh()
    return n + z * (hx - n)


def rnn_tanh_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None
) -> Tensor:
    """``torch.rnn_tanh_cell``."""
    return (functional.linear(input, w_ih, b_ih) + functional.linear(hx, w_hh, b_hh)).tanh()


def rnn_relu_cell(
    input: Tensor, hx: Tensor, w_ih: Tensor, w_hh: Tensor, b_ih: Any = None, b_hh: Any = None
) -> Tensor:
    """``torch.rnn_relu_cell``."""
    return (functional.linear(input, w_ih, b_ih) + functional.linear(hx, w_hh, b_hh)).relu()


#: Replacements of PyTorch's functions.
CELLS = {getattr(torch, f.__name__): f for f in (lstm_cell, gru_cell, rnn_tanh_cell, rnn_relu_cell)}
LAYERS = ("lstm", "gru", "rnn_tanh", "rnn_relu")


def layers(
    kind: str,
    input: Tensor,
    hx: Any,
    weights: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    lengths: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """All layers of a kind in all directions over a padded input ``[T, N, I]``, or ``[N, T, I]``.

    What lies beyond ``lengths`` ``[N]``, if there are any, is padding.
    """
    x = input.transpose(0, 1) if batch_first else input
    directions = 2 if bidirectional else 1
    group = len(weights) // (num_layers * directions)
    initial = hx if kind == "lstm" else (hx,)
    last: list[tuple[Tensor, ...]] = []
    for layer in range(num_layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            own = list(weights[place * group : (place + 1) * group])
            biases = own[2:4] if has_biases else [None, None]
            w = _Weights(own[0], own[1], *biases, *own[4 if has_biases else 2 :])
            entering = _reverse(x, lengths) if direction else x
            states = [state[place] for state in initial]
            out, *final = _layer(kind, entering, states, w, lengths)
            outputs.append(_reverse(out, lengths) if direction else out)
            last.append(tuple(final))
        x = torch.cat(outputs, -1) if bidirectional else outputs[0]
        if dropout and train and layer < num_layers - 1:
            x = functional.dropout(x, dropout)
    finals = [torch.stack(states) for states in zip(*last, strict=True)]
    return x.transpose(0, 1) if batch_first else x, *finals


def _reverse(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Reverse every sequence of ``[T, N, …]``; padding keeps its place."""
    if lengths is None:
        return x.flip(0)
    steps = torch.arange(len(x), device=x.device, dtype=torch.int64)[:, None]
    places = torch.where(steps < lengths, lengths - 1 - steps, steps)[..., None]
    return x.gather(0, places.expand_as(x))


def _layer(
    kind: str, x: Tensor, initial: list[Tensor], w: _Weights, lengths: Tensor | None
) -> tuple[Tensor, ...]:
    """One layer in one direction: its output ``[T, N, H]``, and its last states."""
    with torch.no_grad(), torch._C.DisableTorchFunction():
        plain = [weight.detach() for weight in w.given()]
    weights = (plain[1],) if w.w_hr is None else (plain[1], plain[-1])
    out, before = _visible(_states, kind, x, initial, plain, w.b_ih is not None)
    from_input = functional.linear(x, w.w_ih, w.b_ih)
    from_state = functional.linear(before, w.w_hh, w.b_hh)
    values: tuple[Tensor, ...] = (out, before)
    if kind == "lstm":
        cells, memory = _visible(_cells, from_input, from_state, initial[1])
        values = (out, cells)
        if w.w_hr is not None:
            values += (functional.linear(memory, w.w_hr),)
    arguments = kind, from_input, from_state, initial, values, weights, lengths
    result: tuple[Tensor, ...] = _visible(recurrence, *arguments)
    return result


def _visible(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function of this module as an operator, so that an active mode sees it."""
    return handle_torch_function(function, [t for t in args if isinstance(t, Tensor)], *args)


def _states(
    kind: str, x: Tensor, initial: list[Tensor], weights: list[Tensor], has_biases: bool
) -> tuple[Tensor, Tensor]:
    """The outputs of a layer, and the state before each, as constants."""
    with torch.no_grad():
        first = [state[None] for state in initial]
        given = (first if kind == "lstm" else first[0], weights, has_biases, 1, 0.0)
        out = getattr(torch, kind)(x, *given, False, False, False)[0]
        return out, torch.cat([first[0], out[:-1]])


def _cells(from_input: Tensor, from_state: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """The cells ``c_t`` of an LSTM, and what its gates let out: ``o_t tanh c_t``, as constants."""
    with torch.no_grad():
        i, f, g, o = _lstm_gates(from_input, from_state)
        cells = torch.empty_like(i)
        entering = i * g
        for t in range(len(cells)):
            c = torch.addcmul(entering[t], f[t], c, out=cells[t])
        return cells, o * cells.tanh()


def _lstm_gates(from_input: Tensor, from_state: Tensor) -> tuple[Tensor, ...]:
    i, f, g, o = (from_input + from_state).chunk(4, -1)
    return i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()


def recurrence(
    kind: str,
    from_input: Tensor,
    from_state: Tensor,
    initial: list[Tensor],
    values: tuple[Tensor, ...],
    weights: tuple[Tensor, ...],
    lengths: Tensor | None,
) -> tuple[Tensor, ...]:
    """The states of a layer as a function of its products ``[T, N, G·H]`` and initial states.

    ``values`` are what is known already: the outputs ``[T, N, H]``, and the cells of an LSTM (with
    the projected outputs that its graph holds) or the states before each step. ``weights`` are
    ``W_hh`` and, for projections, ``W_hr``, as constants. Returns outputs and last states.
    """
    fixed = _Fixed(kind, values[:2], weights, lengths)
    projected = values[2] if len(values) > 2 else None
    out, *last = _Recurrence.apply(fixed, from_input, from_state, projected, *initial)
    return out, *last


class _Fixed(NamedTuple):
    """The weights and options of a recurrence."""

    kind: str
    values: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    lengths: Tensor | None

    def last(self, states: Tensor) -> Tensor:
        """The last state ``[N, H]`` of every sequence."""
        return states[-1].clone() if self.lengths is None else states[self.ends(states)]

    def ends(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """Indices of the last states in ``[T, N, H]``."""
        assert self.lengths is not None
        return self.lengths - 1, torch.arange(
            states.shape[1], device=states.device, dtype=torch.int64
        )

    def inside(self, states: Tensor) -> Tensor:
        """Zeros for padding."""
        if self.lengths is None:
            return states
        steps = torch.arange(len(states), device=states.device, dtype=torch.int64)[:, None]
        return states * (steps < self.lengths)[..., None]

    def gradient(self, states: Tensor, every: Tensor | None, last: Tensor | None) -> Tensor:
        """The gradient of all states, from that of the outputs and of the last states."""
        total = torch.zeros_like(states) if every is None else self.inside(every).clone()
        if last is not None:
            place = -1 if self.lengths is None else self.ends(states)
            total[place] += last
        return total


class _Recurrence(torch.autograd.Function):
    """Backpropagation through time, with factors that are computed for all steps at once."""

    @staticmethod
    def forward(
        ctx: Any,
        fixed: _Fixed,
        from_input: Tensor,
        from_state: Tensor,
        projected: Tensor | None,
        *initial: Tensor,
    ) -> tuple[Tensor, ...]:
        """Return the known states."""
        ctx.fixed, ctx.initial = fixed, initial
        ctx.save_for_backward(from_input, from_state)
        ctx.set_materialize_grads(False)
        out, *cells = fixed.values[: len(initial)]
        return fixed.inside(out), fixed.last(out), *map(fixed.last, cells)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Any, ...]:
        """The gradients of both products, of the projection, and of the initial states."""
        fixed, (from_input, from_state) = ctx.fixed, ctx.saved_tensors
        if fixed.kind == "lstm":
            c = ctx.initial[1]
            return None, *_lstm_backward(fixed, from_input, from_state, c, *gradients)
        return None, *_simple_backward(fixed, from_input, from_state, *gradients)


def _lstm_backward(
    fixed: _Fixed,
    from_input: Tensor,
    from_state: Tensor,
    c: Tensor,
    every: Tensor | None,
    last: Tensor | None,
    last_cell: Tensor | None,
) -> tuple[Tensor | None, ...]:
    (out, cells), (w_hh, *projection) = fixed.values, fixed.weights
    i, f, g, o = _lstm_gates(from_input, from_state)
    before, bent = torch.cat([c[None], cells[:-1]]), cells.tanh()
    of_cell = torch.stack([g * i * (1 - i), before * f * (1 - f), i * (1 - g.square())], 2)
    of_memory, through = bent * o * (1 - o), o * (1 - bent.square())
    gates = torch.empty(*i.shape[:2], 4, i.shape[2], dtype=i.dtype, device=i.device)
    states = fixed.gradient(out, every, last)
    entering = None if last_cell is None else fixed.gradient(cells, None, last_cell)
    cell = torch.zeros_like(c)
    for t in reversed(range(len(out))):
        if t + 1 < len(out):
            states[t].addmm_(gates[t + 1].flatten(1), w_hh)
        memory = states[t] @ projection[0] if projection else states[t]
        cell = torch.addcmul(cell, memory, through[t])
        if entering is not None:
            cell += entering[t]
        torch.mul(of_cell[t], cell[:, None], out=gates[t, :, :3])
        torch.mul(of_memory[t], memory, out=gates[t, :, 3])
        cell = cell * f[t]
    d = gates.flatten(2)
    return d, d, states if projection else None, d[0] @ w_hh, cell


def _simple_backward(
    fixed: _Fixed,
    from_input: Tensor,
    from_state: Tensor,
    every: Tensor | None,
    last: Tensor | None,
) -> tuple[Tensor | None, ...]:
    """GRU and RNN: every gate's gradient is a factor times that of the state."""
    (out, before), (w_hh,) = fixed.values, fixed.weights
    kept = None
    if fixed.kind == "gru":
        (x_r, x_z, x_n), (h_r, h_z, h_n) = from_input.chunk(3, -1), from_state.chunk(3, -1)
        r, kept = (x_r + h_r).sigmoid(), (x_z + h_z).sigmoid()
        n = (x_n + r * h_n).tanh()
        new = (1 - kept) * (1 - n.square())
        of_gates = [new * h_n * r * (1 - r), (before - n) * kept * (1 - kept), new * r]
        factors = torch.stack(of_gates, 2)
    else:
        total = from_input + from_state
        slope = 1 - total.tanh().square() if fixed.kind == "rnn_tanh" else (total > 0).to(total)
        factors = slope[:, :, None]
    gates = torch.empty_like(factors)
    states = fixed.gradient(out, every, last)
    for t in reversed(range(len(out))):
        torch.mul(factors[t], states[t][:, None], out=gates[t])
        state = gates[t].flatten(1) @ w_hh
        if kept is not None:
            state.addcmul_(states[t], kept[t])
        if t:
            states[t - 1] += state
    d = gates.flatten(2)
    if kept is None:
        return d, d, None, state
    into = gates.clone()
    torch.mul(states, new, out=into[:, :, 2])
    return into.flatten(2), d, None, state
