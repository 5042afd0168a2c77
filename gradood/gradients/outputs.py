"""Outputs of operators that somebody holds anyway: a backward pass reads them without their cost.

During the forward pass nothing here keeps an output alive. What is still there at its end, an
operator that comes later has saved.
"""

from __future__ import annotations

from typing import Any
from weakref import ref

from torch import Tensor

_MARK = "gradood_output"

#: Nodes of activations that save what they were given: where they overwrite it, a copy.
_SAVE_INPUT = tuple(
    f"{name}Backward0" for name in ("Silu", "Gelu", "Mish", "Hardswish", "Hardtanh")
)


class Output:
    """What one operator returned, as far as it is still to be had.

    A ReLU need not keep its input ``y``. But where its own output is held, so is ``max(y, 0)``, and
    a gradient that came through the ReLU alone is zero where the two differ.
    """

    def __init__(self, out: Tensor) -> None:
        self._out, self._made = ref(out), out._version
        self._held: tuple[Tensor, int] | None = None
        #: Whether what is held is ``max(y, 0)``.
        self.rectified = False
        node: Any = out.grad_fn
        node.metadata[_MARK] = self

    def hold(self) -> None:
        """Hold the output after the forward pass, if it is still there as it was."""
        out = self._out()
        if out is not None and out._version == self._made:
            self._hold(out, False)

    def hold_from(self, node: Any, result: Tensor) -> None:
        """Hold what an activation has saved of it, or a ReLU's result, which somebody holds."""
        if node.name() == "ReluBackward0":
            self._hold(result, True)
        elif node.name() in _SAVE_INPUT:
            self._hold(node._saved_self, False)

    def _hold(self, value: Tensor, rectified: bool) -> None:
        self._held = value.detach(), value._version  # its own graph would lead back here
        self.rectified = rectified

    def value(self) -> Tensor | None:
        """The output, or its ReLU; None if it is gone or was overwritten."""
        if self._held is None:
            return None
        value, version = self._held
        return value if value._version == version else None

    def release(self) -> None:
        """Hold it no longer."""
        self._held = None


class Outputs:
    """Those of one forward pass that a formula may read in its backward pass."""

    def __init__(self) -> None:
        self._all: list[Output] = []

    def add(self, out: Tensor) -> Output:
        """One more, which is in a graph."""
        self._all.append(Output(out))
        return self._all[-1]

    def note(self, data: Tensor | None) -> None:
        """See whether a later operator's input, which is held, is an activation of one of them."""
        node: Any = None if not self._all or data is None else data.grad_fn
        if node is None or not node.next_functions:
            return
        below = node.next_functions[0][0]
        found = None if below is None else below.metadata.get(_MARK)
        if found is not None:
            assert data is not None
            found.hold_from(node, data)

    def hold(self) -> None:
        """Hold, after the forward pass, what is still there."""
        for output in self._all:
            output.hold()
        self._all.clear()
