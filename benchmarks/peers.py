"""Other packages that compute per-sample gradient norms, each used as its documentation says.

``benchmarks.measuring --methods-from benchmarks.peers`` measures them too. They are optional:
``prepare`` raises ``ModuleNotFoundError`` for one that is not installed.
"""

from __future__ import annotations

from importlib import import_module

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from gradood.benchmarking.methods import TOTAL, Call, Method, Norms
from gradood.benchmarking.workloads import bce


def backpack(model: nn.Module, autocast: bool) -> Call:
    """BackPACK's ``BatchL2Grad``: the norms are left on each parameter that it supports."""
    library = import_module("backpack")
    extension = import_module("backpack.extensions").BatchL2Grad()
    extended = library.extend(model)

    def call(x: Tensor) -> Norms:
        with library.backpack(extension):
            bce(extended(x)).backward()
        return _taken(model, "batch_l2")

    return call


def opacus(model: nn.Module, autocast: bool) -> Call:
    """Opacus's ghost norms: the first of the two backward passes of ghost clipping.

    It refuses evaluation mode and batch norm; so the model is in training mode except for batch
    norms, which keep their statistics and whose parameters are frozen, and so left out, and for
    what draws random numbers.
    """
    module = import_module("opacus.grad_sample.grad_sample_module_fast_gradient_clipping")
    model.train()
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            part.eval().requires_grad_(False)
        elif isinstance(part, _DropoutNd) or type(part).__name__ == "StochasticDepth":
            part.eval()
    wrapped = module.GradSampleModuleFastGradientClipping(
        model, loss_reduction="sum", strict=False, use_ghost_clipping=True
    )

    def call(x: Tensor) -> Norms:
        bce(wrapped(x)).backward()
        return {name: norm.square() for name, norm in _taken(model, "_norm_sample").items()}

    return call


def out_of_place(model: nn.Module) -> nn.Module:
    """Have no module overwrite its input, which hooks of the modules before it refuse."""
    for part in model.modules():
        if getattr(part, "inplace", False) is True:
            part.inplace = False
    return model


def grad_uncertainty(model: nn.Module, autocast: bool) -> Call:
    """pytorch-ood's GradUncertainty: one unchunked vmap; minus the sum over all parameters."""
    detector = import_module("pytorch_ood.detector").GradUncertainty(model)
    return lambda x: {TOTAL: -detector.predict(x)}


def grad_norm(model: nn.Module, autocast: bool) -> Call:
    """pytorch-ood's GradNorm: vmap in chunks of 32; minus the sum of absolute gradients."""
    detector = import_module("pytorch_ood.detector").GradNorm(model)
    return lambda x: {TOTAL: -detector.predict(x)}


def _taken(model: nn.Module, attribute: str) -> Norms:
    """Take a result off every parameter that has it, and the gradients that came with it."""
    norms = {}
    for name, parameter in model.named_parameters():
        value = getattr(parameter, attribute, None)
        if value is not None:
            norms[name] = value.detach()
            delattr(parameter, attribute)
        parameter.grad = None
    return norms


METHODS = {
    "BackPACK": Method(backpack, "backpack-for-pytorch", quick=True),
    "Opacus ghost": Method(opacus, "opacus"),
    "GradUncertainty": Method(grad_uncertainty, "pytorch-ood", "sum", slow=True),
    "GradNorm": Method(grad_norm, "pytorch-ood", "l1", slow=True),
}
