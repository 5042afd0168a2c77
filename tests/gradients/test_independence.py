"""What the probe must see: gradients and values that reach other samples, at any scale."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

import gradood
from gradood.errors import ModelError
from tests.gradients.edge_models import Apply
from tests.gradients.oracle import assert_norms, randomise, reference_norms


def layer(forward, dtype=torch.float64, **more):
    torch.manual_seed(0)
    model = Apply(forward, l=nn.Linear(3, 4), **more)
    return randomise(model).eval().to(dtype), torch.randn(5, 3, dtype=dtype)


#: Values are independent, but the gradient of a sample's logits lies in other samples' places.
ELSEWHERE = {
    "first row of a batch": lambda m, x: m.l(x) + m.b.expand(len(x), -1)[:1],
    "last row of a batch": lambda m, x: m.l(x) + m.b.expand(len(x), -1)[-1],
    "mean of equal rows": lambda m, x: m.l(x) + m.b.expand(len(x), -1).mean(0),
    "largest of equal rows": lambda m, x: m.l(x) + m.b.expand(len(x), -1).amax(0),
    "equal rows, rolled": lambda m, x: m.l(x) + m.b.repeat(len(x), 1).roll(1, 0),
    "embedded positions of the first": lambda m, x: (
        m.l(x) + m.table(torch.arange(4).expand(len(x), -1))[0].sum(0)
    ),
    "a millionth": lambda m, x: m.l(x) + 1e-6 * m.b.expand(len(x), -1)[:1],
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_gradient_at_other_samples_places_is_seen(name):
    model, x = layer(ELSEWHERE[name], b=torch.randn(1, 4), table=nn.Embedding(4, 4))
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)


#: Samples that influence one another, however little; the smallest change that a norm would show.
MIXED = {
    "largest of a batch": lambda m, x: m.l(x) + 1e-7 * m.k(x).max(),
    "largest of the input": lambda m, x: m.l(x * (1 + 1e-7 * x.max())),
    "largest of the input, a constant": lambda m, x: m.l(x / x.detach().abs().max()),
    "smallest of the input, a constant": lambda m, x: m.l(x - x.detach().min()),
    "mean behind one huge logit": lambda m, x: torch.cat(
        [1e9 * m.l(x)[:, :1], m.l(x)[:, 1:] + x.mean()], 1
    ),
    "a constant of the first": lambda m, x: m.l(x - x[:1].detach()),
    "a constant of the last": lambda m, x: m.l(x - x[-1:].detach()),
    "the next sample's constant": lambda m, x: m.l(x) + x.detach().roll(1, 0)[:, :1],
    "rounding to the batch's range": lambda m, x: m.l((x / x.abs().max() * 127).round()),
    "a share of the batch's size": lambda m, x: m.l(x) * (1 + 1e-6 * len(x)),
    "the place in the batch": lambda m, x: m.l(x) + 1e-6 * torch.arange(len(x))[:, None],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("name", MIXED)
def test_samples_that_mix_are_refused_or_do_not_show(name, dtype):
    model, x = layer(MIXED[name], dtype, k=nn.Linear(3, 4))
    for order in ([0, 1, 2, 3, 4], [1, 2, 0, 4, 3], [2, 0, 1, 3, 4]):
        try:
            norms = gradood.gradient_norms(model, x[order])
        except ModelError as error:
            assert "depend on" in str(error) or "influence one another" in str(error)
        else:  # the difference drowns in rounding
            tolerance = 1e-9 if dtype == torch.float64 else 1e-5
            assert_norms(norms, reference_norms(model, x[order]), tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("norm", ["nuc", 2, "fro"])
def test_a_library_whose_last_bit_depends_on_memory_is_no_influence(norm, dtype):
    model, _ = layer(lambda m, x: m.l(x[:, :, 0]) + torch.linalg.norm(x, norm, (1, 2))[:, None])
    x = torch.randn(5, 3, 4).to(dtype)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-5
    norms = gradood.gradient_norms(model.to(dtype), x)
    assert_norms(norms, reference_norms(model, x), tolerance)


@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e-8])
def test_mixing_in_float64_is_refused_at_any_scale(scale):
    model, x = layer(lambda m, x: m.l(x) + scale * x.detach().mean())
    with pytest.raises(ModelError, match="depend on"):
        gradood.gradient_norms(model, x)


def columns():
    """Categories of columns with tables of other sizes, and a number."""
    model = Apply(
        lambda m, x: m.l(m.a(x[:, 0].long()) + m.b(x[:, 1].long()) + x[:, 2:].to(m.l.weight.dtype)),
        a=nn.Embedding(50, 4), b=nn.Embedding(3, 4), l=nn.Linear(4, 2),
    )  # fmt: skip
    return model, torch.tensor([[40, 1, 5], [3, 2, 9], [17, 0, 1], [49, 2, 0]])


def float_columns():
    model, x = columns()
    return model, x.double()


def packed_text():
    """Ids, types and mask in one tensor, as the documentation asks for."""
    model = Apply(
        lambda m, x: m.l(
            ((m.words(x[:, 0]) + m.types(x[:, 1])) * x[:, 2, :, None]).sum(1)
            / x[:, 2].sum(1, keepdim=True)
        ),
        words=nn.Embedding(40, 4), types=nn.Embedding(2, 4), l=nn.Linear(4, 3),
    )  # fmt: skip
    words = torch.randint(1, 40, (4, 6))
    mask = (torch.arange(6) < torch.tensor([[6], [4], [5], [2]])).long()
    return model, torch.stack([words * mask, torch.randint(0, 2, (4, 6)) * mask, mask], 1)


def logarithm():
    model = Apply(lambda m, x: m.l(m.p((x - 1).log())), p=nn.PReLU(), l=nn.Linear(3, 2))
    return model, torch.rand(4, 3).double() * 0.1 + 1.2


def probabilities():
    """An operator that checks its input."""

    def forward(m, x):
        entropy = functional.binary_cross_entropy(x, x, reduction="none")
        return m.l(x + entropy)

    return Apply(forward, l=nn.Linear(3, 2)), torch.rand(4, 3).double()


def root_of_a_matrix():
    def forward(m, x):
        return m.l(torch.linalg.cholesky(x).flatten(1))

    a = torch.randn(4, 3, 3).double()
    return Apply(forward, l=nn.Linear(9, 2)), a @ a.mT + torch.eye(3).double()


def as_many_ends_each():
    """The hidden state at the last token of an example, by a mask, as BART and T5 take it."""

    def forward(m, x):
        ends = x == 2
        if len(ends.sum(1).unique()) > 1:
            raise ValueError("All examples must have the same number of <eos> tokens.")
        y = torch.tanh(m.a(m.words(x)))
        return m.l(y[ends].view(len(x), -1, 4)[:, -1])

    model = Apply(forward, words=nn.Embedding(9, 4), a=nn.Linear(4, 4), l=nn.Linear(4, 3))
    x = torch.randint(3, 9, (4, 6))
    for row, ends in enumerate(((1, 4), (2, 5), (3, 5), (0, 2))):
        x[row, list(ends)] = 2
    return model, x


def padded_encoder():
    layers = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    encoder = nn.TransformerEncoder(layers, 1)

    def forward(m, x):
        return m.l(m.encoder(m.words(x), src_key_padding_mask=x == 0).mean(1))

    model = Apply(forward, words=nn.Embedding(20, 8), encoder=encoder, l=nn.Linear(8, 3))
    x = torch.randint(1, 20, (4, 6))
    x[1, 4:] = 0
    x[2, 3:] = 0
    return model, x


DOMAINS = (
    columns, float_columns, packed_text, logarithm, probabilities, root_of_a_matrix,
    as_many_ends_each, padded_encoder,
)  # fmt: skip


@pytest.mark.parametrize("make", DOMAINS, ids=lambda make: make.__name__)
@pytest.mark.parametrize("rows", [1, 2, 4])
@pytest.mark.parametrize("method", ["auto", "loop"])
def test_a_model_is_probed_within_its_domain(make, rows, method):
    torch.manual_seed(0)
    model, x = make()
    model = randomise(model).eval().double()
    norms = gradood.gradient_norms(model, x[:rows], method=method)
    assert_norms(norms, reference_norms(model, x[:rows]), 1e-9)
    # What was learnt from few samples holds for others.
    norms = gradood.gradient_norms(model, x, method=method)
    assert_norms(norms, reference_norms(model, x), 1e-9)


@pytest.mark.parametrize("make", [columns, packed_text, as_many_ends_each, padded_encoder])
def test_models_with_a_domain_need_no_fallback(make):
    model, x = make()
    assert not gradood.explain(randomise(model).eval().double(), x).fallbacks


def test_a_mask_that_picks_unevenly_is_seen():
    def forward(m, x):
        y = torch.zeros(*x.shape[:2], 4, dtype=x.dtype)
        mask = x[..., 0] > 0
        y[mask] = torch.tanh(m.l(x[mask]))
        return m.out(y.sum(1))

    torch.manual_seed(0)
    model = randomise(Apply(forward, l=nn.Linear(3, 4), out=nn.Linear(4, 2))).eval().double()
    x = torch.randn(6, 5, 3).double()
    x[..., 0] = 1
    x[:, 0, 0] = -1  # as many of every sample
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)
    assert not gradood.explain(model, x).fallbacks
    x[4, 1, 0], x[5, 0, 0] = -1, 1
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)


def longest_first(m, x):
    shift = int((x != 0).sum(1).argsort(stable=True)[-1]) + 1
    return m.out(torch.tanh(m.l(x.roll(shift, 0))).roll(-shift, 0))


def as_many_as_are_long(m, x):
    shift = int((x != 0).sum(1).max()) * 0 + int((x[:, 0] > 0).sum())
    return m.out(torch.tanh(m.l(x.roll(shift, 0))).roll(-shift, 0))


@pytest.mark.parametrize("forward", [longest_first, as_many_as_are_long])
def test_numbers_that_the_batch_decides_are_seen_to_differ(forward):
    torch.manual_seed(0)
    model = Apply(forward, l=nn.Linear(3, 4), out=nn.Linear(4, 2))
    model, x = randomise(model).eval().double(), torch.rand(6, 3).double() + 0.1
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)
    x[4:, 2] = 0
    x[5, 0] = -1
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)


class Cached(nn.Module):
    """Keeps what it makes of a parameter in evaluation mode, in one of several ways."""

    def __init__(self, way):
        super().__init__()
        self.l, self.w, self.way = nn.Linear(3, 4), nn.Parameter(torch.randn(4)), way
        if way == "dictionary":
            self.cache = {}
        elif way in ("attribute", "list"):
            self.cache = None if way == "attribute" else []

    def kept(self):
        if self.way == "dictionary":
            if "w" not in self.cache:
                self.cache["w"] = self.w.exp()
            return self.cache["w"]
        if self.way == "list":
            if not self.cache:
                self.cache.append(self.w.exp())
            return self.cache[0]
        if self.way == "attribute":
            if self.cache is None:
                self.cache = self.w.exp()
            return self.cache
        if not hasattr(self, "cache"):
            self.cache = self.w.exp()
        return self.cache

    def forward(self, x):
        return self.l(x) * self.kept()


@pytest.mark.parametrize("way", ["dictionary", "list", "attribute", "no attribute"])
@pytest.mark.parametrize("gradients", [False, True], ids=["no_grad", "gradients"])
@pytest.mark.parametrize("method", ["auto", "vmap", "loop"])
def test_what_an_evaluation_leaves_behind_is_made_again(way, gradients, method):
    torch.manual_seed(0)
    x = torch.randn(5, 3).double()
    for planned in (False, True):
        model = Cached(way).eval().double()
        if planned:
            gradood.gradient_norms(model, x, method=method)
        with torch.set_grad_enabled(gradients):
            model(x)
        kept = model.kept()
        norms = gradood.gradient_norms(model, x, method=method)
        other = Cached(way).eval().double()
        other.load_state_dict(model.state_dict())
        assert_norms(norms, reference_norms(other, x), 1e-9)
        assert model.kept() is kept


def test_constants_of_a_module_are_left_alone():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.l, self.scale = nn.Linear(3, 4), torch.full((4,), 2.0, dtype=torch.float64)
            self.tables = {"shift": torch.ones(4, dtype=torch.float64)}

        def forward(self, x):
            return self.l(x) * self.scale + self.tables["shift"]

    model = Scaled().eval().double()
    x, scale = torch.randn(5, 3).double(), model.scale
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)
    assert model.scale is scale and set(model.tables) == {"shift"}


def test_a_model_for_one_size_of_batch_is_an_error_that_says_so():
    model, x = layer(lambda m, x: m.l(x.view(5, 3)))
    with pytest.raises(ModelError, match="batches of any size"):
        gradood.gradient_norms(model, x)


def test_a_parameter_without_elements_has_norm_zero():
    model, x = layer(lambda m, x: m.l(x) + m.none.sum(), none=torch.empty(0))
    assert gradood.gradient_norms(model, x).values[:, 0].eq(0).all()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of initialising nothing
        soft = nn.AdaptiveLogSoftmaxWithLoss(8, 12, [4, 8])
    model = Apply(lambda m, x: m.soft.log_prob(m.l(x)), l=nn.Linear(3, 8), soft=soft)
    model = randomise(model).eval().double()
    assert_norms(gradood.gradient_norms(model, x), reference_norms(model, x), 1e-9)
