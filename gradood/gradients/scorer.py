"""Score a batch in micro-batches: by the plan where rules cover, by the fallback elsewhere."""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood import ops
from gradood.errors import GradoodError, ModelError
from gradood.gradients import fallback
from gradood.gradients.caches import Cache, emptied, find
from gradood.gradients.capture import UnevenError
from gradood.gradients.independence import BatchLogits
from gradood.gradients.memory_bound import memory_bound
from gradood.gradients.outline import Outline, outline
from gradood.gradients.plan import Plan, PlanError, make_plan, reason_of
from gradood.gradients.precision import multiplied
from gradood.gradients.probe import require_grad
from gradood.gradients.scores import Scores
from gradood.gradients.state import kept, observed
from gradood.gradients.validation import call_model, logits_of
from gradood.gradients.wrappers import as_written, is_plain

_LOG = logging.getLogger("gradood")


class Objective(ABC):
    """What is computed of the samples of a pass: norms under labels, or Grams of the logits."""

    #: Whether its steps may replace backward passes of PyTorch's.
    takes_over: ClassVar[bool] = False

    def of_rows(self, rows: slice | list[int]) -> Objective:
        """The same for some samples of the batch."""
        return self

    def memory(self, scorer: Scorer, x: Tensor) -> int:
        """How many times the activations of a pass it keeps."""
        return 1

    @abstractmethod
    def of_pass(self, scorer: Scorer, plan: Plan, x: Tensor) -> Scores:
        """Compute it for samples that fit one pass."""


class Scorer:
    """The arguments of one call that every micro-batch shares."""

    def __init__(
        self,
        model: nn.Module,
        known: Outline,
        parameters: dict[str, Parameter],
        objective: Objective,
        method: str = "auto",
    ) -> None:
        self.model, self.outline, self.parameters = model, known, parameters
        self.objective, self.method = objective, method
        self._verified = False  # whether vmap agrees with the loop
        self._caches: tuple[Cache, ...] | None = None

    def score(self, x: Tensor, micro_batch: int | None) -> Scores:
        """The objective for a batch, in as many passes as memory asks for."""
        plan = self.plan(x)
        size = micro_batch or self.samples_a_pass(x, plan)
        if size >= len(x):
            return self._micro_batch(plan, x, self.objective)[0]
        parts = []
        for rows in _parts(len(x), size, even=micro_batch is None):
            settled, some = self._settled(plan, x[rows]), x[rows].clone()
            part, plan = self._micro_batch(settled, some, self.objective.of_rows(rows))
            parts.append(part)
        return Scores.join(parts)

    def whole(self, x: Tensor) -> Scores:
        """The same for a batch that is one pass, with no second attempt if the plan fails."""
        return self._with_plan(self.plan(x), x, self.objective)

    def samples_a_pass(self, x: Tensor, plan: Plan) -> int:
        """Samples whose activations fit the memory bound."""
        passes = memory_bound(x) // (plan.bytes_per_sample + 1)
        return max(1, passes // self.objective.memory(self, x))

    def plan(self, x: Tensor) -> Plan:
        """The plan for this model, input and selection: kept from an earlier call, or made.

        Raises:
            ModelError: The method is "rules", and a parameter has none.
        """
        if self.method in ("vmap", "loop"):
            if self._caches is None:
                with require_grad(self.parameters.values()):
                    self._caches = find(self.model, lambda: self.forward(x[:2]))
            uncovered = dict.fromkeys(self.parameters, f'method="{self.method}"')
            return Plan(uncovered=uncovered, fallback=self.method, caches=self._caches)
        known = _PLANS.setdefault(self.model, {}).get(self.describe(x))
        return self._make_plan(x, frozenset()) if known is None else self._settled(known, x)

    def _settled(self, plan: Plan, x: Tensor) -> Plan:
        """The plan, made again if it was found on rows that are alike and these differ."""
        if plan.provisional and len(x) > 1 and not torch.equal(x[0], x[1]):
            return self._make_plan(x, frozenset())
        return self._allowed(plan)

    def _allowed(self, plan: Plan) -> Plan:
        if self.method == "rules" and plan.uncovered:
            name, reason = next(iter(plan.uncovered.items()))
            raise ModelError(f'method="rules", but no rule covers {name}: {reason}')
        return plan

    def _make_plan(self, x: Tensor, uneven: frozenset[int]) -> Plan:
        plan = make_plan(self.model, self.forward, x, self.parameters, uneven)
        for name, reason in plan.uncovered.items():
            _LOG.info("%s: %s", name, reason)
        _PLANS[self.model][self.describe(x)] = plan
        return self._allowed(plan)

    def require_gradient(self, x: Tensor) -> None:
        """Refuse a model whose logits depend on no parameter; an unused parameter alone has norm 0.

        Raises:
            ModelError: It is one.
        """
        every = [p for p in self.model.parameters() if p.is_floating_point() and is_plain(p)]
        with observed(self.model, []), require_grad(every):
            if not self.forward(x[:2]).requires_grad:
                raise ModelError(
                    "the logits have no gradient with respect to any parameter: the forward pass "
                    "runs inside no_grad or inference_mode, detaches what it returns, or is "
                    "quantised; give the model as it was trained, or a detector that reads logits"
                )

    def pairs(self, x: Tensor, plan: Plan) -> bool:
        """Whether to score a batch of one beside a copy of itself, see ``Plan.pair_lone``."""
        if not plan.pair_lone or x.shape[0] != 1 or x.device.type != "cpu":
            return False
        replaced = self.objective.takes_over and plan.replaces_batch_norms
        return not (replaced and ops.offers("batch_norm_backward_sqnorm", x))

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits, checked."""
        return logits_of(call_model(self.model, x), x.shape[0])

    def describe(self, x: Tensor) -> tuple[Any, ...]:
        """What a plan depends on."""
        device = x.device.type
        return (
            tuple(x.shape[1:]),
            x.dtype,
            x.device,
            tuple(map(id, self.parameters.values())),
            self.outline.training,
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        )

    def _micro_batch(self, plan: Plan, x: Tensor, wanted: Objective) -> tuple[Scores, Plan]:
        """The scores of some rows of the whole batch, and the plan that led to them."""
        if not plan.steps:
            return self._with_plan(plan, x, wanted), plan
        try:
            return self._with_plan(plan, x, wanted), plan
        except PlanError as error:
            # The model may have been edited since: probe once more, then do without rules.
            missed = {error.position} if isinstance(error, UnevenError) else set()
            plan = self._make_plan(x, plan.uneven | missed)
        except (GradoodError, torch.OutOfMemoryError):
            raise
        except Exception:  # an input that no forward pass takes, or one that no plan follows
            self.only_forward(x)
        try:
            return self._with_plan(plan, x, wanted), plan
        except (GradoodError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            reason = reason_of(error)
            if self.method == "rules":
                raise ModelError(f'method="rules", but {reason}') from error
            _LOG.info("%s: %s", type(self.model).__name__, reason)
            uncovered = dict.fromkeys(self.parameters, reason)
            plan = Plan(uncovered=uncovered, caches=plan.caches)
            _PLANS[self.model][self.describe(x)] = plan
            return self._with_plan(plan, x, wanted), plan

    def _with_plan(self, plan: Plan, x: Tensor, wanted: Objective) -> Scores:
        with emptied(self.model, plan.caches) if plan.caches else nullcontext():
            if self.pairs(x, plan):
                pair = [0, 0]
                return wanted.of_rows(pair).of_pass(self, plan, x[pair]).each(lambda t: t[:1])
            return wanted.of_pass(self, plan, x)

    def restored(self, plan: Plan) -> AbstractContextManager[object]:
        """Undo what a pass by the plan writes to the model."""
        return kept(self.model, plan.written) if any(plan.written) else nullcontext()

    def only_forward(self, x: Tensor) -> Tensor:
        """The logits, detached, by a pass that follows no plan."""
        # With gradients, as in every other pass: without, some models take another way.
        with observed(self.model, []), require_grad(self.parameters.values()):
            return self.forward(x).detach()

    def without_rules(
        self, plan: Plan, x: Tensor, logits: Tensor, gradients: Sequence[Tensor]
    ) -> list[dict[str, Tensor]]:
        """Squared norms, a dictionary a logit gradient, of parameters that the plan leaves out."""
        rest = {name: p for name, p in self.parameters.items() if name in plan.uncovered}
        if not rest:
            return [{} for _ in gradients]
        if not plan.fallback or (self.method == "vmap" and not self._verified):
            found = fallback.choose(self.model, x, logits.shape[1], rest, plan.pair_lone)
            if self.method == "vmap" and found != "vmap":
                raise ModelError(
                    'method="vmap", but torch.func.vmap cannot differentiate this model, or does '
                    'it wrongly; use method="auto" or "loop"'
                )
            plan.fallback, self._verified = found, True
        same = BatchLogits(self.model, x, logits)
        if plan.fallback == "loop":
            return fallback.loop_norms(self.model, x, rest, same, gradients, plan.pair_lone)
        return fallback.vmap_norms(self.model, x, rest, same, gradients, plan.bytes_per_sample)


def _parts(samples: int, most: int, even: bool = True) -> Iterator[slice]:
    """As few parts of a batch as there must be, of one size but for the last."""
    size = -(-samples // -(-samples // most)) if even else most
    return (slice(start, start + size) for start in range(0, samples, size))


_PLANS: WeakKeyDictionary[nn.Module, dict[Any, Plan]] = WeakKeyDictionary()
#: By thread, the modules that each of its calls works on.
_ACTIVE: dict[int, list[frozenset[int]]] = {}
_RELEASED = threading.Condition()


@contextmanager
def locked(model: nn.Module, precision: str = "exact") -> Iterator[Outline]:
    """One thread at a time for a module: the fallback exchanges its parameters for a moment.

    float32 operands are multiplied as ``precision`` says.
    """
    known, thread = outline(model), threading.get_ident()
    modules = known.modules
    with _RELEASED:
        _RELEASED.wait_for(
            lambda: all(
                modules.isdisjoint(active)
                for other, calls in _ACTIVE.items()
                if other != thread
                for active in calls
            )
        )
        _ACTIVE.setdefault(thread, []).append(modules)
    try:
        with as_written(model), multiplied(precision):
            yield known
    finally:
        with _RELEASED:
            _ACTIVE[thread].pop()
            if not _ACTIVE[thread]:
                del _ACTIVE[thread]
            _RELEASED.notify_all()
