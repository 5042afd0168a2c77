"""Evidence of certificates: the numbers from which they can be computed again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from gradood.arguments import at_least
from gradood.arrays import Floats
from gradood.errors import InputError
from gradood.smoothing.inference import Certified
from gradood.smoothing.noise import NoisyInputs
from gradood.smoothing.sampling import Sampler
from gradood.smoothing.settings import Smoothing
from gradood.smoothing.tally import Resumable, Tally, kept_seed
from gradood.writing import write_file

FORMAT = 2

JsonObject = dict[str, Any]
#: (What all inputs have in common, the counts of one) -> its certificate.
Conclusion = Callable[[JsonObject, JsonObject], JsonObject]

#: Dtypes of columns that are not float64.
_DTYPES = {"label": torch.int64, "decision": torch.int64, "abstained": torch.bool}


@dataclass(frozen=True)
class Evidence:
    """What was counted.

    Attributes:
        common: Kind, target, settings, model and versions: the same for every input.
        rows: For every input its id, samples and counts.
        results: For every input what follows from them.
    """

    common: JsonObject
    rows: tuple[JsonObject, ...]
    results: tuple[JsonObject, ...]

    def records(self) -> list[JsonObject]:
        """One JSON object an input, from which ``verify`` computes its certificate again."""
        pairs = zip(self.rows, self.results, strict=True)
        return [{**self.common, **row, "result": result} for row, result in pairs]

    def write(self, path: str | Path) -> None:
        """Write ``records`` as JSON lines; an older file is replaced only by a complete one."""
        write_file(path, self.lines())

    def lines(self) -> str:
        """``records`` as JSON lines."""
        return "".join(json.dumps(encode(record)) + "\n" for record in self.records())

    def columns(self, *names: str, each_radius: bool = False) -> dict[str, Tensor]:
        """Results of all inputs by name, ``[N]``, or ``[N, R]`` of those at each radius."""
        shape = [len(self.rows), *([len(self.radii)] if each_radius else ())]
        return {
            name: torch.tensor(
                [result[name] for result in self.results],
                dtype=_DTYPES.get(name, torch.float64),
                device="cpu",
            ).view(shape)
            for name in names
        }

    @property
    def radii(self) -> Tensor:
        """float64 ``[R]``: those of the target, where it is a list."""
        return torch.tensor(self.common["target"]["radius"], dtype=torch.float64, device="cpu")

    @property
    def samples(self) -> Tensor:
        """int64 ``[N]``: all that were counted, the choice of class or edges included."""
        return torch.tensor(
            [r["samples"] + r["pilot_samples"] for r in self.rows],
            dtype=torch.int64,
            device="cpu",
        )


class Run:
    """One call of a ``certify`` function: checked arguments, tallies and the sampler.

    Args:
        kind: "class", "mean", "quantile", "spread" or "decision".
        model: What is certified; ``outputs`` as in ``Certified``.
        x: The inputs.
        settings: How they are smoothed.
        target: What is claimed, as JSON values.
        ids: As in ``NoisyInputs``.
        state: Path of the file that survives interruptions, or None.
        more: Samples to draw beyond those of the state, for bounds that hold at all numbers of
            samples at once; None draws the settings' n.
    """

    def __init__(
        self,
        kind: str,
        model: Any,
        x: Tensor,
        settings: Smoothing,
        target: JsonObject,
        ids: Sequence[int] | Tensor | None,
        state: str | Path | None,
        more: int | None = None,
    ) -> None:
        if settings.seed is None:
            settings = replace(settings, seed=kept_seed(state))
        self.inputs = NoisyInputs(x, ids, settings)
        self.settings = settings = self.inputs.settings  # with a seed
        self.model = Certified(model, settings, 2 if kind == "class" else 1)
        if state is not None and self.model.fingerprint is None:
            raise InputError(
                f"{type(model).__name__} has no fingerprint, so that a state could be another "
                "model's; give a module, a detector or a Python function, or leave state out"
            )
        self.common: JsonObject = {
            "format": FORMAT,
            "kind": kind,
            "target": target,
            "anytime": more is not None,
            "settings": settings.as_json(),
            "tile": self.inputs.tile,
            "shape": list(x.shape[1:]),
            "model": self.model.fingerprint,
            "denoiser": self.model.denoiser_fingerprint,
        }
        identity = self.common | {"inputs": self.inputs.digest()}
        self._tallies = Resumable(state, identity, len(x), "pilot", "main")
        self.sampler = Sampler(self.model, self.inputs, self._tallies.save)
        #: Samples that every input is to have.
        self.n = settings.n
        if more is not None:
            self.n = _check_more(more, kind, target) + int(self.main.samples.max(initial=0))
            self.main.reopen()

    @property
    def slack(self) -> Floats:
        """``[N]``, see ``rounding``."""
        return np.broadcast_to(self.inputs.slack, len(self.inputs.ids))

    @property
    def pilot(self) -> Tally:
        """Samples of the stream that chooses."""
        return self._tallies["pilot"]

    @property
    def main(self) -> Tally:
        """Samples of the stream that estimates."""
        return self._tallies["main"]

    def evidence(self, counts: Sequence[JsonObject], certificate_from: Conclusion) -> Evidence:
        """The counts and the certificates from them; refuses a model that has changed meanwhile."""
        rows = self._rows(counts)
        results = tuple(certificate_from(self.common, row) for row in rows)
        self.model.check_unchanged()
        return Evidence(self.common | {"versions": _versions()}, tuple(rows), results)

    def _rows(self, counts: Sequence[JsonObject]) -> list[JsonObject]:
        """Id and numbers of samples, beside what was counted."""
        columns = {
            "id": self.inputs.ids.tolist(),
            "magnitude": self.inputs.magnitude.tolist(),
            "slack": self.slack.tolist(),
            "samples": self.main.samples.tolist(),
            "pilot_samples": self.pilot.samples.tolist(),
        }
        numbers = zip(*columns.values(), strict=True)
        return [
            {**dict(zip(columns, row, strict=True)), **count}
            for row, count in zip(numbers, counts, strict=True)
        ]


def _check_more(more: int, kind: str, target: JsonObject) -> int:
    if kind in ("class", "decision") and target["radius"] is not None:
        raise InputError(
            "more goes with radius=None: with a radius, sampling stops when the answer is clear"
        )
    return at_least("more", more)


def answer(result: Mapping[str, Any]) -> str:
    """What is certified of one input's class or decision, in words."""
    if "decision" in result:
        return {1: "anomalous", -1: "normal", 0: "abstain"}[result["decision"]]
    return "abstain" if result["abstained"] else f"class {result['label']}"


def check_goal(radius: float | Sequence[float] | Tensor | None) -> float | list[float] | None:
    """No radius, one as a float, or several as floats, ascending."""
    if radius is None:
        return None
    radii = sorted(set(check_radii(radius)))
    return radii if np.ndim(radius) else radii[0]


def check_radii(radius: float | Sequence[float] | Tensor) -> list[float]:
    """One radius or several, as floats."""
    try:
        radii = torch.as_tensor(radius, dtype=torch.float64, device="cpu").flatten().tolist()
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"radius = {radius!r}; expected one number or several") from error
    if not radii:
        raise InputError("radius is empty; give one radius or several")
    for one in radii:
        if not (math.isfinite(one) and one >= 0):
            raise InputError(f"radius = {one}; expected a number from 0 on, in units of the input")
    return [float(one) for one in radii]


def compact(counts: npt.ArrayLike, edges: npt.ArrayLike) -> tuple[list[float], list[int]]:
    """The same histogram without edges between two empty columns."""
    counts, edges = np.asarray(counts, np.int64), np.asarray(edges, np.float64)
    used = counts[:-1] > 0
    kept = used[:-1] | used[1:]
    # A column that loses its edge is empty, so is its neighbour: nothing is merged.
    columns = np.append(0, kept.cumsum())
    merged = np.bincount(columns, weights=counts[:-1], minlength=kept.sum() + 1)
    return edges[kept].tolist(), [*merged.astype(np.int64).tolist(), int(counts[-1])]


def encode(value: Any) -> Any:
    """JSON values; infinities and NaN, which JSON lacks, as strings that ``float`` reads."""
    if isinstance(value, Mapping):
        return {key: encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("gradood", "torch", "numpy", "scipy")}
