"""Docstrings: their examples run, and docs/api.md is made of them."""

import doctest
import importlib
import runpy
from functools import cache

import pytest
import torch

import gradood
from gradood.data import embedded_classifier, embedded_images
from tests.documentation import ROOT

PACKAGE = ROOT / "gradood"
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@cache
def readers_own():
    """What examples assume: a model, and data."""
    normal = embedded_images("fashion-mnist-train")
    return {
        "gradood": gradood,
        "torch": torch,
        "model": embedded_classifier(),
        "normal": normal[:250],
        "anomalies": embedded_images("glyphs")[:50],
        "images": embedded_images("mnist")[:5],
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in doctest.DocTestFinder().find(module, extraglobs=readers_own()):
        runner.run(test)
    assert not runner.failures


def test_the_api_page_is_that_of_the_docstrings():
    made = runpy.run_path(str(ROOT / "docs" / "build_api.py"))
    assert made["PAGE"].read_text(encoding="utf-8") == made["page"](), made["__doc__"]
