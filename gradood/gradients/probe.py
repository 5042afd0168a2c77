"""Run a model on a few samples to see what it does with them and with its parameters.

A pass on two samples and one on three show the operators, what depends on the batch and what grows
with it. Two backward passes show whose loss has a gradient where. One more pass, in which samples
are exchanged for another, shows whose values are where, and that no logits depend on other samples.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.errors import GradoodError
from gradood.gradients.axis import differs
from gradood.gradients.caches import Cache, emptied, filled_by, find
from gradood.gradients.capture import PlanError
from gradood.gradients.independence import agree, agree_roughly, in_float64, same_to_the_last_bits
from gradood.gradients.randomness import restart
from gradood.gradients.rows import Rows, candidates
from gradood.gradients.state import Snapshot, Written, observed
from gradood.gradients.survey import Follower, Replay, Survey

Forward = Callable[[Tensor], Tensor]

#: Which samples take the places of the three in the pass with exchanged samples: the first keeps
#: its own. What a batch has in common (a largest value, a mean, a range) comes from some sample: if
#: from another than the first, this pass shows it exactly, and if from the first, the pass on two
#: samples does, which leaves it out, up to rounding. Models that take another way for a batch with
#: the first alone (one without padding, perhaps) have the others change places.
EXCHANGES = ((0, 0, 0), (0, 2, 1))
KEPT = 0


@dataclass
class Findings:
    """What all passes of a probe found."""

    rows: Rows
    two: Survey
    three: Survey
    #: The same with exchanged samples, and which places hold others than before.
    exchanged: Follower
    order: tuple[int, ...]
    changed: tuple[bool, ...]
    written: Written
    caches: tuple[Cache, ...]
    #: Whether the model draws random numbers.
    random: bool


class Probe:
    """The passes on one model."""

    def __init__(
        self, model: nn.Module, forward: Forward, parameters: Mapping[str, Parameter]
    ) -> None:
        self.model, self.forward, self.parameters = model, forward, parameters

    def investigate(self, x: Tensor) -> Findings:
        """Run the model on the first rows of ``x``, or on others like them.

        Raises:
            PlanError: No two passes are alike, so that no plan can be made.
            GradoodError: A rule, or the model's output, allows no norms at all.
        """
        with self._surroundings(x):
            known = find(self.model, partial(self.forward, x[[0, 0]]))
            *others, last = candidates(x)
            for rows in others:
                try:
                    return self._passes(rows, known)
                except GradoodError:
                    raise
                except Exception:  # the model may not accept this input
                    continue
            return self._passes(last, known)

    def repeats(self, found: Findings) -> bool:
        """Whether a pass on the same samples gives the same numbers again, to the last bit."""
        three = found.three
        rows = found.rows.x
        with self._surroundings(rows), emptied(self.model, found.caches), observed(self.model, []):
            again = self._survey(rows, found.two)
        pairs: list[tuple[Tensor | None, Tensor | None]] = [(three.logits, again.logits)]
        for position, one in three.meetings.items():
            other = again.meetings[position]
            pairs += [(one.out, other.out), (one.data, other.data)]
            pairs += zip(one.gradients, other.gradients, strict=True)
        return not any(
            bool(differs(a, b).any()) for a, b in pairs if a is not None and b is not None
        )

    def others_matter(self, found: Findings) -> bool:
        """Whether the logits of a sample that kept its place changed by more than rounding."""
        kept = slice(KEPT, KEPT + 1)
        before, after = found.three.logits[kept], found.exchanged.logits[kept]
        if same_to_the_last_bits(before, after):
            return False
        if before.dtype == torch.float64 or not agree(before, after):
            return True
        rows = found.rows.x
        with self._surroundings(rows), emptied(self.model, found.caches):
            exact = in_float64(self.model, rows, rows[list(found.order)])
        return exact is None or not same_to_the_last_bits(exact[0][kept], exact[1][kept])

    def size_matters(self, found: Findings) -> bool:
        """Whether the logits of a sample depend on the size of the batch, or on its place there."""
        if found.random:  # a batch of another size draws other random numbers
            return False
        two, three = found.two.logits, found.three.logits[1:]
        if agree(two, three):
            return False
        rows = found.rows.x
        with self._surroundings(rows), emptied(self.model, found.caches):
            exact = in_float64(self.model, rows[1:], rows)
        return not (agree_roughly(two, three) if exact is None else agree(exact[0], exact[1][1:]))

    def _passes(self, rows: Rows, known: tuple[Cache, ...]) -> Findings:
        written: list[Written] = []
        fewer = rows.x[1:].clone()  # some models inspect the memory layout of their input
        two = Survey(self.model, self.parameters, fewer)
        with emptied(self.model, known):
            before = Snapshot.of(self.model)
            with before.kept(written):
                fresh = filled_by(self.model, partial(self._follow, two, fewer))
            with before.kept(written):
                three = self._survey(rows.x, two)
            if rows.made_up and not bool(three.logits.isfinite().all()):
                if bool(three.logits[0].isfinite().all()):
                    raise PlanError("samples made up for the probe have logits that are no numbers")
            exchanged, order = self._exchange(rows, three, before, written)
        merged = Written(*map(frozenset[str]().union, *written))
        random = two.random or three.random
        return Findings(
            rows, two, three, exchanged, order, rows.changed(order), merged, known + fresh, random
        )

    def _exchange(
        self, rows: Rows, three: Survey, before: Snapshot, written: list[Written]
    ) -> tuple[Follower, tuple[int, ...]]:
        """A pass with exchanged samples that runs the same operators."""
        for order in EXCHANGES:
            replay = Replay(self.model, self.parameters, three)
            try:
                with before.kept(written):
                    self._follow(replay, rows.x[list(order)])
            except PlanError:
                if order == EXCHANGES[-1]:
                    raise
            else:
                break
        return replay, order

    def _survey(self, rows: Tensor, smaller: Survey) -> Survey:
        """A pass on three samples, forward and backward."""
        survey = Survey(self.model, self.parameters, rows, smaller)
        self._follow(survey, rows)
        survey.pull_back()
        return survey

    def _follow(self, mode: Follower, rows: Tensor) -> None:
        restart(rows)
        before = _random_state(rows)
        with mode:
            mode.logits = self.forward(rows)
        mode.random = not before.equal(_random_state(rows))
        mode.finish()

    @contextmanager
    def _surroundings(self, x: Tensor) -> Iterator[None]:
        # A model on several GPUs may draw random numbers on each.
        places = {x.device, *(p.device for p in self.model.parameters())}
        devices = sorted({d.index or 0 for d in places if d.type == "cuda"})
        with torch.random.fork_rng(devices), require_grad(self.parameters.values()):
            yield


def _random_state(x: Tensor) -> Tensor:
    state = torch.get_rng_state()
    if x.device.type == "cuda":
        state = torch.cat([state, torch.cuda.get_rng_state(x.device)])
    return state


_FLIPPED: dict[int, int] = {}
_FLIP_LOCK = threading.Lock()


@contextmanager
def require_grad(parameters: Any) -> Iterator[None]:
    """Let frozen parameters show up in the graph, for as long as any probe needs it."""
    with _FLIP_LOCK:
        flipped = [
            p
            for p in parameters
            if not p.is_inference() and (id(p) in _FLIPPED or not p.requires_grad)
        ]
        for p in flipped:
            _FLIPPED[id(p)] = _FLIPPED.get(id(p), 0) + 1
            p.requires_grad_()
    try:
        yield
    finally:
        with _FLIP_LOCK:
            for p in flipped:
                _FLIPPED[id(p)] -= 1
                if not _FLIPPED[id(p)]:
                    del _FLIPPED[id(p)]
                    p.requires_grad_(False)
