"""Every operator that a rule covers, in every form: equal to a loop over samples, no fallback."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradood
from tests.gradients.edge_models import Apply
from tests.gradients.oracle import assert_norms, randomise, reference_norms

ROWS, TOKENS, IMAGES = (5, 6), (4, 3, 6), (3, 5, 4, 2)
EXACT = {torch.float64: 1e-9, torch.float32: 2e-5}


def in_place(operator):
    """Change a copy of the batch, as a statement would."""

    def forward(x, *parameters):
        x = x * 1
        operator(x, *parameters)
        return x

    return forward


def divided(x, p):
    x /= p.exp()


def raised(x, p):
    x **= p


#: By name: the input's shape, the parameters' shapes, and the operator.
POINTWISE = {
    "add alpha": (TOKENS, [(6,)], lambda x, p: torch.add(x, p, alpha=-2.5)),
    "add alpha, reversed": (TOKENS, [(3, 1)], lambda x, p: torch.add(p, x, alpha=3)),
    "add twice": (TOKENS, [(6,), (3, 1)], lambda x, p, q: torch.add(p, q + x, alpha=2)),
    "sub alpha": (TOKENS, [(3, 6)], lambda x, p: torch.sub(x, p, alpha=0.5)),
    "subtract": (ROWS, [(1,)], lambda x, p: x.subtract(p)),
    "subtract from": (ROWS, [()], lambda x, p: torch.subtract(p, x, alpha=2)),
    "rsub": (ROWS, [(6,)], lambda x, p: torch.rsub(x, p, alpha=2)),
    "isub": (ROWS, [(6,)], in_place(lambda x, p: x.sub_(p, alpha=2))),
    "multiply": (TOKENS, [(3, 1)], lambda x, p: torch.multiply(p, x)),
    "multiply_": (TOKENS, [(3, 1)], in_place(lambda x, p: x.multiply_(p))),
    "divide": (ROWS, [(6,)], lambda x, p: torch.divide(x, p.exp())),
    "true_divide": (ROWS, [(6,)], lambda x, p: torch.true_divide(x, p.exp())),
    "division in place": (ROWS, [(6,)], in_place(divided)),
    "p / x": (TOKENS, [(6,)], lambda x, p: p / (x.square() + 1)),
    "p / x, scalar": (TOKENS, [()], lambda x, p: p / (x.square() + 1)),
    "pow of p": (ROWS, [(6,)], lambda x, p: x.square().add(1) ** p),
    "pow in place": (ROWS, [(6,)], in_place(lambda x, p: raised(x.abs_().add_(1), p))),
    "p to the power": (ROWS, [(6,)], lambda x, p: torch.pow(p.square() + 1, x)),
    "float_power": (ROWS, [(6,)], lambda x, p: torch.float_power(x.square() + 1, p).to(x)),
    "where": (TOKENS, [(3, 1), (6,)], lambda x, p, q: torch.where(x > 0, p, x * q)),
    "where twice": (TOKENS, [(6,), (3, 6)], lambda x, p, q: torch.where(x > 0, p, q)),
    "where method": (TOKENS, [(1,)], lambda x, p: x.where(x > 0, p)),
    "the same twice": (TOKENS, [(6,)], lambda x, p: torch.where(x > 0, p, p.neg())),
    "clamp": (TOKENS, [(6,), ()], lambda x, p, q: torch.clamp(x, min=p - 1, max=q + 1)),
    "clamp in place": (TOKENS, [(6,)], in_place(lambda x, p: x.clamp_(min=p))),
    "clip": (TOKENS, [(6,)], lambda x, p: x.clip(p, p + 1)),
    "clamp_min": (TOKENS, [(6,)], lambda x, p: torch.clamp_min(x, p)),
    "maximum": (TOKENS, [(3, 1)], lambda x, p: torch.maximum(p, x)),
    "minimum": (TOKENS, [(3, 1)], lambda x, p: torch.minimum(x, p)),
    "fmax": (TOKENS, [(3, 1)], lambda x, p: torch.fmax(x, p)),
    "max of two": (TOKENS, [(6,)], lambda x, p: torch.max(x, p)),
    "addcmul": (ROWS, [(6,), ()], lambda x, p, q: torch.addcmul(x, q, p * x, value=2)),
    "addcmul of three": (
        ROWS, [(6,), (1, 6), ()], lambda x, p, q, r: torch.addcmul(p, q, x * r, value=-1)
    ),
    "addcmul in place": (ROWS, [(6,)], in_place(lambda x, p: x.addcmul_(2 * x, p, value=3))),
    "addcdiv": (ROWS, [(6,), (6,)], lambda x, p, q: torch.addcdiv(x, p, q.exp(), value=0.5)),
    "lerp": (TOKENS, [(6,), (3, 1)], lambda x, p, q: torch.lerp(x, p, q)),
    "lerp by number": (TOKENS, [(6,)], lambda x, p: p.lerp(x, 0.3)),
    "lerp of one with itself": (TOKENS, [(6,)], lambda x, p: torch.lerp(p, x, p)),
    "hypot": (ROWS, [(6,)], lambda x, p: torch.hypot(x, p)),
    "atan2": (ROWS, [(6,)], lambda x, p: torch.atan2(p, x)),
    "logaddexp": (ROWS, [(6,)], lambda x, p: torch.logaddexp(p, x)),
    "xlogy": (ROWS, [(6,)], lambda x, p: torch.special.xlogy(p, x.square() + 1)),
    "fmod": (ROWS, [(6,)], lambda x, p: torch.fmod(x * 5, p.exp())),
    "masked_fill": (TOKENS, [()], lambda x, p: x.masked_fill(x > 0, p)),
    "masked_fill in place": (TOKENS, [()], in_place(lambda x, p: x.masked_fill_(x > 0, p))),
    "prelu": (IMAGES, [(5,)], lambda x, p: functional.prelu(x, p)),
    "prelu, one slope": (IMAGES, [(1,)], lambda x, p: torch.prelu(x, p)),
    "prelu of rows": (ROWS, [(6,)], lambda x, p: x.prelu(p)),
    "samples along another dimension": (
        TOKENS, [(3, 1, 6)], lambda x, p: torch.where(x.transpose(0, 1) > 0, p, 1).transpose(0, 1)
    ),
    "samples merged": (
        TOKENS, [(6,)], lambda x, p: torch.maximum(x.flatten(0, 1), p).unflatten(0, (-1, 3))
    ),
}  # fmt: skip

CONTRACTIONS = {
    "linear, bias of one": (TOKENS, [(4, 6), (1,)], functional.linear),
    "linear, scalar bias": (ROWS, [(4, 6), ()], functional.linear),
    "linear, bias of a row": (ROWS, [(4, 6), (1, 4)], functional.linear),
    "linear, bias by token": (
        (4, 3, 2, 6), [(4, 6), (2, 4)], lambda x, w, b: functional.linear(x, w) + b
    ),
    "linear to one": (TOKENS, [(6,), ()], lambda x, w, b: functional.linear(x, w, b)[..., None]),
    "addmm, bias of one": (ROWS, [(1,), (6, 4)], lambda x, b, w: torch.addmm(b, x, w)),
    "addmm, scalar": (ROWS, [(), (6, 4)], lambda x, b, w: torch.addmm(b, x, w)),
    "addmm, a row": (ROWS, [(1, 4), (6, 4)], lambda x, b, w: torch.addmm(b, x, w)),
    "addmm, beta and alpha": (
        ROWS, [(4,), (6, 4)], lambda x, b, w: torch.addmm(b, x, w, beta=-2, alpha=0.5)
    ),
    "addmm to a batch": (
        ROWS, [(6, 6)], lambda x, w: torch.addmm(x.cos(), x, w, beta=0.5, alpha=3)
    ),
    "addmm on the left": (ROWS, [(4, 1), (4, 6)], lambda x, b, w: torch.addmm(b, w, x.t()).t()),
    "addmv": (ROWS, [(6,), ()], lambda x, v, b: torch.addmv(b, x, v, beta=2, alpha=3)[:, None]),
    "mv": (ROWS, [(6,)], lambda x, v: torch.mv(x, v)[:, None]),
    "mv by method": (ROWS, [(6,)], lambda x, v: x.mv(v)[:, None]),
    "matmul of a vector": (TOKENS, [(6,)], lambda x, v: x @ v),
    "vector on the left": (TOKENS, [(3,)], lambda x, v: v @ x),
    "matrix on the left": (TOKENS, [(4, 3)], lambda x, w: w @ x),
    "matrix on the left, 4-D": ((4, 2, 3, 5), [(6, 3)], lambda x, w: torch.matmul(w, x)),
    "weights in batches": ((4, 2, 3, 5), [(2, 5, 6)], lambda x, w: x @ w),
    "weights in broadcast batches": ((4, 2, 3, 5), [(2, 1, 5, 6)], lambda x, w: x[:, None] @ w),
    "weights in batches on the left": ((4, 2, 3, 5), [(1, 2, 4, 3)], lambda x, w: w @ x),
    "a batch without heads": ((4, 3, 5), [(2, 5, 6)], lambda x, w: x[:, None] @ w),
    "rmatmul": (TOKENS, [(6, 2)], lambda x, w: w.__rmatmul__(x)),
    "mm on the left": (ROWS, [(4, 6)], lambda x, w: torch.mm(w, x.t()).t()),
    "bmm, samples inside": (TOKENS, [(3, 6, 2)], lambda x, w: x.transpose(0, 1).bmm(w)[..., :2]
        .transpose(0, 1)),
    "baddbmm": (TOKENS, [(3, 1, 2), (3, 6, 2)], lambda x, b, w: torch.baddbmm(
        b, x.transpose(0, 1), w, beta=0.5, alpha=2).transpose(0, 1)),
    "baddbmm, bias alone": (TOKENS, [(1, 1, 3)], lambda x, b: torch.baddbmm(
        b, x, x.transpose(1, 2), beta=2)),
    "addbmm": (TOKENS, [(2,), (3, 6, 2)], lambda x, b, w: torch.addbmm(
        b, x.transpose(0, 1), w, beta=0.5, alpha=2)),
    "outer": ((5,), [(6,)], lambda x, v: torch.outer(x, v)),
    "addr": ((5,), [(6,), (6,)], lambda x, v, b: torch.addr(b, x, v, beta=2, alpha=-1)),
    "inner": (TOKENS, [(2, 6)], lambda x, w: torch.inner(x, w)),
    "tensordot": (TOKENS, [(6, 2, 3)], lambda x, w: torch.tensordot(x, w, ([2, 1], [0, 2]))),
    "tensordot, one": (TOKENS, [(6, 2)], lambda x, w: torch.tensordot(x, w, 1)),
    "tensordot, left": (TOKENS, [(2, 3)], lambda x, w: torch.tensordot(w, x, ([1], [1]))
        .transpose(0, 1)),
    "einsum": (TOKENS, [(6, 4)], lambda x, w: torch.einsum("nti,io->nto", x, w)),
    "einsum by head": ((4, 3, 2, 5), [(2, 5, 6)],
        lambda x, w: torch.einsum("nthi,hio->nhto", x, w)),
    "einsum, implicit": (ROWS, [(6, 4)], lambda x, w: torch.einsum("ai,ib", x, w)),
    "einsum, ellipsis": ((4, 3, 2, 5), [(5, 6)], lambda x, w: torch.einsum("...i,io->...o", x, w)),
    "einsum, samples elsewhere": (TOKENS, [(4, 6)],
        lambda x, w: torch.einsum("tni,oi->not", x.transpose(0, 1), w)),
    "einsum, summed alone": (TOKENS, [(6, 2)], lambda x, w: torch.einsum("nti,oj->nto", x, w)),
    "einsum, by element": (TOKENS, [(3, 6)], lambda x, w: torch.einsum("nti,ti->nt", x, w)),
    "einsum, list": (TOKENS, [(6, 4)], lambda x, w: torch.einsum("nti,io->nto", [x, w])),
    "einsum of three": (TOKENS, [(6, 4), (4, 5)],
        lambda x, w, v: torch.einsum("nti,io,op->ntp", x, w, v)),
    "einsum of three, x twice": (TOKENS, [(4, 6, 6)],
        lambda x, w: torch.einsum("nti,oij,ntj->nto", x, w, x)),
    "multi_dot": (ROWS, [(6, 4), (4, 5)], lambda x, w, v: torch.linalg.multi_dot([x, w, v])),
    "bilinear": (TOKENS, [(4, 6, 6), (4,)], lambda x, w, b: functional.bilinear(x, x.cos(), w, b)),
    "bilinear, no bias": (ROWS, [(4, 6, 6)], lambda x, w: functional.bilinear(x, x.cos(), w)),
    "used twice": (TOKENS, [(3, 3)], lambda x, w: w @ torch.tanh(w @ x)),
    "left and right": (TOKENS, [(3, 3)], lambda x, w: w @ torch.tanh(x[..., :3] @ w)),
    "T5's bias": (TOKENS, [(1, 3, 3)],
        lambda x, b: (x @ x.transpose(1, 2) + torch.where(torch.eye(3) > 0, b, b * 2)) @ x),
}  # fmt: skip

COPIES = {
    "item assignment": (TOKENS, [(6,)], in_place(lambda x, p: x.__setitem__((slice(None), 0), p))),
    "item assignment, mask": (TOKENS, [()], in_place(lambda x, p: x.__setitem__(x > 0, p))),
    "item of a new tensor": (TOKENS, [(6,), (2, 6)], lambda x, p, q: fill(x, p, q)),
    "tile": (TOKENS, [(1, 3, 2)], lambda x, p: x + torch.tile(p, (len(x), 1, 3))),
    "tile, fewer dimensions": (TOKENS, [(1, 3, 2)], lambda x, p: x + p.tile(len(x), 1, 3)),
    "repeat": (TOKENS, [(3, 1)], lambda x, p: x + p.repeat(len(x), 1, 6)),
    "repeat by tuple": (TOKENS, [(3, 1)], lambda x, p: x + p.repeat((len(x), 1, 6))),
    "repeat over heads": (
        TOKENS, [(2, 3, 6)],
        lambda x, p: (x.repeat_interleave(2, 0) * p.repeat(len(x), 1, 1)).unflatten(0, (-1, 2)),
    ),
    "repeat_interleave": (
        TOKENS, [(1, 3, 6)], lambda x, p: x * p.repeat_interleave(len(x), 0)
    ),
    "repeat_interleave over heads": (
        TOKENS, [(1, 3, 6)],
        lambda x, p: (x.repeat_interleave(2, 0) * p.repeat_interleave(2 * len(x), 0))
        .unflatten(0, (-1, 2)),
    ),
    "stack": (TOKENS, [(6,)], lambda x, p: torch.stack([x[:, 0], p.expand(len(x), -1)], 1)),
    "cat": (TOKENS, [(1, 1, 6)], lambda x, p: torch.cat([p.expand(len(x), -1, -1), x], 1)),
    "two indices": (TOKENS, [(3, 4)], lambda x, p: x[..., :4] * p[x.argmax(1)[:, :1] % 3,
        x.argmin(1)[:, 1:] % 4][..., :1, None]),
    "index along the second dimension": (TOKENS, [(2, 7)], lambda x, p: p[:, x.argmax(2)]
        .transpose(0, 1).flatten(1) * x.mean((1, 2))[:, None]),
    "gather": (TOKENS, [(1, 3, 7)], lambda x, p: x * p.expand(len(x), -1, -1).gather(
        2, x.argsort(2))),
    "take": (ROWS, [(3, 7)], lambda x, p: x * p.take(x.argsort(1))),
    "index_select of columns": (TOKENS, [(2, 7)], lambda x, p: p.index_select(
        1, x[..., 0].argmax(1)).t() * x[:, 0, :1]),
    "masked_scatter": (TOKENS, [(100,)], lambda x, p: x.masked_scatter(
        torch.ones_like(x) > 0, p[:x[0].numel()].repeat(len(x)))),
    "index_put": (TOKENS, [(6,)], lambda x, p: torch.index_put(
        x, (torch.arange(len(x)), torch.tensor(1)), p)),
    "index_copy": (TOKENS, [(1, 2, 6)], lambda x, p: x.index_copy(
        1, torch.tensor([2, 0]), p.expand(len(x), -1, -1))),
}  # fmt: skip


def fill(x, p, q):
    y = torch.zeros_like(x)
    y[:, 0] = p
    y[:, 1:] = q
    y[:, 1, 2:4] = x[:, 1, 2:4]
    return torch.tanh(y) * x


DISTANCES = {
    "cdist": (TOKENS, [(4, 6)], torch.cdist),
    "cdist of rows": (ROWS, [(4, 6)], torch.cdist),
    "cdist of many rows": (ROWS, [(30, 6)], torch.cdist),
    "cdist, a distance of zero": (
        TOKENS, [(4, 6)],
        lambda x, p: torch.cdist(torch.cat([x, p.detach().expand(len(x), 4, 6)], 1), p),
    ),
    "cdist, samples along another dimension": (
        TOKENS, [(4, 6)], lambda x, p: torch.cdist(x.transpose(0, 1), p).transpose(0, 1)
    ),
    "cdist, samples merged": (
        TOKENS, [(4, 6)], lambda x, p: torch.cdist(x.flatten(0, 1), p).unflatten(0, (-1, 3))
    ),
    "cdist twice": (
        TOKENS, [(6, 6)], lambda x, p: torch.cdist(torch.tanh(torch.cdist(x, p)), p)
    ),
}  # fmt: skip

#: Operators without a rule of their own.
ALONE = {
    "cdist of another norm": (TOKENS, [(4, 6)], lambda x, p: torch.cdist(x, p, 3.0)),
    "cosine_similarity": (
        TOKENS, [(3, 6)], lambda x, p: functional.cosine_similarity(x, p, dim=-1)
    ),
    "cosine_similarity of rows": (
        ROWS, [(4, 6)], lambda x, p: functional.cosine_similarity(x[:, None], p, dim=-1)
    ),
    "pairwise_distance": (ROWS, [(6,)], lambda x, p: functional.pairwise_distance(x, p)[:, None]),
    "cross": ((4, 3), [(1, 3)], lambda x, p: torch.linalg.cross(x, p)),
    "kron": (ROWS, [(1, 2)], lambda x, p: torch.kron(x, p)),
    "samples along another dimension, cdist": (
        TOKENS, [(3, 4, 6)], lambda x, p: torch.cdist(x.transpose(0, 1), p).transpose(0, 1)
    ),
    "group norm of merged images": (
        (2, 3, 4, 6), [(4,), (4,)],
        lambda x, w, b: functional.group_norm(x.flatten(0, 1), 2, w, b).unflatten(0, (-1, 3)),
    ),
    "an operator used twice": (
        TOKENS, [(6, 6)], lambda x, p: torch.cdist(torch.tanh(torch.cdist(x, p, 3.0)), p, 3.0)
    ),
}  # fmt: skip

#: Operators that read no more of a parameter than its shape or its type.
LIKE = {
    "to": (ROWS, [(6,)], lambda x, p: x.round().to(p) + p),
    "type_as": (ROWS, [(6,)], lambda x, p: x.type_as(p) * p),
    "new_zeros": (ROWS, [(6,)], lambda x, p: p.new_zeros(len(x), 6) + p + x),
    "zeros_like": (ROWS, [(1, 6)], lambda x, p: torch.zeros_like(p).expand(len(x), -1) + p * x),
    "expand_as": (ROWS, [(5, 6)], lambda x, p: x[:, None].expand_as(p.expand(len(x), -1, -1)) + p),
}

#: Where values alone do not tell which copies belong to which sample.
UNCLEAR = {"masked_scatter"}

TABLE = {**POINTWISE, **CONTRACTIONS, **COPIES, **DISTANCES, **ALONE, **LIKE}


def build(name):
    """A layer before the operator, and layers after it, so that d and x are generic."""
    shape, parameters, operator = TABLE[name]
    torch.manual_seed(0)
    named = {f"p{i}": torch.rand(size) + 0.3 for i, size in enumerate(parameters)}

    def forward(m, x):
        x = torch.tanh(m.before(x)) if x.dim() > 1 else x
        y = operator(x, *(getattr(m, name) for name in named))
        return m.after(torch.tanh(y.flatten(1)))

    x = torch.randn(shape)
    before = nn.Linear(shape[-1], shape[-1]) if len(shape) > 1 else nn.Identity()
    trial = operator(x, *named.values())
    model = Apply(
        forward, **named, before=before, after=nn.Linear(trial.flatten(1).shape[1], 3)
    )  # fmt: skip
    return randomise(model).eval(), x


@pytest.mark.parametrize("dtype", EXACT, ids=str)
@pytest.mark.parametrize("name", TABLE)
def test_norms_equal_a_loop_over_samples(name, dtype):
    model, x = build(name)
    model, x = model.to(dtype), x.to(dtype)
    expected = reference_norms(model, x)
    assert_norms(gradood.gradient_norms(model, x), expected, EXACT[dtype])
    if dtype == torch.float64:
        explanation = gradood.explain(model, x)
        assert name in UNCLEAR or not explanation.fallbacks, str(explanation)
        assert_norms(gradood.gradient_grams(model, x).norms(), expected, 1e-9)
        lone = gradood.gradient_norms(model, x[:1])
        assert_norms(lone, expected[:1], 1e-9)


@pytest.mark.parametrize("name", DISTANCES)
def test_distances_have_a_rule_of_their_own(name):
    rows = gradood.explain(*build(name))
    assert {row.rule for row in rows if row.parameter == "p0"} == {"distance"}
