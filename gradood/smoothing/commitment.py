"""Commit to what is certified before its noise is drawn."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gradood.arguments import checked, number, one_of
from gradood.errors import InputError
from gradood.smoothing.evidence import check_goal, check_radii
from gradood.smoothing.fingerprint import fingerprint
from gradood.smoothing.noise import NoisyInputs
from gradood.smoothing.settings import Smoothing

#: Defaults of the targets of the ``certify`` functions.
_TARGETS: Mapping[str, Mapping[str, Any]] = {
    "class": {"radius": None},
    "decision": {"threshold": None, "radius": None, "q": 0.5},
    "mean": {"radius": 0.0},
    "quantile": {"radius": 0.0, "q": 0.5},
    "spread": {"radius": 0.0, "weight": 1.0},
}


@dataclass(frozen=True)
class Commitment:
    """What ``commit`` returns.

    Attributes:
        digest: 32 hexadecimal digits, to be published before the challenge is drawn.
        settings: Those that were committed to, without a seed.
    """

    digest: str
    settings: Smoothing

    @checked
    def open(self, challenge: str) -> Smoothing:
        """The settings with the seed that follows from the digest and a challenge.

        Args:
            challenge: Drawn after the digest was published, by the auditor or a public source of
                randomness: any text that nobody could foresee.
        """
        mixed = hashlib.blake2b(f"{self.digest} {challenge}".encode(), digest_size=8)
        return replace(self.settings, seed=int.from_bytes(mixed.digest(), "big", signed=True))


@checked
def commit(
    kind: str,
    model: Any,
    x: Tensor,
    settings: Smoothing,
    *,
    ids: Sequence[int] | Tensor | None = None,
    **target: Any,
) -> Commitment:
    """Commit to model, inputs, settings and claim, before the seed of their noise is drawn.

    Publish ``digest``; draw a challenge; certify with ``open(challenge)``. Later, anyone who has
    the inputs checks with ``verify_with_model(..., challenge=challenge)`` that all of it was fixed
    first. A seed that is drawn by the certifier alone could be drawn until it pleases.

    Args:
        kind: "class", "decision", "mean", "quantile" or "spread".
        model: What will be certified.
        x: ``[N, ...]``.
        settings: Their seed is ignored.
        ids: As for the ``certify`` function.
        **target: Its further arguments: radius, threshold, q, weight.

    Raises:
        InputError: There is no such kind, or argument.
    """
    one_of("kind", kind, _TARGETS)
    unknown = set(target) - set(_TARGETS[kind])
    if unknown:
        raise InputError(f"{kind} certificates have no {', '.join(sorted(unknown))}")
    claim = {**_TARGETS[kind], **target}
    single = kind in ("class", "decision")
    claim["radius"] = check_goal(claim["radius"]) if single else check_radii(claim["radius"])
    settings = replace(settings, seed=None)
    inputs = NoisyInputs(x, ids, settings)
    content = {
        "kind": kind,
        "target": {
            k: v if v is None or isinstance(v, list) else number(k, v) for k, v in claim.items()
        },
        "settings": {**settings.as_json(), "tile": inputs.tile},
        "inputs": inputs.digest(),
        "model": fingerprint(model),
        "denoiser": fingerprint(settings.denoiser),
    }
    text = json.dumps(content, sort_keys=True)
    return Commitment(hashlib.blake2b(text.encode(), digest_size=16).hexdigest(), settings)
