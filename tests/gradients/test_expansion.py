"""Composite functions run under a mode: none for ever, and all as they do without one."""

import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradood
from gradood.gradients.capture import OperatorMode
from tests.gradients.edge_models import Apply
from tests.gradients.oracle import assert_norms, reference_norms

torch.manual_seed(0)
_ROWS, _SQUARE, _WEIGHT = torch.rand(4, 3), torch.rand(3, 3) + 3 * torch.eye(3), torch.rand(5, 3)
_LINE, _IMAGE, _VOLUME = torch.rand(2, 4, 8), torch.rand(2, 4, 6, 6), torch.rand(2, 4, 4, 4, 4)
_INDEX, _SIGNS = torch.tensor([0, 2, 1, 0]), torch.tensor([1.0, -1.0, 1.0, -1.0])
#: Tried one after the other until a function takes one.
ARGUMENTS = [
    (_ROWS,),
    (_SQUARE,),
    (_LINE,),
    (_IMAGE,),
    (_ROWS, _ROWS),
    (_ROWS, _INDEX),
    (_ROWS[:, 0], _SIGNS),
    (_ROWS, _WEIGHT),
    (_ROWS, 2),
    (_LINE, 2),
    (_IMAGE, 2),
    (_VOLUME, 2),
    (_IMAGE, (3, 3)),
    (_IMAGE, 2, 2),
    (_LINE, 2, 2),
    (_VOLUME, 2, 2),
    (_ROWS, _ROWS, _ROWS),
    (_ROWS, (3,)),
    (_ROWS, _ROWS, _SIGNS),
    (_ROWS[:, 0], _ROWS[:, 1], _SIGNS),
    (_ROWS, _ROWS, _ROWS.exp()),
    (_INDEX, 4),
    (_INDEX, _WEIGHT),
    (_INDEX[None], _WEIGHT),
    ("ij,ij->i", _ROWS, _ROWS),
    (_LINE, _LINE.transpose(1, 2)),
    (_SQUARE, _ROWS.t()),
    (_IMAGE, 0.5),
    (_IMAGE, (3, 3), 0.5),
    (_IMAGE, 4, 0.01),
    (torch.rand(4, 2, 3), [4, 3, 5, 5]),
    (_IMAGE, torch.rand(2, 5, 5, 2)),
    (_ROWS, _ROWS.mean(0), _ROWS.var(0)),
    (_ROWS[:, :2], _ROWS[:, :2], _WEIGHT.new_ones(5, 2, 2)),
    (_IMAGE, torch.rand(6, 4, 3, 3)),
    (_LINE, torch.rand(6, 4, 3)),
    (_VOLUME, torch.rand(6, 4, 2, 2, 2)),
    ([_ROWS, _SQUARE],),
    (_LINE, [4], [2]),
    (torch.rand(2, 8, 5), (4, 4), 2),
    (*torch.linalg.lu_factor(_SQUARE),),
    (_ROWS, torch.tensor([0.5, 0.5])),
    (_LINE, _LINE, _LINE),
    (_LINE.log_softmax(-1).permute(2, 0, 1), torch.ones(2, 3, dtype=torch.int64), (8, 8), (3, 3)),
    (_IMAGE, _IMAGE.long() * 0, 2),
    (_LINE, torch.arange(0, 8, 2).expand(2, 4, 4), 2),
]


class Follow(OperatorMode):
    """Let everything through."""

    def visit(self, position, function, args, kwargs):
        return function(*args, **kwargs)


def functions():
    """Every public Python function of the two modules, by name."""
    for module in (torch.functional, functional):
        for name, value in list(vars(module).items()):
            own = getattr(value, "__module__", None) in (module.__name__, "torch._jit_internal")
            if isinstance(value, types.FunctionType) and own and not name.startswith("_"):
                yield f"{module.__name__}.{name}", value


def outcome(function, arguments, mode, options):
    torch.manual_seed(0)
    given = [a.clone() if isinstance(a, torch.Tensor) else a for a in arguments]
    try:
        with warnings.catch_warnings(), mode or torch.enable_grad():
            warnings.simplefilter("ignore")
            return function(*given, **options)
    except RecursionError:
        raise
    except Exception:
        return None


def same_under_a_mode(function, arguments, **options):
    """Whether the arguments mean something to the function; if so, it gives the same."""
    expected = outcome(function, arguments, None, options)
    found = outcome(function, arguments, Follow(), options)
    torch.testing.assert_close(found, expected, equal_nan=True)
    return expected is not None


#: No operators, or not for tensors of these kinds.
ELSEWHERE = {
    "torch.functional.boolean_dispatch", "torch.functional.overload",
    "torch.functional.broadcast_shapes",
    "torch.nn.functional.boolean_dispatch", "torch.nn.functional.assert_int_or_pair",
    "torch.nn.functional.linear_cross_entropy", "torch.nn.functional.scaled_grouped_mm",
    "torch.nn.functional.scaled_mm", "torch.functional.stft", "torch.nn.functional.fold",
    "torch.nn.functional.max_unpool1d", "torch.nn.functional.multi_head_attention_forward",
    "torch.nn.functional.multilabel_margin_loss",
}  # fmt: skip


def test_every_composite_ends_and_does_the_same():
    missing = {
        name
        for name, function in functions()
        if not any(same_under_a_mode(function, arguments) for arguments in ARGUMENTS)
    }
    assert missing <= ELSEWHERE, missing


OPTIONS = [
    (torch.unique, (_INDEX,), {"return_inverse": True, "return_counts": True}),
    (torch.unique, (_INDEX,), {"return_counts": True}),
    (torch.unique_consecutive, (_INDEX,), {"return_inverse": True}),
    (torch.lu, (_SQUARE,), {"get_infos": True}),
    (torch.norm, (_ROWS,), {"p": "nuc"}),
    (torch.norm, (_ROWS,), {"p": 1, "dim": 1, "keepdim": True}),
    (torch.meshgrid, (_INDEX, _INDEX), {"indexing": "ij"}),
    (torch.stft, (_ROWS.flatten(), 4), {"return_complex": True, "window": torch.ones(4)}),
    (functional.max_pool1d, (_LINE, 2), {"return_indices": True}),
    (functional.max_pool2d, (_IMAGE, 2), {"return_indices": True}),
    (functional.adaptive_max_pool2d, (_IMAGE, 2), {"return_indices": True}),
    (functional.fractional_max_pool2d, (_IMAGE, 2, 3), {"return_indices": True}),
    (functional.max_unpool1d, (_LINE[:, :, :2], _INDEX[:2].expand(2, 4, 2), 2, 2), {}),
    (functional.multilabel_margin_loss, (_ROWS, _INDEX[:3].expand(4, 3)), {}),
    (functional.fold, (torch.rand(2, 8, 9), (4, 4), 2), {}),
    (torch.block_diag, (_ROWS, _SQUARE), {}),
    (torch.tensordot, (_ROWS, _SQUARE), {"dims": 1}),
]  # fmt: skip


@pytest.mark.parametrize(
    "function, arguments, options", OPTIONS, ids=lambda value: getattr(value, "__name__", "")
)
def test_options_that_choose_another_function(function, arguments, options):
    assert same_under_a_mode(function, arguments, **options)


def test_a_composite_in_the_forward_pass_of_a_model():
    def forward(m, x):
        rows, columns = torch.meshgrid(torch.arange(3.0), torch.arange(2.0), indexing="ij")
        grid = (rows + columns).flatten().to(x)
        pooled, places = functional.max_pool1d(m.a(x + grid), 2, return_indices=True)
        return m.out(pooled) + torch.unique(columns).sum() * torch.norm(m.a.weight)

    model = Apply(forward, a=nn.Linear(6, 8), out=nn.Linear(4, 3)).double().eval()
    x = torch.randn(4, 6, dtype=torch.float64)
    model.a.requires_grad_()
    norms = gradood.gradient_norms(model, x)
    assert_norms(norms, reference_norms(model, x), 1e-9)
