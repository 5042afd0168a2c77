"""What the package promises before anything is computed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import gradood
from tests.processes import python


def test_every_public_name_is_there():
    assert {"gradient_norms", "GradientDetector", "certify_class", "data"} <= set(gradood.__all__)
    for name in gradood.__all__:
        assert getattr(gradood, name).__doc__, name
    assert set(gradood.__all__) <= set(dir(gradood))
    with pytest.raises(AttributeError, match="gradood.*nothing"):
        gradood.nothing  # noqa: B018


@pytest.mark.parametrize("module", ["gradood", "gradood.cli"])
def test_import_is_lazy(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_kernels_folder_is_no_top_level_module(tmp_path):
    code = "import importlib.util as u, gradood.kernels; assert u.find_spec('kernels') is None"
    (tmp_path / "gradood").symlink_to(Path(gradood.__file__).parent)  # and nothing beside it
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-P", "-c", code]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_public_packages_need_no_import_of_their_own():
    code = "import gradood; assert gradood.data.EMBEDDED and gradood.smoothing.Smoothing"
    result = python("-c", code)
    assert result.returncode == 0, result.stderr
