"""Compute certificates again from what was written beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gradood.errors import CheckpointError, InputError
from gradood.smoothing import classes, decisions, means, quantiles
from gradood.smoothing.evidence import FORMAT, Evidence, Row, encode
from gradood.smoothing.settings import Smoothing

_EVALUATE: dict[str, Callable[[Row, Row], Row]] = {
    "class": classes.evaluate,
    "decision": decisions.evaluate,
    "mean": means.evaluate,
    "quantile": quantiles.evaluate,
}
#: Special functions of other versions of scipy may differ in their last digits.
_TOLERANCE = 1e-9


def read_records(path: str | Path) -> list[Row]:
    """Read JSON lines that ``Evidence.write`` wrote.

    Raises:
        CheckpointError: The file is missing or is no such file.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
        records = [json.loads(line) for line in lines if line.strip()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read certificates from {path}: {error}") from error
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict) or record.get("kind") not in _EVALUATE:
            raise CheckpointError(f"{path}, line {number} is no certificate of gradood")
        if record.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}, line {number} has format {record.get('format')}; this gradood reads "
                f"{FORMAT}"
            )
    return records


def verify(record: Row) -> str | None:
    """Compute one certificate again from its counts, settings and target.

    Returns:
        None if it is right, else what is wrong.
    """
    try:
        problem = _impossible(record)
        result = encode(_EVALUATE[record["kind"]](record, record))
        claimed = record["result"]
    except (LookupError, TypeError, ValueError) as error:
        return f"it is damaged ({type(error).__name__}: {error})"
    if problem is not None:
        return problem
    if set(result) != set(claimed):
        return f"it claims {', '.join(claimed)}, expected {', '.join(result)}"
    for name, value in result.items():
        if not _equal(value, claimed[name]):
            return f"{name} is {claimed[name]}, its counts give {value}"
    return None


def verify_with_model(
    records: Sequence[Row], model: Any, x: Tensor, settings: Smoothing | None = None
) -> list[str | None]:
    """Draw all samples again, and compare counts and certificates.

    Args:
        records: Of one run, in the order of ``x``.
        model: The model or score that was certified.
        x: The inputs.
        settings: With the denoiser, if there was one; by default as recorded.

    Returns:
        For every record None if it came out the same, else what differs.
    """
    if len(records) != len(x):
        raise InputError(f"there are {len(records)} certificates for {len(x)} inputs")
    if not records:
        return []
    first = records[0]
    if settings is None:
        if first["settings"]["denoiser"] is not None:
            raise InputError("these certificates had a denoiser; give settings that hold it")
        settings = Smoothing(**{**first["settings"], "tile": first["tile"]})
    again = _certify(first, model, x, settings, [record["id"] for record in records])
    return [_difference(record, new) for record, new in zip(records, again.records(), strict=True)]


def _certify(
    first: Row, model: Any, x: Tensor, settings: Smoothing, ids: Sequence[int]
) -> Evidence:
    certify: dict[str, Callable[..., Any]] = {
        "class": classes.certify_class,
        "decision": decisions.certify_decision,
        "mean": means.certify_mean,
        "quantile": quantiles.certify_quantile,
    }
    evidence: Evidence = certify[first["kind"]](
        model, x, settings, ids=ids, **first["target"]
    ).evidence
    return evidence


def _difference(record: Row, new: Row) -> str | None:
    new = encode(new)
    for name in ("model", "denoiser", "samples", "pilot", "counts", "edges"):
        if record.get(name) != new.get(name):
            what = f"another {name}" if name in ("model", "denoiser") else f"{name} {new.get(name)}"
            return f"drawn again, it has {what}, recorded {record.get(name)}"
    return verify(record)


def _impossible(record: Row) -> str | None:
    """What counts alone show to be wrong."""
    counts, samples = record["counts"], record["samples"]
    settings = record["settings"]
    if any(count < 0 for count in counts):
        return "a count is negative"
    if record["kind"] == "decision":
        if sum(counts) > samples:
            return f"{sum(counts)} of {samples} samples were counted"
    elif sum(counts) != samples:
        return f"the counts add up to {sum(counts)}, samples are {samples}"
    if samples > settings["n"] or not (0 < settings["alpha"] < 1 and settings["sigma"] > 0):
        return "its settings are out of range"
    fixed = record["kind"] in ("mean", "quantile") or record["target"]["radius"] is None
    if fixed and samples != settings["n"]:
        return f"{samples} samples were drawn instead of {settings['n']}"
    return None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, str) or isinstance(b, str) or isinstance(a, bool):
        return bool(a == b)
    return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
