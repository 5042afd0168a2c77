"""Docstrings: their examples run, and the site is made of them."""

import ast
import doctest
import importlib
import inspect
import re
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


def test_the_api_page_names_every_public_package():
    """mkdocs fills it in; see docs/site.py for the detectors."""
    named = set(re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(), re.M))
    packages = {
        f"gradood.{name}" for name in gradood.__all__ if inspect.ismodule(getattr(gradood, name))
    }
    assert packages <= named
    for name in named:
        assert importlib.import_module(name).__doc__, name


def test_arguments_are_described_in_sentences():
    """An entry of Args and its kin, ``name: Which one it is.``, begins with a capital."""
    entry = re.compile(r"^ {4}\*{0,2}\w[\w, ]*: ([a-z]\w*)", re.M)
    section = re.compile(r"^( *)(?:Args|Attributes|Raises|Returns):\n(.*?)(?=\n\n|\Z)", re.M | re.S)
    found = [
        (path.name, word)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
        for part in section.finditer(ast.get_docstring(node) or "")
        for word in entry.findall(part[2])
    ]
    assert not found
