"""Models that are files: programs of ``torch.export`` and of TorchScript."""

from __future__ import annotations

import inspect
import warnings
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional

from gradood.errors import InputError, ModelError


def load_program(path: Path, trust: bool) -> nn.Module:
    """The model in a file of ``torch.export.save`` or ``torch.jit.save``.

    An exported program keeps its operators, and every rule applies. TorchScript runs where no
    Python looks: it serves scores of logits, not gradient norms.

    Args:
        path: The file.
        trust: Whether its author is trusted: PyTorch runs code that such files hold.
    """
    kind = _kind(path)
    if not trust:
        raise InputError(
            f"{path} is a program, and loading it runs what its author wrote; pass --trust if you "
            "know where it comes from, or give the architecture and --weights"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            if kind == "TorchScript":
                script: nn.Module = torch.jit.load(str(path), map_location="cpu")
                return script.eval()
            exported = torch.export.load(str(path))
    except Exception as error:
        raise InputError(f"cannot load the program {path}: {error}") from error
    program = _with_functions(_module(_any_batch(path, exported)))
    names = _keywords(exported)
    if not names:
        return _also_by_name(program, exported.graph_signature.user_inputs)
    return Keyword(program, names[0]) if len(names) == 1 else program


class Keyword(nn.Module):
    """A program whose only input has a name, as a function of that input."""

    def __init__(self, program: nn.Module, name: str) -> None:
        super().__init__()
        self.program, self.name = program, name
        self.training = False

    def forward(self, x: Tensor) -> Any:
        """What the program returns."""
        return self.program(**{self.name: x})


def _also_by_name(program: nn.Module, names: Sequence[str]) -> nn.Module:
    """The program, which takes what it was exported with in order by the arguments' names too."""

    def in_order(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if set(named) == set(names[len(args) :]):
            return (*args, *(named[name] for name in names[len(args) :])), {}
        return None

    program.register_forward_pre_hook(in_order, with_kwargs=True, prepend=True)
    return program


def _keywords(exported: torch.export.ExportedProgram) -> list[str]:
    """The names by which the program takes its inputs, as far as it does."""
    spec: Any = exported.call_spec.in_spec
    _, keywords = spec.children() if hasattr(spec, "children") else spec.children_specs
    return list(keywords.context or ())


def _kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} is no model ({error}); expected a file of torch.export.save or "
            "torch.jit.save. Weights go to --weights, and their architecture to --model"
        ) from error
    if any(name.startswith("models/") for name in names):
        return "exported"
    if any(name.startswith("code/") for name in names):
        return "TorchScript"
    raise InputError(
        f"{path} holds no program; if these are weights, give them as --weights and the "
        "architecture as --model"
    )


def _any_batch(path: Path, exported: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """Check that the program takes any number of samples."""
    nodes = {node.name: node for node in exported.graph.nodes if node.op == "placeholder"}
    for name in exported.graph_signature.user_inputs:
        value = nodes[name].meta.get("val") if name in nodes else None
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise ModelError(f"{path} takes an input that is no tensor [N, …]")
        if isinstance(value.shape[0], int):
            raise ModelError(
                f"{path} was exported for batches of {value.shape[0]} alone; export it with "
                'dynamic_shapes=({0: torch.export.Dim("batch")},)'
            )
    return exported


def _module(exported: torch.export.ExportedProgram) -> GraphModule:
    """The program's module, without guards where PyTorch allows it."""
    optional = "check_guards" in inspect.signature(exported.module).parameters
    return exported.module(check_guards=False) if optional else exported.module()


def _with_functions(graph: GraphModule) -> nn.Module:
    """Replace ATen operators by the functions that models call, so that rules know them."""
    for node in graph.graph.nodes:
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            continue
        function = _function(node.target)
        if function is _batch_norm and len(node.args) > 5 and node.args[5]:
            raise ModelError("the program was exported in training mode; call model.eval() before")
        if function is not None:
            node.target = function
    graph.recompile()
    for module in graph.modules():
        module.training = False  # a graph module refuses eval()
    return graph


def _function(operator: torch._ops.OpOverload) -> Callable[..., Any] | None:
    name = operator.overloadpacket.__name__
    if operator.namespace != "aten":
        return None
    if name in _FUNCTIONS:
        return _FUNCTIONS[name]
    # The same name has the same arguments, in the order of the operator's schema.
    return _NAMESAKES.get(name)


def _batch_norm(
    x: Tensor, weight: Any, bias: Any, mean: Any, var: Any, training: bool, momentum: float,
    eps: float, cudnn: bool,
) -> Tensor:  # fmt: skip
    return functional.batch_norm(x, mean, var, weight, bias, training, momentum, eps)


def _layer_norm(
    x: Tensor, shape: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: Any = 0
) -> Tensor:
    return functional.layer_norm(x, shape, weight, bias, eps)


def _group_norm(
    x: Tensor, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn: Any = 0
) -> Tensor:
    return functional.group_norm(x, groups, weight, bias, eps)


def _embedding(weight: Tensor, indices: Tensor, padding: int = -1, *_: Any) -> Tensor:
    return functional.embedding(indices, weight, None if padding < 0 else padding)


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "group_norm": _group_norm,
    "embedding": _embedding,
    "linear": functional.linear,
    "rms_norm": functional.rms_norm,
    "scaled_dot_product_attention": functional.scaled_dot_product_attention,
    "add_": Tensor.add_,
    "mul_": Tensor.mul_,
    "sub_": Tensor.sub_,
    "expand": Tensor.expand,
    "repeat": Tensor.repeat,
}
_NAMESAKES: dict[str, Callable[..., Any]] = {
    name: getattr(torch, name)
    for name in (
        *(f"conv{d}d" for d in (1, 2, 3)),
        *(f"conv_transpose{d}d" for d in (1, 2, 3)),
        *("add", "sub", "mul", "div", "matmul", "mm", "bmm", "addmm", "addcmul", "index_select"),
    )
}
