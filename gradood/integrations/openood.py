"""gradood's detectors as postprocessors of OpenOOD, for its evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, cast

import torch
from torch import Tensor, nn

from gradood.arguments import checked
from gradood.detectors import ConfoundingDetector, Detector
from gradood.errors import InputError
from gradood.gradients.validation import class_logits


@checked
def openood_postprocessor(make: Callable[[nn.Module], Detector]) -> Any:
    """A postprocessor for OpenOOD's ``Evaluator``, which fits the detector that ``make`` makes.

    OpenOOD is not on PyPI: this follows the interface of its ``BasePostprocessor`` (``setup``,
    ``postprocess``, ``inference``, batches ``{"data", "label"}``, confidence high for *normal*
    inputs) as documented, and inherits from it where ``openood`` can be imported.

    Args:
        make: From the network to a detector, such as ``gradood.GradientKNN``.

    Example:
        >>> postprocessor = openood_postprocessor(gradood.GradientKNN)
        >>> evaluator = Evaluator(                                             # doctest: +SKIP
        ...     net, id_name="cifar10", postprocessor=postprocessor)
    """
    if find_spec("openood") is None:
        return Postprocessor(make)
    from importlib import import_module

    base = import_module("openood.postprocessors").BasePostprocessor
    return type("GradoodPostprocessor", (Postprocessor, base), {})(make)


class Postprocessor:
    """The methods and attributes that OpenOOD's evaluator uses.

    Args:
        make: From the network to a detector.
    """

    APS_mode = False  #: There are no hyperparameters to search for.
    hyperparam_search_done = True

    def __init__(self, make: Callable[[nn.Module], Detector]) -> None:
        self.config: Any = None
        self._make = make
        self._detector: Detector | None = None

    def setup(
        self,
        net: nn.Module,
        id_loader_dict: Mapping[str, Iterable[Mapping[str, Any]]],
        ood_loader_dict: Mapping[str, Any],
    ) -> None:
        """Fit on ``id_loader_dict["train"]``; the paper's detector also on the validation OOD."""
        if self._detector is not None:  # evaluators set up once for each of several benchmarks
            return
        net.eval()
        detector = self._make(net)
        sources = [_Data(id_loader_dict["train"])]
        if isinstance(detector, ConfoundingDetector):
            if "val" not in ood_loader_dict:
                raise InputError('the paper\'s detector learns from ood_loader_dict["val"]')
            sources.append(_Data(ood_loader_dict["val"]))
        cast(Any, detector).fit(*sources)
        self._detector = detector

    def postprocess(self, net: nn.Module, data: Tensor) -> tuple[Tensor, Tensor]:
        """Predicted classes ``[B]``, and confidences ``[B]``: the negative scores."""
        if self._detector is None:
            raise InputError("setup(net, id_loader_dict, ood_loader_dict) has not been called")
        with torch.no_grad():
            logits = class_logits(net, data)
        # Metrics need finite confidences: a score of +inf becomes the lowest number.
        return logits.argmax(1), torch.nan_to_num(-self._detector.score(data))

    def inference(
        self, net: nn.Module, data_loader: Iterable[Mapping[str, Any]], progress: bool = True
    ) -> tuple[Any, Any, Any]:
        """Predictions, confidences and labels of a whole loader, as NumPy arrays."""
        device = next(net.parameters()).device
        rows = [
            (*self.postprocess(net, batch["data"].to(device)), batch["label"])
            for batch in data_loader
        ]
        found = [
            torch.cat([part.cpu() for part in parts]).numpy() for parts in zip(*rows, strict=True)
        ]
        return found[0].astype(int), found[1], found[2].astype(int)


class _Data:
    """The inputs of batches ``{"data", "label"}``."""

    def __init__(self, loader: Iterable[Mapping[str, Any]]) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self._loader:
            yield batch["data"]
