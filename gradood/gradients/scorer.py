"""Score a batch in micro-batches: by the plan where rules cover, by the fallback elsewhere."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.errors import GradoodError, ModelError
from gradood.gradients import engine, fallback
from gradood.gradients.activations import Activations
from gradood.gradients.caches import Cache, emptied, find
from gradood.gradients.capture import UnevenError
from gradood.gradients.independence import BatchLogits
from gradood.gradients.labels import Label, loss_gradient
from gradood.gradients.memory_bound import memory_bound
from gradood.gradients.outline import Outline, outline
from gradood.gradients.penultimate import LastLinear
from gradood.gradients.plan import Plan, PlanError, make_plan, reason_of
from gradood.gradients.precision import multiplied
from gradood.gradients.probe import require_grad
from gradood.gradients.state import kept, observed
from gradood.gradients.validation import call_model, logits_of
from gradood.gradients.wrappers import as_written, is_plain

_LOG = logging.getLogger("gradood")


class Scores(NamedTuple):
    """What one or several passes found: values ``[N, K, L]``, logits ``[N, C]``, and perhaps more.

    That is features ``[N, F]``, and what was measured of the activations.
    """

    values: Tensor
    logits: Tensor
    features: Tensor | None
    activations: Activations = Activations()

    def each(self, change: Callable[[Tensor], Tensor]) -> Scores:
        """The same with every tensor changed."""
        return Scores(
            change(self.values),
            change(self.logits),
            if_known(change, self.features),
            self.activations._replace(
                norms=if_known(change, self.activations.norms),
                channels=if_known(change, self.activations.channels),
            ),
        )

    @staticmethod
    def join(parts: Sequence[Scores]) -> Scores:
        """Several micro-batches as one."""
        return Scores(
            torch.cat([part.values for part in parts]),
            torch.cat([part.logits for part in parts]),
            join_known([part.features for part in parts]),
            parts[0].activations._replace(
                norms=join_known([part.activations.norms for part in parts]),
                channels=join_known([part.activations.channels for part in parts]),
            ),
        )


def if_known(change: Callable[[Tensor], Tensor], tensor: Tensor | None) -> Tensor | None:
    """The changed tensor; None stays None."""
    return None if tensor is None else change(tensor)


def join_known(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All parts as one, or None where one is missing."""
    known = [part for part in parts if part is not None]
    return torch.cat(known) if len(known) == len(parts) else None


class Scorer:
    """The arguments of one call that every micro-batch shares."""

    def __init__(
        self,
        model: nn.Module,
        known: Outline,
        parameters: dict[str, Parameter],
        labels: Sequence[Label],
        losses: Sequence[str],
        method: str,
        observer: engine.Observer | None = None,
        activations: bool = False,
    ) -> None:
        self.model, self.outline, self.parameters = model, known, parameters
        self.labels, self.losses, self.method = labels, losses, method
        self.observer, self.activations = observer, activations
        self._verified = False  # whether vmap agrees with the loop
        self._caches: tuple[Cache, ...] | None = None

    def score(self, x: Tensor, micro_batch: int | None) -> Scores:
        """Norms, logits and penultimate features of a batch."""
        plan = self.plan(x)
        size = micro_batch or self.samples_a_pass(x, plan)
        if size >= len(x):
            return self._micro_batch(plan, x, self.labels)[0]
        parts = []
        for rows in _parts(len(x), size, even=micro_batch is None):
            labels = [_of_rows(label, rows) for label in self.labels]
            part, plan = self._micro_batch(self._settled(plan, x[rows]), x[rows].clone(), labels)
            parts.append(part)
        return Scores.join(parts)

    def whole(self, x: Tensor) -> Scores:
        """The same for a batch that is one pass, with no second attempt if the plan fails."""
        return self._with_plan(self.plan(x), x, self.labels)

    def samples_a_pass(self, x: Tensor, plan: Plan) -> int:
        """Samples whose activations fit the memory bound."""
        return max(1, memory_bound(x) // (plan.bytes_per_sample + 1))

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
        return plan.pair_lone and x.shape[0] == 1 and x.device.type == "cpu"

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

    def _micro_batch(self, plan: Plan, x: Tensor, labels: Sequence[Label]) -> tuple[Scores, Plan]:
        """The scores of some rows of the whole batch, and the plan that led to them."""
        if not plan.steps:
            return self._with_plan(plan, x, labels), plan
        try:
            return self._with_plan(plan, x, labels), plan
        except PlanError as error:
            # The model may have been edited since: probe once more, then do without rules.
            missed = {error.position} if isinstance(error, UnevenError) else set()
            plan = self._make_plan(x, plan.uneven | missed)
        except (GradoodError, torch.OutOfMemoryError):
            raise
        except Exception:  # an input that no forward pass takes, or one that no plan follows
            self._only_forward(x)
        try:
            return self._with_plan(plan, x, labels), plan
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
            return self._with_plan(plan, x, labels), plan

    def _with_plan(self, plan: Plan, x: Tensor, labels: Sequence[Label]) -> Scores:
        with emptied(self.model, plan.caches):
            return self._follow(plan, x, labels)

    def _follow(self, plan: Plan, x: Tensor, labels: Sequence[Label]) -> Scores:
        if self.pairs(x, plan):
            pair = [0, 0]
            labels = [_of_rows(label, pair) for label in labels]
            return self._follow(plan, x[pair], labels).each(lambda t: t[:1])
        features, activations = None, Activations()
        gradients: list[Tensor] = []

        def logit_gradients(logits: Tensor) -> list[Tensor]:
            for label, loss in zip(labels, self.losses, strict=True):
                gradients.append(loss_gradient(logits, label, loss))
            return gradients

        if plan.steps:
            with kept(self.model, plan.written) if any(plan.written) else nullcontext():
                logits, recorder, norms = engine.run(
                    *(plan, self.forward, x, self.parameters, logit_gradients, self.observer),
                    activations=self.activations,
                    backward=bool(labels),
                )
            features, activations = recorder.features, Activations.of(recorder.layers)
        else:
            with LastLinear() as seen:
                logits = self._only_forward(x)
            features = None if labels or seen.features is None else seen.features.detach()
            logit_gradients(logits)
            norms = [{} for _ in labels]
        uncovered = plan.uncovered if labels else ()
        rest = {n: p for n, p in self.parameters.items() if n in uncovered}
        if rest:
            exact = self._exact(plan, x, rest, logits, gradients)
            norms = [{**a, **b} for a, b in zip(norms, exact, strict=True)]
        return Scores(self._assemble(norms, logits), logits, features, activations)

    def _only_forward(self, x: Tensor) -> Tensor:
        # With gradients, as in every other pass: without, some models take another way.
        with observed(self.model, []), require_grad(self.parameters.values()):
            return self.forward(x).detach()

    def _exact(
        self,
        plan: Plan,
        x: Tensor,
        rest: Mapping[str, Parameter],
        logits: Tensor,
        gradients: Sequence[Tensor],
    ) -> list[dict[str, Tensor]]:
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

    def _assemble(self, norms: list[dict[str, Tensor]], logits: Tensor) -> Tensor:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        unused = logits.new_zeros(logits.shape[0], dtype=dtype)
        if not self.parameters or not norms:
            return unused.new_empty(len(unused), len(norms), len(self.parameters))
        # A model on several devices has its norms on several, too.
        columns = [
            by_name.get(name, unused).to(unused.device)
            for by_name in norms
            for name in self.parameters
        ]
        values = torch.stack(columns, 1).detach()
        return values.to(dtype).view(len(unused), len(norms), len(self.parameters))


def _parts(samples: int, most: int, even: bool = True) -> Iterator[slice]:
    """As few parts of a batch as there must be, of one size but for the last."""
    size = -(-samples // -(-samples // most)) if even else most
    return (slice(start, start + size) for start in range(0, samples, size))


def _of_rows(label: Label, rows: slice | list[int]) -> Label:
    """The label of some samples of the batch."""
    return label[rows] if isinstance(label, Tensor) and label.dim() == 2 else label


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
