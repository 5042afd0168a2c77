"""Models of several inputs: from files, by name, in every command, as in the library."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import gradood
from gradood import attacks
from gradood.cli import app
from gradood.data.files import decoded, open_source
from gradood.errors import InputError
from gradood.inputs import Inputs
from gradood.scoring.ray import RayScorer

ROWS = 100
RANDOM = np.random.default_rng(0)
NUMBERS = RANDOM.normal(size=(ROWS, 4)).astype(np.float32)
TOKENS = RANDOM.integers(0, 20, (ROWS, 6))
BOTH = {"numbers": torch.from_numpy(NUMBERS), "tokens": torch.from_numpy(TOKENS)}
COLUMNS = ("--column", "numbers", "--column", "tokens=words")


class Mixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.numbers, self.embed = nn.Linear(4, 8), nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, numbers, tokens):
        return self.head(torch.tanh(self.numbers(numbers) + self.embed(tokens).mean(1)))


def mixed():
    torch.manual_seed(0)
    return Mixed().eval()


MODEL = ("--model", f"{__name__}:mixed")


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(path, rows=ROWS):
    np.savez(path / "x.npz", numbers=NUMBERS[:rows], words=TOKENS)
    return path / "x.npz"


def parquet(path):
    arrow, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    named = {"id": [f"row {i}" for i in range(ROWS)]}
    table = arrow.table(named | {"numbers": list(NUMBERS), "words": list(TOKENS)})
    pq.write_table(table, path / "x.parquet", row_group_size=7)
    return path / "x.parquet"


def tar(path, without=None):
    with tarfile.open(path / "x.tar", "w") as file:
        for i in range(ROWS):
            for kind, array in (("numbers", NUMBERS[i]), ("words", TOKENS[i])):
                if (i, kind) != (without, "words"):
                    content, info = npy(array), tarfile.TarInfo(f"{i:03}.{kind}.npy")
                    info.size = len(content)
                    file.addfile(info, io.BytesIO(content))
    return path / "x.tar"


KINDS = {"npz": npz, "parquet": parquet, "tar": tar}


def columns(kind):
    ending = ".npy" if kind == "tar" else ""
    return ("--column", f"numbers=numbers{ending}", "--column", f"tokens=words{ending}")


def run(*arguments):
    result = CliRunner().invoke(app, list(map(str, arguments)))
    return result.exit_code, " ".join(result.output.split())


def scores(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    return torch.tensor([row["score"] for row in rows]), [row["id"] for row in rows]


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    path = tmp_path_factory.mktemp("fitted") / "knn.safetensors"
    code, said = run("fit", npz(path.parent), *COLUMNS, *MODEL,
                     "--detector", "gradient-knn", "--out", path)  # fmt: skip
    assert code == 0, said
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_files_give_the_scores_of_the_library(kind, detector, tmp_path):
    out = tmp_path / "s.jsonl"
    code, said = run("score", KINDS[kind](tmp_path), *columns(kind), *MODEL,
                     "--detector", detector, "--out", out, "--batch-size", 7)  # fmt: skip
    assert code == 0, said
    found, ids = scores(out)
    assert len(set(ids)) == ROWS
    expected = gradood.load(detector, mixed()).score(BOTH)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_reading_goes_on_from_any_row(kind, tmp_path):
    named = {"numbers": "numbers", "tokens": "words"}
    ending = ".npy" if kind == "tar" else ""
    wanted = [f"{argument}={column}{ending}" for argument, column in named.items()]
    source = open_source([KINDS[kind](tmp_path)], column=wanted)
    everything = [item.id for item, _ in source.placed()]
    assert source.count() in (None, ROWS)
    for start in (0, 1, 13, ROWS):
        found = list(decoded(source.placed((0, start)), None))
        assert [one.id for one in found] == everything[start:]
        assert all(isinstance(one.tensor, Inputs) and len(one.tensor) == 1 for one in found)
    halves = [open_source([tmp_path / f"x.{kind}"], column=wanted, rank=r, world=2) for r in (0, 1)]
    assert sorted(i.id for half in halves for i in half.items()) == sorted(everything)


def test_columns_that_do_not_go_together_are_named_once(tmp_path):
    wanted = ["numbers=numbers.npy", "tokens=words.npy"]
    for path, lost in ((tar(tmp_path, without=20), 20), (npz(tmp_path, rows=30), 30)):
        source = open_source([path], column=wanted if path.suffix == ".tar" else
                             ["numbers", "tokens=words"])  # fmt: skip
        found = list(decoded(source.placed(), None))
        assert len(found) == lost + 1 and found[-1].tensor is None
        assert "do not go together from here on" in found[-1].error
        assert not list(source.items(lost + 1))


def test_a_row_that_is_damaged_in_one_column_is_said_of_that_row(tmp_path):
    spoilt = NUMBERS.copy()
    spoilt[5, 2] = np.nan
    np.savez(tmp_path / "x.npz", numbers=spoilt, words=TOKENS)
    out = tmp_path / "s.jsonl"
    code, _ = run("score", tmp_path / "x.npz", *COLUMNS, *MODEL, "--detector", "energy",
                  "--out", out, "--on-error", "skip")  # fmt: skip
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert code == 3 and [n for n, row in enumerate(rows) if row["score"] is None] == [5]
    assert rows[5]["error"] == "numbers: it holds NaN or Inf"


def test_every_command_takes_them_or_says_why_not(detector, tmp_path):
    path = npz(tmp_path)
    common = (*COLUMNS, *MODEL)
    code, said = run("evaluate", "--normal", path, "--anomalous", path, "--detector", detector,
                     *common, "--report", tmp_path / "compared")  # fmt: skip
    assert code == 0 and "50.0" in said
    code, said = run("explain", path, "--normal", path, "--detector", detector, *common,
                     "--report", tmp_path / "explained")  # fmt: skip
    assert code == 0 and "numbers.weight" in said
    code, said = run("certify", path, *common, "--kind", "class")
    assert code == 2 and "several tensors" in said
    for asked in (("--attack", "l2:0.1"), ("--guarantee", "l2:0.1")):
        code, said = run("evaluate", "--normal", path, "--anomalous", path, "--detector", "energy",
                         *common, *asked)  # fmt: skip
        assert code == 2 and "several tensors" in said


@pytest.mark.parametrize(
    "column, message",
    [
        (("numbers",), "missing 1 required positional argument"),
        (("numbers", "others=words"), "unexpected keyword argument"),
        (("numbers=words", "numbers"), "comes twice"),
        (("numbers", "tokens=absent"), "name one of its arrays"),
    ],
)
def test_wrong_columns_get_a_sentence(column, message, tmp_path):
    chosen = [word for one in column for word in ("--column", one)]
    code, said = run("score", npz(tmp_path), *chosen, *MODEL, "--out", tmp_path / "s.jsonl")
    assert code == 2 and message in said, said


def test_a_folder_has_no_columns(tmp_path):
    with pytest.raises(InputError, match="no columns"):
        open_source([tmp_path], column=["a", "b"])


@pytest.mark.parametrize("by_name", [False, True])
def test_exported_programs_take_them_by_name(by_name, tmp_path):
    rows = torch.export.Dim("rows")
    example = {name: tensor[:3] for name, tensor in BOTH.items()}
    given = ((), example) if by_name else (tuple(example.values()), {})
    shapes = {name: {0: rows} for name in example}
    program = torch.export.export(mixed(), *given, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    out = tmp_path / "s.jsonl"
    swapped = ("--column", COLUMNS[3], "--column", COLUMNS[1])
    code, said = run("score", npz(tmp_path), *swapped, "--model", tmp_path / "model.pt2",
                     "--trust", "--detector", "energy", "--out", out)  # fmt: skip
    assert code == 0, said
    torch.testing.assert_close(scores(out)[0], gradood.Energy(mixed()).score(BOTH))


def test_ray_s_batches_have_columns(detector):
    made = RayScorer(
        str(detector), model={"name": f"{__name__}:mixed"}, column=["numbers", "tokens=words"]
    )
    found = made({"numbers": NUMBERS, "words": TOKENS})
    expected = gradood.load(detector, mixed()).score(BOTH).numpy()
    np.testing.assert_allclose(found["score"], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [gradood.GradientKNN, gradood.Energy])
def test_a_tuple_is_one_batch_and_a_list_several(kind):
    model, (numbers, tokens) = mixed(), BOTH.values()
    expected = kind(model).fit(BOTH).score(BOTH)
    for given in ((numbers, tokens), [((numbers, tokens), "label")], [BOTH]):
        assert torch.equal(kind(model).fit(given).score(given), expected)
    flat = nn.Sequential(nn.Linear(4, 3)).eval()
    halves = list(numbers.split(30))
    assert torch.equal(kind(flat).fit(halves).score(halves), kind(flat).fit(numbers).score(numbers))
    with pytest.raises(InputError, match="does not take these inputs"):
        kind(flat).fit(numbers).score((numbers, tokens))


def test_what_moves_one_tensor_refuses_several():
    model, labels = mixed(), torch.zeros(ROWS, dtype=torch.int64)
    smoothing = gradood.Smoothing(sigma=0.1, n=100)
    for given in (BOTH, tuple(BOTH.values()), list(BOTH.values())):
        with pytest.raises(InputError, match="several tensors"):
            gradood.certify_class(model, given, settings=smoothing)
        with pytest.raises(InputError, match="several tensors"):
            attacks.pgd(model, given, labels=labels)
        with pytest.raises(InputError, match="several tensors"):
            attacks.attack_score(gradood.Energy(model), given, epsilon=0.1)
