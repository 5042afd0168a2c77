"""Check the arguments that users give; errors say what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from gradood.errors import InputError, ModelError
from gradood.gradients.decision import as_classes
from gradood.gradients.labels import LOSSES, Label
from gradood.gradients.outline import Outline
from gradood.gradients.wrappers import has_own_mode, is_plain, refuse_quantised, refuse_script
from gradood.inputs import Inputs, explain_call, explain_dtype

METHODS = ("auto", "rules", "vmap", "loop")

#: A tensor ``[N, …]``, or a tuple or mapping that holds several.
Batch = Tensor | Inputs | Sequence[Any] | Mapping[str, Any]

Selection = None | str | Sequence[str] | Callable[[str, Parameter], bool]


def select_parameters(
    model: nn.Module, selection: Selection, known: Outline
) -> dict[str, Parameter]:
    """The selected parameters by name, in ``named_parameters`` order.

    Raises:
        InputError: A pattern selects nothing, or a parameter is complex or quantised.
    """
    return known.selected(selection, lambda: _select(model, selection))


def _select(model: nn.Module, selection: Selection) -> dict[str, Parameter]:
    if isinstance(model, torch.jit.ScriptModule):  # parts of one may be
        refuse_script(model)
    everything = dict(model.named_parameters())
    if not everything:
        refuse_quantised(model)
    if selection is None:
        chosen = everything
    elif callable(selection):
        chosen = {name: p for name, p in everything.items() if selection(name, p)}
    else:
        patterns = [selection] if isinstance(selection, str) else list(selection)
        primary = {id(p): name for name, p in everything.items()}
        wanted = set()
        named = list(model.named_parameters(remove_duplicate=False))
        names = {name for name, _ in named}
        for pattern in patterns:
            # An existing name is taken literally, also one with brackets: "income[USD].weight".
            match = str.__eq__ if pattern in names else fnmatchcase
            found = {primary[id(p)] for name, p in named if match(name, pattern)}
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
        if not is_plain(p):
            raise InputError(
                f"parameter {name} is a {type(p.data).__name__} (quantised or sharded), which has "
                "no gradient of its own; leave it out with parameters=…, or give the plain model"
            )
    return chosen


def call_model(model: nn.Module, x: Batch) -> object:
    """What ``model`` returns for a batch. Every part of the package calls models through this.

    Raises:
        InputError: The model takes other arguments, or another dtype.
    """
    if not isinstance(x, Tensor):
        return Inputs.of(x).call(model)
    try:
        return model(x)
    except TypeError as error:
        explain_call(error)
        raise
    except RuntimeError as error:
        explain_dtype(model, [x], error)
        raise


def class_logits(model: nn.Module, x: Batch) -> Tensor:
    """The logits ``[N, C]``, C ≥ 2, that decide between classes; of one logit those of its sigmoid.

    Raises:
        InputError: As ``call_model``.
        ModelError: As ``logits_of``.
    """
    batch = x if isinstance(x, Tensor) else Inputs.of(x)
    return as_classes(logits_of(call_model(model, batch), len(batch)))


def logits_of(out: object, samples: int) -> Tensor:
    """The logits in a model's output: a tensor, or the ``logits`` of an object or mapping.

    Raises:
        ModelError: There are none, or they are not ``[samples, C]``.
    """
    if not isinstance(out, Tensor):
        out = _named_logits(out)
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


def _named_logits(out: object) -> object:
    """What a mapping or an object calls its logits."""
    if not isinstance(out, Mapping):
        return getattr(out, "logits", out)
    if "logits" not in out:
        raise ModelError(
            f"the model returned a {type(out).__name__} with {', '.join(map(repr, out))}, and "
            'no "logits"; wrap it in a module that returns the logits'
        )
    return out["logits"]


def as_labels(label: Label | Sequence[Label]) -> tuple[list[Label], bool]:
    """The labels as a list, and whether the caller gave a list."""
    if isinstance(label, (str, Tensor)):
        return [label], False
    labels = list(label)
    if not labels or not all(isinstance(item, (str, Tensor)) for item in labels):
        raise InputError("label is a string, a Tensor, or a list of these that is not empty")
    return labels, True


def as_losses(loss: str | Sequence[str], labels: int) -> list[str]:
    """One loss for each of the labels.

    Raises:
        InputError: A loss is not known, or there are more or fewer losses than labels.
    """
    losses = [loss] * labels if isinstance(loss, str) else list(loss)
    for one in losses:
        if one not in LOSSES:
            raise InputError(f"loss {one!r} is not known; use one of {', '.join(LOSSES)}")
    if len(losses) != labels:
        raise InputError(f"{len(losses)} losses for {labels} labels; give one, or one each")
    return losses


def check_arguments(
    model: nn.Module, x: Batch, method: str, micro_batch: int | None, nan_policy: str
) -> None:
    """Refuse invalid arguments of ``gradient_norms``."""
    if not isinstance(model, nn.Module):
        raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(x, Tensor) and x.dim() == 0:
        raise InputError("x must be a Tensor with the samples along dimension 0")
    if method not in METHODS:
        raise InputError(f"method {method!r} is not known; use one of {', '.join(METHODS)}")
    if micro_batch is not None and micro_batch < 1:
        raise InputError(f"micro_batch is the number of samples a pass, not {micro_batch}")
    if nan_policy not in ("raise", "flag"):
        raise InputError(f'nan_policy is "raise" or "flag", not {nan_policy!r}')


def one_tensor(
    model: nn.Module, x: Batch, nan_policy: str
) -> tuple[nn.Module, Tensor, Tensor | None]:
    """A batch as one tensor, the model as one of it, and the rows that ``not_finite`` finds."""
    if isinstance(x, Tensor):
        return model, x, not_finite(x, nan_policy)
    several = Inputs.of(x)
    if isinstance(model, torch.jit.ScriptModule):
        refuse_script(model)
    return *several.packed(model), not_finite(several, nan_policy)


def not_finite(x: Tensor | Inputs, nan_policy: str) -> Tensor | None:
    """Rows that hold NaN or Inf, or None if there are none."""
    found = [_bad_rows(t) for t in ([x] if isinstance(x, Tensor) else x.tensors)]
    made = [rows for rows in found if rows is not None]
    bad = torch.stack(made).any(0) if made else None
    if bad is None or nan_policy == "flag":
        return bad
    raise InputError(
        f"x holds NaN or Inf in {_shown(bad)}; remove them, or pass "
        'nan_policy="flag" to score them as infinitely anomalous'
    )


def unusable_rows(
    results: Iterable[Tensor | None], bad: Tensor | None, nan_policy: str
) -> Tensor | None:
    """Rows of which a model made NaN or Inf, with the ``bad`` ones of its inputs; None if none.

    Raises:
        ModelError: It made them of finite rows, and the policy is to raise.
    """
    found = [_bad_rows(result) for result in results if result is not None]
    made = [rows for rows in found if rows is not None]
    if made and nan_policy == "raise":
        raise ModelError(
            "the model's logits, penultimate features or gradient norms hold NaN or Inf in "
            f"{_shown(torch.stack(made).any(0))}, though the inputs are finite; a wider dtype may "
            'help, or pass nan_policy="flag" to score these rows as infinitely anomalous'
        )
    every = made if bad is None else [*made, bad]
    return torch.stack(every).any(0) if every else None


def _bad_rows(t: Tensor) -> Tensor | None:
    """Which rows ``[N]`` hold NaN or Inf; None if none does."""
    if not t.is_floating_point() or isfinite(t.sum(dtype=_wide(t)).item()):
        return None  # one NaN or Inf would make the sum NaN or Inf
    finite = t.isfinite().flatten(1).all(1) if t.dim() > 1 else t.isfinite()
    return None if bool(finite.all()) else ~finite


def _shown(rows: Tensor) -> str:
    numbers = rows.nonzero().flatten().tolist()
    shown = ", ".join(map(str, numbers[:10])) + (", …" if len(numbers) > 10 else "")
    return f"{len(numbers)} of {len(rows)} rows ({shown})"


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def require_eval(model: nn.Module) -> None:
    """Refuse a model of which a part is in training mode.

    Raises:
        ModelError: It is.
    """
    if any(module.training and has_own_mode(module) for module in model.modules()):
        raise ModelError("the model is in training mode; call model.eval() first")
