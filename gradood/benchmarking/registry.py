"""Every method by name, in the order in which they are measured and shown."""

from __future__ import annotations

from importlib import import_module

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


def include(module: str) -> None:
    """Add the methods of a module that is importable here: its ``METHODS``, by name.

    Raises:
        InputError: There is no such module, or it has none.
    """
    try:
        found: dict[str, Method] = import_module(module).METHODS
    except (ImportError, AttributeError) as error:
        raise InputError(f"--methods-from {module}: {error}; give a module with METHODS") from error
    METHODS.update(found)


def method(name: str) -> Method:
    """The method of a name.

    Raises:
        InputError: There is none of this name.
    """
    if name not in METHODS:
        raise InputError(f"no method {name!r} to measure; use one of {', '.join(METHODS)}")
    return METHODS[name]
