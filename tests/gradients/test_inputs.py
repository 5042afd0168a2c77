"""Batches of several tensors: tuples, mappings and nestings, through norms and detectors."""

import copy
import gc
import weakref
from collections import UserDict, namedtuple

import pytest
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader

import gradood
from gradood.errors import InputError, ModelError
from gradood.gradients import explain, gradient_grams, gradient_norms
from gradood.scoring.models import load_model

N = 7


class Table(nn.Module):
    """Categories, numbers and a mask of what is known."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.numbers = nn.Embedding(5, 3), nn.Linear(4, 6)
        self.head = nn.Linear(9, 3)

    def forward(self, category, numbers, known=None, *, scale=1.0):
        if known is not None:
            numbers = numbers * known
        hidden = torch.cat([self.embedding(category), self.numbers(numbers).relu()], 1)
        return self.head(hidden) * scale


class Nested(Table):
    """The same from a nesting."""

    def forward(self, parts):
        (category, numbers), rest = parts["both"], parts["rest"]
        return super().forward(category, numbers, rest[0])


def columns(n=N, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randint(0, 5, (n,), generator=generator),
        torch.randn(n, 4, generator=generator),
        torch.rand(n, 4, generator=generator) > 0.3,
    )


Pair = namedtuple("Pair", "category numbers")
CASES = {
    "tuple": (Table, lambda c, x, k: (c, x, k)),
    "list": (Table, lambda c, x, k: [c, x]),
    "namedtuple": (Table, lambda c, x, k: Pair(c, x)),
    "with None": (Table, lambda c, x, k: (c, x, None)),
    "mapping": (Table, lambda c, x, k: {"numbers": x, "category": c, "known": k}),
    "mapping with a constant": (Table, lambda c, x, k: {"numbers": x, "category": c, "scale": 2.0}),
    "no dict": (Table, lambda c, x, k: UserDict(numbers=x, category=c)),
    "nested": (Nested, lambda c, x, k: ({"both": [c, x], "rest": (k,)},)),
    "nested by name": (Nested, lambda c, x, k: {"parts": {"both": (c, x), "rest": [k]}}),
}


def call(model, tree):
    keywords = not isinstance(tree, tuple | list)
    return model(**tree) if keywords else model(*tree)


def rows(tree, n):
    if isinstance(tree, UserDict):
        tree = dict(tree)
    return tree_map(lambda t: t[n : n + 1] if isinstance(t, torch.Tensor) else t, tree)


def loop(model, tree, n=N):
    """Float64, one sample at a time, by autograd alone."""
    model = copy.deepcopy(model).double()
    expected = []
    for i in range(n):
        one = tree_map(
            lambda t: t.double() if isinstance(t, torch.Tensor) and t.is_floating_point() else t,
            rows(tree, i),
        )
        out = call(model, one)
        logits = getattr(out, "logits", out)
        loss = binary_cross_entropy_with_logits(logits, torch.ones_like(logits), reduction="sum")
        gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        expected.append([0.0 if g is None else float(g.square().sum()) for g in gradients])
    return torch.tensor(expected, dtype=torch.float64)


@pytest.mark.parametrize("method", ["auto", "rules", "loop"])
@pytest.mark.parametrize("case", CASES)
def test_norms_are_those_of_a_float64_loop(case, method):
    kind, make = CASES[case]
    model, tree = kind().eval(), make(*columns())
    norms = gradient_norms(model, tree, method=method)
    torch.testing.assert_close(norms.values.double(), loop(model, tree), rtol=1e-4, atol=1e-9)
    assert norms.names == tuple(name for name, _ in model.named_parameters())
    torch.testing.assert_close(norms.logits, call(model, tree).detach())
    if method != "loop":
        assert norms.features.shape == (N, 9)


@pytest.mark.parametrize("case", ["tuple", "mapping", "nested"])
def test_rules_cover_them_and_batches_and_plans_do_not_matter(case):
    kind, make = CASES[case]
    model = kind().eval()
    tree = make(*columns())
    assert not explain(model, tree).fallbacks
    whole = gradient_norms(model, tree).values
    torch.testing.assert_close(gradient_norms(model, tree, micro_batch=2).values, whole)
    for n in (0, 4):
        torch.testing.assert_close(gradient_norms(model, rows(tree, n)).values, whole[n : n + 1])
    torch.testing.assert_close(
        gradient_grams(model, tree).norms().values, whole, rtol=1e-4, atol=1e-7
    )
    assert gradient_norms(model, make(*columns(0))).values.shape == (0, whole.shape[1])
    double = copy.deepcopy(model).double()
    wide = tree_map(lambda t: t.double() if t.is_floating_point() else t, tree)
    torch.testing.assert_close(gradient_norms(double, wide).values, loop(model, tree))


def test_the_model_is_as_it_was_and_is_freed():
    model = Table().eval()
    before = dict(vars(model))
    gradient_norms(model, CASES["tuple"][1](*columns()))
    assert vars(model) == before and type(model) is Table
    assert copy.deepcopy(model)(*columns()).shape == (N, 3)
    gone = weakref.ref(model)
    del model, before
    gc.collect()
    assert gone() is None


def test_weights_may_change_between_calls():
    model, tree = Table().eval(), columns()
    gradient_norms(model, tree)
    with torch.no_grad():
        model.numbers.weight.mul_(2)
    model.head = nn.Linear(9, 3)
    found = gradient_norms(model, tree).values.double()
    torch.testing.assert_close(found, loop(model, tree), rtol=1e-4, atol=1e-9)


def test_nan_is_found_in_every_tensor():
    model, (category, numbers, _) = Table().eval(), columns()
    numbers[2, 1] = torch.nan
    weights = torch.rand(N, 4)
    weights[5, 0] = torch.inf
    tree = (category, numbers, weights)
    with pytest.raises(InputError, match=r"2 of 7 rows \(2, 5\)"):
        gradient_norms(model, tree)
    flagged = gradient_norms(model, tree, nan_policy="flag")
    assert flagged.values[[2, 5]].isposinf().all() and flagged.logits[[2, 5]].isnan().all()
    rest = [0, 1, 3, 4, 6]
    others = gradient_norms(model, tuple(t[rest] for t in tree)).values
    torch.testing.assert_close(flagged.values[rest], others)


@pytest.mark.parametrize(
    "tree,message",
    [
        ((), "holds none"),
        ({}, "holds none"),
        ((torch.rand(3), torch.rand(4)), r"shapes \[\[3\], \[4\]\]"),
        ((torch.rand(3, 2), torch.tensor(1.0)), "same number of samples"),
        ((torch.rand(3, 2), torch.rand(3, 2).numpy()), "ndarray"),
        ("text", "str"),
        (None, "NoneType"),
        ({"x": [1, 2]}, "holds none"),
    ],
    ids=str,
)
def test_what_is_no_batch_is_refused(tree, message):
    with pytest.raises(InputError, match=message):
        gradient_norms(Table().eval(), tree)


def test_a_wrong_dtype_is_explained():
    category, numbers, _ = columns()
    with pytest.raises(InputError, match=r"float64.*float32"):
        gradient_norms(Table().eval(), (category, numbers.double()))


def test_samples_that_influence_one_another_are_found():
    class Mixes(Table):
        def forward(self, category, numbers):
            return super().forward(category, numbers - numbers.mean(0))

    with pytest.raises(ModelError, match="depend on the other samples|influence"):
        gradient_norms(Mixes().eval(), columns()[:2])


def text_classifier():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        vocab_size=40, num_labels=3, max_position_embeddings=32,
    )  # fmt: skip
    return transformers.BertForSequenceClassification(config).eval(), transformers.BatchEncoding


def test_tokens_with_an_attention_mask():
    model, encoding = text_classifier()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 40, (N, 9), generator=generator)
    lengths = torch.tensor([9, 3, 5, 9, 4, 6, 8])
    mask = (torch.arange(9) < lengths[:, None]).long()
    batch = encoding({"input_ids": tokens * mask, "attention_mask": mask})
    norms = gradient_norms(model, batch)
    expected = loop(model, dict(batch))
    scale = expected.amax(0).clamp_min(1e-14 * expected.max())
    assert ((norms.values.double() - expected).abs() / scale).max() < 1e-3
    # Padding changes nothing.
    alone = {name: t[1:2, :3] for name, t in batch.items()}
    torch.testing.assert_close(
        gradient_norms(model, alone).values, norms.values[1:2], rtol=1e-3, atol=1e-5
    )


class Rows(torch.utils.data.Dataset):
    """Samples that are mappings, as data sets of Hugging Face have them."""

    def __init__(self, n, seed):
        self.columns = dict(zip(("category", "numbers", "known"), columns(n, seed), strict=True))

    def __len__(self):
        return len(self.columns["numbers"])

    def __getitem__(self, i):
        return {name: t[i] for name, t in self.columns.items()} | {"labels": i % 3}


DETECTORS = {
    "fast": gradood.GradientDetector,
    "knn": gradood.GradientKNN,
    "energy": gradood.Energy,
    "gradnorm": gradood.GradNorm,
}


@pytest.mark.parametrize("kind", DETECTORS)
def test_detectors_fit_score_and_calibrate_on_mappings(kind, tmp_path):
    model = Table().eval()
    detector = DETECTORS[kind](model, batch_size=50).fit(Rows(220, 1))
    detector.calibrate(DataLoader(Rows(60, 2), 16), fpr=0.1)
    test = Rows(40, 3)
    scores = detector.score(test.columns)
    assert scores.shape == (40,) and scores.isfinite().all() and scores.std() > 0
    sources = {
        "data set": test,
        "loader": DataLoader(test, 16),
        "mappings": [{name: t[:25] for name, t in test.columns.items()},
                     {name: t[25:] for name, t in test.columns.items()}],
        "pairs": [(test.columns, torch.zeros(40))],
        "tuples and labels": [(tuple(test.columns.values()), torch.zeros(40))],
    }  # fmt: skip
    for source in sources.values():
        torch.testing.assert_close(detector.score(source), scores, rtol=1e-3, atol=1e-3)
    far = {**test.columns, "numbers": test.columns["numbers"] * 50}
    assert detector.predict(far).float().mean() > detector.predict(test).float().mean() or (
        kind in ("energy", "gradnorm")
    )
    detector.save(tmp_path / "d")
    again = gradood.load(tmp_path / "d", model)
    torch.testing.assert_close(again.score(test.columns), scores, rtol=1e-3, atol=1e-3)
    far["numbers"][4, 0] = torch.nan
    with pytest.raises(InputError, match="NaN or Inf"):
        detector.score(far)
    detector.nan_policy = "flag"
    assert detector.score(far)[4].isposinf()


@pytest.mark.filterwarnings("ignore:.*isinstance.*LeafSpec:FutureWarning")
def test_an_exported_program_with_several_named_inputs(tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.left, self.right, self.head = nn.Linear(4, 6), nn.Linear(3, 6), nn.Linear(6, 2)

        def forward(self, a, b):
            return self.head((self.left(a) + self.right(b)).relu())

    model, inputs = Two().eval(), {"a": torch.rand(3, 4), "b": torch.rand(3, 3)}
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(model, (), inputs, dynamic_shapes={"a": batch, "b": batch})
    torch.export.save(program, tmp_path / "m.pt2")
    loaded = load_model(str(tmp_path / "m.pt2"), trust=True).model
    x = {"a": torch.rand(5, 4), "b": torch.rand(5, 3)}
    torch.testing.assert_close(gradient_norms(loaded, x).values, gradient_norms(model, x).values)
