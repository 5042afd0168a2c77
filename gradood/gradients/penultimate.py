"""The penultimate features of a forward pass, without hooks and whatever module makes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class LastLinear(TorchFunctionMode):
    """Keeps the input ``[N, F]`` of the last linear layer that maps one vector a sample."""

    features: Tensor | None = None

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Make the call."""
        if function is functional.linear and args[0].dim() == 2:
            self.features = args[0]
        return function(*args, **(kwargs or {}))
