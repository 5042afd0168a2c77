"""``torch.func.vmap`` over an operator equals a loop of calls, whichever backend serves it."""

import pytest
import torch
from torch.func import vmap

from gradood import ops
from gradood.errors import InputError
from gradood.ops.dispatch import load

NAMES = [
    "bias (3, 17, 41)",
    "channel sums (3, 17, 41)",
    "linear (3, 17, 41)",
    "linear (401, 41, 3)",
    "conv grouped",
    "conv depthwise",
    "batch_norm (3, 17, 41)",
    "batch_norm backward (3, 17, 41)",
    "layer_norm (3, 17, 41)",
    "layer_norm backward (3, 17, 41)",
    "group_norm 8 groups",
    "embedding (17, 41, 5, 0)",
]
MAPPED = 3


@pytest.fixture(params=["torch", "cpp", "triton"])
def backend(request, monkeypatch):
    monkeypatch.setenv("GRADOOD_BACKEND", request.param)
    return request.param


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def mapped(tensor):
    """Another tensor for every mapped call, along the last dimension."""
    copies = [tensor * (i + 1) if tensor.is_floating_point() else tensor for i in range(MAPPED)]
    return torch.stack(copies, -1)


@pytest.mark.parametrize("name", NAMES)
def test_equals_a_loop(cases, name, backend):
    op, arguments = cases[name]
    several = 1 if op in ("bias_sqnorm", "channel_sums") else 2
    first, rest = [mapped(t) for t in arguments[:several]], arguments[several:]
    function = getattr(ops, op)
    with ops.tracing() as served:
        got = as_tuple(vmap(lambda *t: function(*t, *rest), in_dims=-1)(*first))
    left = op not in load(backend)[0].OPERATORS  # to PyTorch
    assert [call.backend for call in served] == ["torch" if left else backend]  # one call for all
    loop = [as_tuple(function(*(t[..., i] for t in first), *rest)) for i in range(MAPPED)]
    for i, results in enumerate(loop):
        for ours, wanted in zip(got, results, strict=True):
            torch.testing.assert_close(ours[i], wanted, rtol=1e-5, atol=1e-6)


def test_one_tensor_may_be_common_to_all(backend):
    x, d = torch.randn(4, 2, 5, 7), torch.randn(2, 5, 3)
    weight, bias = vmap(lambda a: ops.linear_sqnorm(a, d, False))(x)
    assert weight.shape == (4, 2) and bias.shape == (4, 0)
    wanted = torch.stack([ops.linear_sqnorm(a, d, False)[0] for a in x])
    torch.testing.assert_close(weight, wanted, rtol=1e-5, atol=0)


def test_two_levels(backend):
    d = torch.randn(3, 4, 2, 5, 7)
    got = vmap(vmap(ops.bias_sqnorm))(d)
    wanted = ops.bias_sqnorm(d.flatten(0, 2)).view(3, 4, 2)
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=0)


def test_statistics_may_not_be_mapped(backend):
    x, mean = torch.randn(2, 5, 7), torch.randn(4, 5)
    with pytest.raises(InputError, match="vmap over batch_norm_sqnorm: only its first 2"):
        vmap(lambda m: ops.batch_norm_sqnorm(x, x, m, m, 1e-5))(mean)
