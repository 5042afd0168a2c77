"""Every method by name, in the order in which they are measured and shown."""

from __future__ import annotations

from gradood.benchmarking import methods
from gradood.benchmarking.methods import Method
from gradood.errors import InputError

FORWARD, FORWARD_BACKWARD, ACTIVATION_ONLY = "forward", "forward+backward", "activation-only"
CPP, TORCH = "gradood cpp", "gradood torch"

#: The passes that ratios are taken to, the library's backends, then other ways to the same numbers.
METHODS = {
    FORWARD: Method(methods.forward, computes="nothing", casts=True, quick=True),
    ACTIVATION_ONLY: Method(methods.activation_only, computes="nothing", casts=True, quick=True),
    FORWARD_BACKWARD: Method(methods.forward_backward, computes="nothing", casts=True, quick=True),
    CPP: Method(methods.through_backend("cpp"), "gradood", casts=True, quick=True),
    TORCH: Method(methods.through_backend("torch"), "gradood", casts=True, quick=True),
    "vmap chunks of 16": Method(methods.vectorised(16)),
    "vmap": Method(methods.vectorised(None), slow=True),
    "loop": Method(methods.one_at_a_time, slow=True),
}


def method(name: str) -> Method:
    """The method of a name.

    Raises:
        InputError: There is none of this name.
    """
    if name not in METHODS:
        raise InputError(f"no method {name!r} to measure; use one of {', '.join(METHODS)}")
    return METHODS[name]
