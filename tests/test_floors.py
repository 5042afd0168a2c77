"""What may import what: the contracts of ``[tool.importlinter]``, and no way around them."""

import ast
import re
from importlib.util import find_spec

import pytest

import gradood.data
from tests.documentation import ROOT
from tests.processes import python

#: File, module: the table of backends, folders of assets and templates, processes to start.
NAMED = {
    *(("ops/dispatch.py", f"gradood.ops.{name}_backend") for name in ("triton", "cpp", "torch")),
    ("data/embedded.py", "gradood.data"),
    ("distro/discriminator.py", "gradood.data"),
    ("evaluation/reports/html.py", "gradood.evaluation.reports"),
    ("benchmarking/gpu/selftest.py", "gradood.benchmarking.gpu.selftest"),
    ("cli/info.py", "gradood.ops.triton_backend"),
    ("benchmarking/arithmetic.py", "gradood.benchmarking.arithmetic"),
    ("benchmarking/bench.py", "gradood.benchmarking.bench"),
    ("benchmarking/gpu/bench.py", "gradood.benchmarking.gpu.bench"),
}


def test_no_import_goes_upwards_or_in_a_circle():
    pytest.importorskip("importlinter")
    # A process of its own: it configures logging, which silences every logger that is there.
    code = "import sys; from importlinter import cli; sys.exit(cli.lint_imports(no_cache=True))"
    done = python("-c", code, folder=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_modules_named_in_strings_stand_beside_or_below():
    """Import-linter sees statements only."""
    found = {
        (path.relative_to(ROOT / "gradood").as_posix(), node.value)
        for path in (ROOT / "gradood").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and re.fullmatch(r"gradood(\.\w+)+(:\w+)?", node.value)
        and find_spec(node.value.partition(":")[0]) is not None
    }
    assert found == NAMED


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("glyphs", r"benchmarks\.datasets\.glyphs"),
        ("embedded_denoiser", r"gradood\.smoothing\.embedded_denoiser"),
    ],
)
def test_names_that_moved_say_where(name, place):
    with pytest.raises(AttributeError, match=place):
        getattr(gradood.data, name)
