"""``explain``: what computes each parameter's norm, and why."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood import ops
from gradood.arguments import checked
from gradood.errors import InputError
from gradood.gradients.norms import Norms
from gradood.gradients.rules import Call
from gradood.gradients.scorer import Scorer, locked
from gradood.gradients.validation import (
    Batch,
    Selection,
    check_arguments,
    one_tensor,
    select_parameters,
)


@dataclass(frozen=True)
class Row:
    """How one parameter's norm is computed.

    Attributes:
        parameter: Its name.
        shape: Its shape.
        rule: The rule that covers it, ``"unused"`` if the logits do not depend on it, or the
            fallback, ``"vmap"`` or ``"loop"``.
        algorithm: What computes the norm, such as ``"shift_gram"`` or ``"direct"``.
        backend: Which backend ran it: ``"triton"``, ``"cpp"`` or ``"torch"``.
        input_shape: The operator's input, samples first, if the rule needs it.
        output_shape: The gradient of the operator's output, samples first.
        uses: How many operator calls the parameter takes part in.
        reason: Why a fallback was needed, or why there is nothing to compute.
    """

    parameter: str
    shape: tuple[int, ...]
    rule: str
    algorithm: str = ""
    backend: str = ""
    input_shape: tuple[int, ...] = ()
    output_shape: tuple[int, ...] = ()
    uses: int = 0
    reason: str = ""

    @property
    def fallback(self) -> bool:
        """Whether no rule covers the parameter."""
        return self.rule in ("vmap", "loop")


class Explanation(Sequence[Row]):
    """One :class:`Row` a parameter, in ``named_parameters`` order; prints as a table."""

    def __init__(self, rows: list[Row]) -> None:
        self._rows = rows

    def __getitem__(self, index: Any) -> Any:
        """The row, or rows, at ``index``."""
        return self._rows[index]

    def __len__(self) -> int:
        """The number of parameters."""
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        """The rows in order."""
        return iter(self._rows)

    @property
    def fallbacks(self) -> list[Row]:
        """The parameters that no rule covers."""
        return [row for row in self if row.fallback]

    def __str__(self) -> str:
        """A table for people."""
        header = ("parameter", "shape", "rule", "algorithm", "backend", "input", "output", "reason")
        lines: list[tuple[str, ...]] = [header]
        for row in self:
            shapes = [list(s) if s else "" for s in (row.shape, row.input_shape, row.output_shape)]
            middle = (row.rule, row.algorithm, row.backend)
            lines.append(
                tuple(map(str, (row.parameter, shapes[0], *middle, *shapes[1:], row.reason)))
            )
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        return "\n".join(
            "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip()
            for line in lines
        )


@checked
def explain(
    model: nn.Module, x: Batch, *, parameters: Selection = None, method: str = "auto"
) -> Explanation:
    """Say for every parameter which rule, algorithm and backend compute its norm.

    Args:
        model: As for :func:`gradient_norms`.
        x: A batch of the kind to be scored; a few samples are enough.
        parameters: As for :func:`gradient_norms`.
        method: As for :func:`gradient_norms`.

    Returns:
        One row a parameter; ``str()`` makes a table of them.

    Raises:
        InputError: An argument is wrong, or ``x`` is empty or holds NaN or Inf.
        ModelError: The model cannot be scored.
    """
    check_arguments(model, x, method, None, "raise")
    model, x, _ = one_tensor(model, x, "raise")
    if len(x) == 0:
        raise InputError("explain needs a sample or more to see what the model does with it")
    chosen: dict[str, Parameter] = {}
    seen: dict[str, Row] = {}

    def observe(name: str, call: Call, x: Tensor | None, d: Tensor, how: ops.Served) -> None:
        before = seen.get(name)
        seen[name] = Row(
            name,
            tuple(chosen[name].shape),
            call.name,
            how.algorithm,
            how.backend,
            () if x is None else tuple(x.shape),
            tuple(d.shape),
            1 if before is None else before.uses + 1,
        )

    with torch.inference_mode(False), torch.enable_grad(), locked(model) as known:
        chosen.update(select_parameters(model, parameters, known))
        x = x.clone() if x.is_inference() else x.detach()
        norms = Norms(["all_hot"], ["bce"], observer=observe)
        scorer = Scorer(model, known, chosen, norms, method)
        scorer.score(x[:2], None)
        plan = scorer.plan(x[:2])
    rows = []
    for name, p in chosen.items():
        if name in plan.uncovered:
            reason = plan.uncovered[name]
            rows.append(Row(name, tuple(p.shape), plan.fallback, reason=reason))
        else:
            unused = Row(name, tuple(p.shape), "unused", reason="the logits do not depend on it")
            rows.append(seen.get(name, unused))
    return Explanation(rows)
