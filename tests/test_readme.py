"""The README's code runs as it stands, on the embedded assets."""

import re
from pathlib import Path

import pytest

from gradood.data import embedded_classifier, embedded_images

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs(tmp_path, monkeypatch, capsys):
    code = "".join(re.findall(r"```python\n(.*?)```", README.read_text(), re.S))
    given = ("model = ...", "normal, anomalies = ")
    lines = [line for line in code.splitlines() if not line.startswith(given)]
    assert len(lines) == len(code.splitlines()) - len(given)
    monkeypatch.chdir(tmp_path)
    pictures, glyphs = embedded_images("fashion-mnist-train"), embedded_images("glyphs")
    scope = {
        "model": embedded_classifier(),
        "normal": pictures[:600],
        "held_out": pictures[600:800],
        "anomalies": glyphs[:150],
        "x": glyphs[:4],
        "normal_test": embedded_images("fashion-mnist")[:200],
        "anomalous": glyphs[150:],
    }
    exec("\n".join(lines), scope)
    assert scope["det"].predict(glyphs[:50]).float().mean() > 0.5
    assert scope["s"].sigma == 0.05
    assert scope["norms"].values.shape == (4, len(scope["norms"].names))
    assert "linear.weight" in capsys.readouterr().out


@pytest.mark.parametrize("heading", ["## Two commands", "## Limits"])
def test_it_says_what_it_must_and_is_short(heading):
    text = README.read_text()
    assert heading in text
    assert len(text.splitlines()) < 200
