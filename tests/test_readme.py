"""The README's code runs as it stands, on the embedded assets."""

import re
import tarfile

import pytest
from safetensors.torch import save_model
from typer.testing import CliRunner

from gradood.cli import app
from gradood.data import embedded_classifier, embedded_images
from tests.documentation import ROOT, blocks, shell
from tests.pictures import write_pictures

README = ROOT / "README.md"


def code(language):
    return [block.code for block in blocks(README) if block.language == language]


@pytest.mark.slow
def test_the_example_runs(capsys):
    given = "model, normal, held_out, x = ..."
    example = "".join(code("python")).splitlines()
    lines = [line for line in example if not line.startswith(given)]
    assert len(lines) == len(example) - 1
    pictures, glyphs = embedded_images("fashion-mnist-train"), embedded_images("glyphs")
    scope = {
        "model": embedded_classifier(),
        "normal": pictures[:600],
        "held_out": pictures[600:800],
        "x": glyphs[:4],
    }
    exec("\n".join(lines), scope)
    assert scope["det"].predict(glyphs[:50]).float().mean() > 0.5
    assert scope["s"].sigma == 0.05
    assert scope["norms"].values.shape == (4, len(scope["norms"].names))
    assert "linear.weight" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_run(tmp_path):
    timm = pytest.importorskip("timm")
    installation, commands = code("sh")
    # Those of .ci/run, which the tests are part of.
    assert all("pip install" in line for line in installation.splitlines())
    smaller = "test_resnet"  # than the reader's, for time; its weights are random
    save_model(timm.create_model(smaller), tmp_path / "w.safetensors")
    write_pictures(tmp_path / "normal", "fashion-mnist-train", 100)
    (tmp_path / "shards").mkdir()
    strange = write_pictures(tmp_path / "strange", "mnist", 20)
    with tarfile.open(tmp_path / "shards" / "0.tar", "w") as shard:
        shard.add(strange, "")
    for folder, name in (("normal", "a"), ("strange", "b")):
        arguments = [str(tmp_path / folder), "--out", str(tmp_path / f"{name}.parquet")]
        assert CliRunner().invoke(app, ["score", *arguments]).exit_code == 0
    printed = shell(commands.replace("timm:resnet50", f"timm:{smaller}"), "README.md", tmp_path)
    assert "GradientDetector fitted on 80 inputs" in printed
    assert "20 inputs scored, 0 skipped." in printed and "AUROC" in printed


def test_it_is_short_and_says_first_what_was_not_measured():
    text = README.read_text()
    assert len(text.split()) <= 600
    headings = re.findall(r"^## (.+)$", text, re.M)
    assert headings == [
        "When to use it", "Norms", "Certificates", "Results", "How it works", "More"
    ]  # fmt: skip
    first, *_ = re.findall(r"^\* (.+)$", text[text.index("## When") :], re.M)
    assert first.startswith("**GPU:**")


@pytest.mark.parametrize("heading", ["Norms", "Results"])
def test_its_tables_are_rows_of_the_page_of_measurements(heading):
    """Every number of a table stands in docs/measured.md too."""
    text = README.read_text()
    table = text[text.index(f"## {heading}") :].split("\n## ")[0]
    numbers = re.findall(r"(?<= )\d*\.\d+", "".join(re.findall(r"^\|.*$", table, re.M)))
    assert len(numbers) > 8
    assert set(numbers) <= set(re.findall(r"\d*\.\d+", (ROOT / "docs/measured.md").read_text()))
