"""The model that is certified: checked, in the requested precision and memory layout."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from gradood.detectors import Detector
from gradood.errors import InputError, ModelError
from gradood.gradients.decision import as_classes, not_finite_rows
from gradood.gradients.validation import logits_of
from gradood.graph_capture import Captured, capture, check_device
from gradood.smoothing.fingerprint import fingerprint, weights
from gradood.smoothing.independence import check_again, check_rows, due
from gradood.smoothing.settings import DTYPES, Smoothing

_LOG = logging.getLogger("gradood")

#: A detector, or anything that maps inputs ``[N, ...]`` to scores ``[N]``.
Score: TypeAlias = Detector | Callable[[Tensor], Tensor]

#: Models whose rows were found independent, with the settings under which they were.
_INDEPENDENT: WeakKeyDictionary[Any, set[str]] = WeakKeyDictionary()

_OPTIONS = ("dtype", "fold_batch_norm", "compile", "cuda_graph")


class Certified:
    """A model or score, ready to run on noisy batches of one shape.

    Args:
        model: Module, detector or callable.
        settings: Which options apply. Detectors and plain callables take none but the layout.
        outputs: Dimensions of a result: 1 for scores ``[N]``, 2 for logits ``[N, C]``.
    """

    def __init__(self, model: Any, settings: Smoothing, outputs: int) -> None:
        if not (callable(model) or isinstance(model, Detector)):
            raise InputError(f"cannot certify {type(model).__name__}; give a module or a callable")
        self._original, self._settings, self._outputs = model, settings, outputs
        self.fingerprint = fingerprint(model)
        self.denoiser_fingerprint = fingerprint(settings.denoiser)
        self._weights = weights(model), weights(settings.denoiser)
        #: Whether rows are run one by one; None until the first batch shows whether they must be.
        self._by_rows: bool | None = None
        if isinstance(settings.denoiser, nn.Module):
            _check_modules(settings.denoiser)
        self._passes = 0
        self._width: int | None = None
        self._graph: Captured | None = None
        if isinstance(model, Detector):
            model.require_fitted()
            _check_modules(model.model)
            _refuse_options(settings, "detectors")
            quiet = copy.copy(model)
            quiet.progress = False
            self._run: Callable[[Tensor], Any] = quiet.score
        elif isinstance(model, nn.Module):
            _check_modules(model)
            self._run = prepared(model, settings)
        else:
            _refuse_options(settings, "plain callables")
            self._run = model

    @torch.no_grad()
    def __call__(self, noisy: Tensor) -> Tensor:
        """Scores ``[T]`` or logits ``[T, C]`` of a noisy batch, float32 or float64."""
        if self._by_rows is None and len(noisy) > 1:
            first = self._probe(noisy)
            if first is not None:
                return first
        if self._by_rows:
            return torch.cat([self._pass(row) for row in noisy.split(1)])
        if not self._settings.cuda_graph:
            result = self._pass(noisy)
            self._passes += 1
            if len(noisy) > 1 and due(self._passes):
                check_again(self._pass, noisy, result)
            return result
        check_device(noisy)
        if self._graph is None:
            self._graph = capture(self._pass, noisy)
        replayed: Tensor = self._graph.replay(noisy)
        return replayed

    def _probe(self, noisy: Tensor) -> Tensor | None:
        """Find out whether rows are independent; the result of the batch, if it can be used."""
        options = [self._settings.sigma, *(getattr(self._settings, name) for name in _OPTIONS)]
        key = str([self.fingerprint, self.denoiser_fingerprint, noisy.shape, noisy.device, options])
        if self.fingerprint is not None and key in _INDEPENDENT.get(self._original, ()):
            self._by_rows = False
            return None
        try:
            self._by_rows, first = check_rows(self._pass, noisy)
        except ModelError:
            self.check_unchanged()  # changing weights are the more exact reason
            raise
        if self._by_rows:
            _LOG.warning("the model is random: every sample gets a pass of its own, which is slow")
            return None
        with suppress(TypeError):  # some objects cannot be referred to weakly
            _INDEPENDENT.setdefault(self._original, set()).add(key)
        return first

    def _pass(self, noisy: Tensor) -> Tensor:
        if self._settings.denoiser is not None:
            clean = self._settings.denoiser(noisy, self._settings.sigma)
            if not isinstance(clean, Tensor) or clean.shape != noisy.shape:
                raise ModelError("the denoiser must return a tensor of the shape that it is given")
            noisy = clean
        return self._checked(self._run(noisy), len(noisy))

    def check_unchanged(self) -> None:
        """Refuse a model or denoiser whose weights changed while it was sampled."""
        if (weights(self._original), weights(self._settings.denoiser)) != self._weights:
            raise ModelError(
                "the model changed while it was being certified; samples of different models "
                "certify neither. Leave the weights alone, and start again"
            )

    def _checked(self, result: Any, rows: int) -> Tensor:
        if self._outputs == 2:
            values = as_classes(logits_of(result, rows))
            # No class, as in detectors and attacks: overflow decides nothing.
            values = values.masked_fill(not_finite_rows(values)[:, None], torch.nan)
        else:
            values = _scores(result, rows)
        width = values.shape[-1] if self._outputs == 2 else 0
        if self._width not in (None, width):
            raise ModelError(f"the model had {self._width} outputs before, and now has {width}")
        self._width = width
        return values.float() if values.dtype != torch.float64 else values


def _scores(result: Any, rows: int) -> Tensor:
    """Scores ``[N]`` that a callable returned as ``[N]`` or ``[N, 1]``."""
    values = getattr(result, "logits", result)
    if not isinstance(values, Tensor):
        raise ModelError(f"the result is {type(result).__name__}; expected a Tensor [N]")
    if values.dim() == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.shape != (rows,):
        raise ModelError(
            f"the result for {rows} inputs has shape {list(values.shape)}; expected [N]"
        )
    return values


def prepared(model: nn.Module, settings: Smoothing) -> Callable[[Tensor], Any]:
    """``model`` itself, or a copy with the options of ``settings``."""
    dtype = DTYPES[settings.dtype]
    if settings.fold_batch_norm:
        model = fold_batch_norm(model)
    if dtype != torch.float32:
        model = copy.deepcopy(model).to(dtype)
    if settings.channels_last:
        model = copy.deepcopy(model).to(memory_format=torch.channels_last)
    return torch.compile(model, dynamic=False) if settings.compile else model


def fold_batch_norm(model: nn.Module) -> nn.Module:
    """A copy in which ``norm(layer(x))`` is one layer, wherever the trace shows such a pair.

    Args:
        model: In evaluation mode; it must be traceable by ``torch.fx``.
    """
    try:
        graph = torch.fx.symbolic_trace(copy.deepcopy(model))
    except Exception as error:  # whatever the model's own code raises on a proxy
        raise ModelError(
            f"fold_batch_norm needs a model that torch.fx can trace ({error}); leave it off"
        ) from error
    modules = dict(graph.named_modules())
    uses = Counter(str(n.target) for n in graph.graph.nodes if n.op == "call_module")
    for node in list(graph.graph.nodes):
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, torch.fx.Node):
            continue
        norm, layer = modules[node.target], modules.get(str(source.target))
        fused = _fused(layer, norm)
        shared = uses[str(source.target)] > 1 or len(source.users) > 1
        if source.op != "call_module" or fused is None or shared:
            continue
        graph.set_submodule(str(source.target), fused)
        modules[str(source.target)] = fused
        node.replace_all_uses_with(source)
        graph.graph.erase_node(node)
    graph.recompile()
    graph.delete_all_unused_submodules()
    return graph


def _fused(layer: nn.Module | None, norm: nn.Module) -> nn.Module | None:
    if isinstance(norm, nn.modules.batchnorm._BatchNorm) and norm.running_mean is not None:
        if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return fuse_conv_bn_eval(layer, norm)
        if isinstance(layer, nn.Linear):
            return fuse_linear_bn_eval(layer, norm)
    return None


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        is_norm = isinstance(module, nn.modules.batchnorm._NormBase)
        if is_norm and (module.training or module.running_mean is None):
            raise ModelError(
                f"{name or 'the model'} normalises by statistics of the batch, so that noisy "
                "copies would influence one another; call model.eval() first"
            )


def _refuse_options(settings: Smoothing, what: str) -> None:
    used = [name for name in _OPTIONS if getattr(settings, name) not in (False, "float32")]
    if used:
        raise InputError(
            f"{', '.join(used)} cannot be applied to {what}, only to a torch.nn.Module; prepare "
            "the model yourself, and leave the option off"
        )
