"""Compute certificates again from what was written beside them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from gradood.arguments import checked
from gradood.errors import CheckpointError, InputError
from gradood.smoothing import classes, decisions, means, quantiles, rounding, spreads
from gradood.smoothing.commitment import commit
from gradood.smoothing.evidence import FORMAT, Conclusion, JsonObject, encode
from gradood.smoothing.settings import Smoothing

_CERTIFICATE_FROM: dict[str, Conclusion] = {
    "class": classes.certificate_from,
    "decision": decisions.certificate_from,
    "mean": means.certificate_from,
    "quantile": quantiles.certificate_from,
    "spread": spreads.certificate_from,
}
#: The certifying function by kind.
CERTIFY: dict[str, Callable[..., Any]] = {
    "class": classes.certify_class,
    "decision": decisions.certify_decision,
    "mean": means.certify_mean,
    "quantile": quantiles.certify_quantile,
    "spread": spreads.certify_spread,
}
#: Fields that a command adds to a record for the reader.
_LABELS = ("file", "units")
#: Special functions of other versions of scipy may differ in their last digits.
_TOLERANCE = 1e-9


@checked
def read_records(path: str | Path) -> list[JsonObject]:
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
        if not isinstance(record, dict) or record.get("kind") not in _CERTIFICATE_FROM:
            raise CheckpointError(f"{path}, line {number} is no certificate of gradood")
        if record.get("format") != FORMAT:
            raise CheckpointError(
                f"{path}, line {number} has format {record.get('format')}; this gradood reads "
                f"{FORMAT}"
            )
    return records


def verify(record: JsonObject) -> str | None:
    """Compute one certificate again from its counts, settings and target.

    Returns:
        None if it is right, else what is wrong.
    """
    try:
        problem = _impossible(record)
        result = encode(_CERTIFICATE_FROM[record["kind"]](record, record))
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


@checked
def verify_with_model(
    records: Sequence[JsonObject],
    model: Any,
    x: Tensor,
    settings: Smoothing | None = None,
    *,
    challenge: str | None = None,
) -> list[str | None]:
    """Draw all samples again, each record's by its own settings, and compare every field.

    Args:
        records: In the order of ``x``.
        model: The model or score that was certified.
        x: The inputs.
        settings: With the denoiser, if there was one; what else they say must be what the records
            say. By default as recorded.
        challenge: What ``Commitment.open`` was given, if the inputs were committed to: then the
            seed must be the one that follows from inputs, model, settings and challenge.

    Returns:
        For every record None if it came out the same but for versions, else what differs.

    Raises:
        InputError: Their numbers differ, or a denoiser is missing.
    """
    if len(records) != len(x):
        raise InputError(f"there are {len(records)} certificates for {len(x)} inputs")
    recorded = (record.get("settings") for record in records)
    if settings is None and any(isinstance(s, dict) and s.get("denoiser") for s in recorded):
        raise InputError("these certificates had a denoiser; give settings that hold it")
    problems: list[str | None] = [None] * len(records)
    for rows in _runs(records):
        some = [records[row] for row in rows]
        for row, problem in zip(rows, _again(some, model, x[rows], settings), strict=True):
            problems[row] = problem
        if challenge is not None and not any(problems[row] for row in rows):
            problems_of_all = _uncommitted(some, model, x[rows], settings, challenge)
            problems = [problems_of_all if i in rows else p for i, p in enumerate(problems)]
    return problems


#: Fields that all records of one run share.
_COMMON = ("format", "kind", "target", "anytime", "settings", "tile", "shape", "model", "denoiser")


def _runs(records: Sequence[JsonObject]) -> list[list[int]]:
    """Rows of the records that one run can draw again: same settings, and no id twice."""
    runs: list[tuple[str, set[Any], list[int]]] = []
    for row, record in enumerate(records):
        reached = record.get("samples") if record.get("anytime") else None
        number = record.get("id")
        possible = isinstance(number, int) and 0 <= number < 2**32  # else it spoils no other's run
        key = json.dumps(encode([*(record.get(name) for name in _COMMON), reached, possible]))
        number = json.dumps(number)
        fits = (run for run in runs if run[0] == key and number not in run[1])
        run = next(fits, None)
        if run is None:
            run = (key, set(), [])
            runs.append(run)
        run[1].add(number)
        run[2].append(row)
    return [rows for _, _, rows in runs]


def _again(
    records: Sequence[JsonObject], model: Any, x: Tensor, given: Smoothing | None
) -> list[str | None]:
    """What is wrong with records of one run."""
    first = records[0]
    try:
        settings = _settings(first, given)
        certify, target = CERTIFY[first["kind"]], dict(first["target"])
        ids = [int(record["id"]) for record in records]
        more = first["samples"] if first["anytime"] else None
    except (LookupError, TypeError, ValueError) as error:
        return [f"it is damaged ({type(error).__name__}: {error})"] * len(records)
    if isinstance(settings, str):
        return [settings] * len(records)
    try:
        new = certify(model, x, settings=settings, ids=ids, more=more, **target).evidence.records()
    except (InputError, TypeError) as error:
        return [f"it cannot be drawn again: {error}"] * len(records)
    return [_difference(*pair) for pair in zip(records, new, strict=True)]


def _settings(record: JsonObject, given: Smoothing | None) -> Smoothing | str:
    """The record's, with the denoiser that was given; or how the rest differs from what was."""
    recorded = {**record["settings"], "tile": record["tile"]}
    if given is None:
        return Smoothing(**recorded)
    expected = given.as_json()
    for name, value in expected.items():
        free = name == "tile" or (name == "seed" and value is None)
        if not free and value != recorded.get(name):
            return f"its settings have {name} {recorded.get(name)}, those given {value}"
    return Smoothing(**{**recorded, "denoiser": given.denoiser})


def _uncommitted(
    records: Sequence[JsonObject], model: Any, x: Tensor, given: Smoothing | None, challenge: str
) -> str | None:
    """What is wrong with the seed, if it should come from a commitment to all of this."""
    first = records[0]
    settings = _settings(first, given)
    assert isinstance(settings, Smoothing)
    ids = [record["id"] for record in records]
    commitment = commit(first["kind"], model, x, settings=settings, ids=ids, **first["target"])
    opened = commitment.open(challenge).seed
    if settings.seed != opened:
        return f"its seed is {settings.seed}; the challenge opens its commitment to {opened}"
    return None


def _difference(record: JsonObject, new: JsonObject) -> str | None:
    """The first field, versions apart, that is not what drawing again gives."""
    new, record = encode(new), encode(record)
    free = ("versions", "result", *_LABELS)  # results are computed from the rest
    names = [name for name in {**new, **record} if name not in free]
    for name in sorted(names, key=lambda name: name not in ("model", "denoiser")):
        if name == "settings":
            same = {**record[name], "tile": None} == {**new[name], "tile": None}
            same = same and record[name].get("tile") in ("auto", new["tile"])
        else:
            same = name in record and name in new and record[name] == new[name]
        if not same:
            other = name in ("model", "denoiser")
            what = f"another {name}" if other else f"{name} {new.get(name)}"
            return f"drawn again, it has {what}, recorded {record.get(name)}"
    return verify(record)


def _impossible(record: JsonObject) -> str | None:
    """Errors that the counts alone show."""
    counts, samples = record["counts"], record["samples"]
    settings = record["settings"]
    if any(count < 0 for count in counts):
        return "a count is negative"
    expected = float(rounding.slack(settings, record["shape"], record["magnitude"]))
    if not math.isclose(record["slack"], expected, rel_tol=1e-9, abs_tol=0):
        return f"slack is {record['slack']}, its settings give {expected}"
    pilot = settings["n0"] if record["kind"] in ("class", "quantile", "spread") else 0
    if record["pilot_samples"] != pilot or sum(record.get("pilot", [pilot])) != pilot:
        return f"{record['pilot_samples']} samples chose, instead of {pilot}"
    if record["kind"] == "decision":
        if sum(counts) > samples:
            return f"{sum(counts)} of {samples} samples were counted"
    elif sum(counts) != samples:
        return f"the counts add up to {sum(counts)}, samples are {samples}"
    anytime = record["anytime"]
    if (samples > settings["n"] and not anytime) or not (
        0 < settings["alpha"] < 1 and settings["sigma"] > 0
    ):
        return "its settings are out of range"
    fixed = record["kind"] in ("mean", "quantile", "spread") or record["target"]["radius"] is None
    if anytime and not fixed:
        return "it names a radius, so it is not anytime"
    if fixed and not anytime and samples != settings["n"]:
        return f"{samples} samples were drawn instead of {settings['n']}"
    return None


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list):
        return isinstance(b, list) and len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, str) or isinstance(b, str) or isinstance(a, bool):
        return bool(a == b)
    return math.isclose(a, b, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)
