"""The recipes of docs/recipes.md run as they are printed, each in an empty folder."""

import re
import warnings
from importlib.util import find_spec

import pytest

from tests.documentation import ROOT, run

PAGE = ROOT / "docs" / "recipes.md"
_NEEDS = re.compile(r"^Needs: (.+)$", re.M)


def recipes():
    """Heading and text of every section."""
    _, *sections = re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return [tuple(section.split("\n", 1)) for section in sections]


def test_every_recipe_says_what_it_needs():
    assert len(recipes()) == 7
    assert all(_NEEDS.search(text) for _, text in recipes())


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("heading, text", recipes(), ids=[heading for heading, _ in recipes()])
def test_the_recipe_runs(heading, text, tmp_path, monkeypatch):
    for package in re.findall(r"`(\w+)`", _NEEDS.search(text)[1]):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    page = tmp_path / "recipes.md"
    page.write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the packages beside us
        run(page, tmp_path)
