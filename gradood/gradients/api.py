"""``gradient_norms``: the squared gradient norm of every parameter, for every sample."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.errors import InputError, ModelError
from gradood.gradients import engine, fallback
from gradood.gradients.labels import LOSSES, Label, logit_gradient, target
from gradood.gradients.plan import Plan, PlanError, make_plan

_LOG = logging.getLogger("gradood")

METHODS = ("auto", "rules", "vmap", "loop")

#: Activations of one micro-batch take about this much memory, or a quarter of what is free.
MEMORY_BOUND = 1 << 30

Selection = None | str | Sequence[str] | Callable[[str, Parameter], bool]


@dataclass(frozen=True)
class GradientNorms:
    """Squared L2 norms of the loss gradient, for every sample and parameter tensor.

    Attributes:
        values: ``[N, L]``, or ``[N, K, L]`` for a list of K labels; float32 (float64 for a float64
            model), on the input's device, detached.
        names: the L parameter names, in ``model.named_parameters()`` order.
        logits: ``[N, C]``, detached: the model's output on the way.
    """

    values: Tensor
    names: tuple[str, ...]
    logits: Tensor


def gradient_norms(
    model: nn.Module,
    x: Tensor,
    label: Label | Sequence[Label] = "all_hot",
    loss: str = "bce",
    parameters: Selection = None,
    method: str = "auto",
    micro_batch: int | None = None,
    nan_policy: str = "raise",
) -> GradientNorms:
    """Squared L2 norm of every parameter's loss gradient, for every sample of a batch.

    ``values[n, l] = ‖∂J_n / ∂θ_l‖²`` with ``J_n = Σ_c BCE(σ(z_nc), y_nc)``: how much the network
    would have to change to give sample n the label y. With a *confounding* label, by default all
    classes at once, the norms tell familiar inputs from anomalous ones.

    No gradient is ever stored: every operator's rule turns its input and the gradient of its output
    into N numbers while one backward pass runs. The model comes back as it was, and its results do
    not depend on the batch a sample was scored in. Works inside ``no_grad`` and ``inference_mode``.

    Args:
        model: a classifier in evaluation mode that maps ``x`` to logits ``[N, C]`` (a tensor, or an
            object or mapping with ``logits``).
        x: a batch, samples first.
        label: ``"all_hot"``, ``"zero_hot"``, ``"k_hot:K"`` (K random classes from a fixed seed),
            ``"top_k_hot:K"``, ``"one_hot:c"``, ``"predicted"``, ``"uniform"``, a Tensor ``[C]`` or
            ``[N, C]`` with entries in [0, 1], or a list of these.
        loss: ``"bce"`` (sigmoid, summed over classes), ``"bce_softmax"`` (the same of softmax
            probabilities) or ``"ce"`` (cross-entropy to the label divided by its sum).
        parameters: which parameters: None for all, a name or glob pattern or several, or a
            predicate ``(name, parameter) → bool``. Nothing is computed before the first selected.
        method: ``"auto"``; ``"rules"`` refuses the fallback; ``"vmap"`` and ``"loop"`` are the
            slow, independent ways to the same numbers.
        micro_batch: samples a pass, chosen from a memory bound when None.
        nan_policy: ``"raise"``, or ``"flag"`` to give samples with NaN or Inf infinite norms.

    Returns:
        The norms, the names of their columns and the logits.

    Raises:
        InputError: an argument is wrong, or ``x`` holds NaN or Inf.
        ModelError: the model's output is not ``[N, C]``, batch statistics are in use, or the
            samples of a batch influence one another.

    Source: Lee, Prabhushankar, AlRegib, "Gradient-Based Adversarial and Out-of-Distribution
    Detection", 2022, arXiv 2206.08255.

    Example:
        >>> model = torch.nn.Linear(3, 2)
        >>> norms = gradient_norms(model, torch.ones(5, 3))
        >>> norms.names, norms.values.shape
        (('weight', 'bias'), torch.Size([5, 2]))
    """
    labels, several = _labels(label)
    _check_arguments(model, x, loss, method, micro_batch, nan_policy)
    chosen = select_parameters(model, parameters)
    if len(x) == 0:
        shape = (0, len(labels), len(chosen)) if several else (0, len(chosen))
        return GradientNorms(x.new_empty(shape, dtype=torch.float32), tuple(chosen), x.new_empty(0))
    bad = _not_finite(x, nan_policy)
    with torch.inference_mode(False), torch.enable_grad(), _lock(model):
        x = x.clone() if x.is_inference() else x.detach()
        if bad is not None:
            x = x.masked_fill(bad.view(-1, *[1] * (x.dim() - 1)), 0.0)
        scorer = _Scorer(model, chosen, labels, loss, method)
        values, logits = scorer.score(x, micro_batch)
    if bad is not None:
        values[bad] = float("inf")
        logits = logits.masked_fill(bad[:, None], float("nan"))
    return GradientNorms(values if several else values[:, 0], tuple(chosen), logits)


class _Scorer:
    """The arguments of one call that every micro-batch shares."""

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, Parameter],
        labels: Sequence[Label],
        loss: str,
        method: str,
    ) -> None:
        self.model, self.parameters = model, parameters
        self.labels, self.loss, self.method = labels, loss, method

    def score(self, x: Tensor, micro_batch: int | None) -> tuple[Tensor, Tensor]:
        """Norms ``[N, K, L]`` and logits ``[N, C]``."""
        plan = self.plan(x)
        size = micro_batch or max(1, _memory_bound(x) // (plan.bytes_per_sample + 1))
        parts = [self._micro_batch(x[i : i + size], i, len(x)) for i in range(0, len(x), size)]
        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])

    def plan(self, x: Tensor) -> Plan:
        """The plan for this model, input and selection: kept from an earlier call, or made."""
        if self.method in ("vmap", "loop"):
            return Plan(uncovered=dict.fromkeys(self.parameters, f'method="{self.method}"'))
        plans = _PLANS.setdefault(self.model, {})
        key = self._key(x)
        if key not in plans:
            plans[key] = make_plan(self.model, self.forward, x, self.parameters)
            for name, reason in plans[key].uncovered.items():
                _LOG.info("%s: %s", name, reason)
        plan = plans[key]
        if self.method == "rules" and plan.uncovered:
            name, reason = next(iter(plan.uncovered.items()))
            raise ModelError(f'method="rules", but no rule covers {name}: {reason}')
        return plan

    def forward(self, x: Tensor) -> Tensor:
        """The model's logits, checked."""
        try:
            out = self.model(x)
        except RuntimeError as error:
            if not x.is_floating_point() and "dtype" in str(error) or "type" in str(error):
                _explain_dtype(x, error)
            raise
        return logits_of(out, len(x))

    def _key(self, x: Tensor) -> tuple[Any, ...]:
        device = x.device.type
        return (
            tuple(x.shape[1:]),
            x.dtype,
            x.device,
            tuple(map(id, self.parameters.values())),
            tuple(m.training for m in self.model.modules()),
            torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        )

    def _micro_batch(self, x: Tensor, start: int, total: int) -> tuple[Tensor, Tensor]:
        try:
            return self._with_plan(x, start, total)
        except PlanError:
            # The model may have been edited since: probe once more, then do without rules.
            _PLANS.get(self.model, {}).pop(self._key(x), None)
        try:
            return self._with_plan(x, start, total)
        except PlanError as error:
            if self.method == "rules":
                raise ModelError(f'method="rules", but {error}') from error
            uncovered = dict.fromkeys(self.parameters, str(error))
            _PLANS[self.model][self._key(x)] = Plan(uncovered=uncovered)
            return self._with_plan(x, start, total)

    def _with_plan(self, x: Tensor, start: int, total: int) -> tuple[Tensor, Tensor]:
        plan = self.plan(x)
        gradients: list[Tensor] = []

        def logit_gradients(logits: Tensor) -> list[Tensor]:
            for label in self.labels:
                if isinstance(label, Tensor) and len(label) == total and label.dim() == 2:
                    label = label[start : start + len(x)]
                gradients.append(logit_gradient(logits, target(label, logits), self.loss))
            return gradients

        with _kept(self.model, plan.written_buffers):
            if plan.steps:
                logits, norms = engine.run(plan, self.forward, x, self.parameters, logit_gradients)
            else:
                with torch.no_grad():
                    logits = self.forward(x)
                logit_gradients(logits)
                norms = [{} for _ in self.labels]
            rest = {n: p for n, p in self.parameters.items() if n in plan.uncovered}
            if rest:
                exact = self._exact(x, rest, gradients, plan.bytes_per_sample)
                norms = [{**a, **b} for a, b in zip(norms, exact, strict=True)]
        return self._assemble(norms, logits), logits

    def _exact(
        self, x: Tensor, rest: Mapping[str, Parameter], gradients: Sequence[Tensor], size: int
    ) -> list[dict[str, Tensor]]:
        def first(out: object) -> Tensor:
            return logits_of(out, 1)

        if self.method == "loop":
            return fallback.loop_norms(self.model, first, x, rest, gradients)
        if self.method == "vmap":
            return fallback.vmap_norms(self.model, first, x, rest, gradients, size)
        return fallback.exact_norms(self.model, first, x, rest, gradients, size)[0]

    def _assemble(self, norms: list[dict[str, Tensor]], logits: Tensor) -> Tensor:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        values = logits.new_zeros(len(logits), len(norms), len(self.parameters), dtype=dtype)
        for k, by_name in enumerate(norms):
            for column, name in enumerate(self.parameters):
                if name in by_name:
                    values[:, k, column] = by_name[name]
        return values


def select_parameters(model: nn.Module, selection: Selection) -> dict[str, Parameter]:
    """The selected parameters by name, in ``named_parameters`` order.

    Raises:
        InputError: a pattern selects nothing, or a parameter is complex or quantised.
    """
    everything = dict(model.named_parameters())
    if selection is None:
        chosen = everything
    elif callable(selection):
        chosen = {name: p for name, p in everything.items() if selection(name, p)}
    else:
        patterns = [selection] if isinstance(selection, str) else list(selection)
        primary = {id(p): name for name, p in everything.items()}
        wanted = set()
        for pattern in patterns:
            found = {
                primary[id(p)]
                for name, p in model.named_parameters(remove_duplicate=False)
                if fnmatchcase(name, pattern)
            }
            if not found:
                raise InputError(
                    f"parameters={pattern!r} matches none of the {len(everything)} parameters; "
                    f"the first is {next(iter(everything), None)!r}"
                )
            wanted |= found
        chosen = {name: p for name, p in everything.items() if name in wanted}
    for name, p in chosen.items():
        if not p.is_floating_point():
            raise InputError(f"parameter {name} is {p.dtype}; norms need real floating point")
    return chosen


def logits_of(out: object, samples: int) -> Tensor:
    """The logits in a model's output: a tensor, or the ``logits`` of an object or mapping.

    Raises:
        ModelError: there are none, or they are not ``[samples, C]``.
    """
    if isinstance(out, Mapping):
        out = out.get("logits")
    elif not isinstance(out, Tensor):
        out = getattr(out, "logits", out)
    if not isinstance(out, Tensor):
        raise ModelError(
            f"the model returned {type(out).__name__}, not logits [N, C]; wrap it in a module that "
            "returns the logits"
        )
    if out.dim() != 2 or len(out) != samples or not out.is_floating_point():
        raise ModelError(
            f"the model returned {list(out.shape)} {out.dtype} for {samples} samples, not floating-"
            "point logits [N, C]; wrap it in a module that returns one row of logits a sample"
        )
    return out


_PLANS: WeakKeyDictionary[nn.Module, dict[Any, Plan]] = WeakKeyDictionary()
_LOCKS: WeakKeyDictionary[nn.Module, threading.RLock] = WeakKeyDictionary()
_LOCKS_LOCK = threading.Lock()


@contextmanager
def _lock(model: nn.Module) -> Iterator[None]:
    """One call at a time for a model: the fallback exchanges its parameters for a moment."""
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(model, threading.RLock())
    with lock:
        yield


@contextmanager
def _kept(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Restore the buffers that the model writes to in its forward pass."""
    saved = {name: model.get_buffer(name).clone() for name in names}
    try:
        yield
    finally:
        for name, value in saved.items():
            model.get_buffer(name).copy_(value)


def _labels(label: Label | Sequence[Label]) -> tuple[list[Label], bool]:
    if isinstance(label, (str, Tensor)):
        return [label], False
    labels = list(label)
    if not labels or not all(isinstance(item, (str, Tensor)) for item in labels):
        raise InputError("label is a string, a Tensor, or a list of these that is not empty")
    return labels, True


def _check_arguments(
    model: nn.Module, x: Tensor, loss: str, method: str, micro_batch: int | None, nan_policy: str
) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if not isinstance(x, Tensor) or x.dim() == 0:
        raise InputError("x must be a Tensor with the samples along dimension 0")
    if loss not in LOSSES:
        raise InputError(f"loss {loss!r} is not known; use one of {', '.join(LOSSES)}")
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known; use one of {', '.join(METHODS)}")
    if micro_batch is not None and micro_batch < 1:
        raise InputError(f"micro_batch is the number of samples a pass, not {micro_batch}")
    if nan_policy not in ("raise", "flag"):
        raise InputError(f'nan_policy is "raise" or "flag", not {nan_policy!r}')


def _not_finite(x: Tensor, nan_policy: str) -> Tensor | None:
    """Rows that hold NaN or Inf, or None if there are none."""
    if not x.is_floating_point():
        return None
    finite = x.isfinite().flatten(1).all(1) if x.dim() > 1 else x.isfinite()
    if bool(finite.all()):
        return None
    if nan_policy == "flag":
        return ~finite
    rows = (~finite).nonzero().flatten().tolist()
    shown = ", ".join(map(str, rows[:10])) + (", …" if len(rows) > 10 else "")
    raise InputError(
        f"x holds NaN or Inf in {len(rows)} of {len(x)} rows ({shown}); remove them, or pass "
        'nan_policy="flag" to score them as infinitely anomalous'
    )


def _explain_dtype(x: Tensor, error: Exception) -> None:
    if not x.is_floating_point():
        raise InputError(
            f"x is {x.dtype}, and the model expects floating point; for images in 0…255 pass "
            "x.float() / 255, or whatever the model was trained on"
        ) from error


def _memory_bound(x: Tensor) -> int:
    if x.device.type == "cuda":
        return min(8 * MEMORY_BOUND, torch.cuda.mem_get_info(x.device)[0] // 4)
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return MEMORY_BOUND
    return min(MEMORY_BOUND, free // 4)
