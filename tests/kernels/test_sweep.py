"""Every kernel compiles for sizes of one, odd ones, and ones below any tile."""

import os

import pytest

from tests.processes import python

#: One of each kind of kernel; the whole takes minutes.
QUICK = ("layer norm back (2, 1, 1) False bf", "group norm (2, 1, 1) 1 bf", "(65, 400, 400) bf",
         "convolution (1, 1, (1, 1), (3, 3), 1) bf", "argmax (1, 1)")  # fmt: skip


def said(target, *parts):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    code = f"from tests.kernels.odd_shapes import main\nmain({target!r}, *{parts!r})"
    done = python("-c", code, environment=environment, timeout=1700)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_odd_sizes_compile():
    assert said("sm_90", *QUICK) == ["5"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_every_odd_size_compiles(target):
    *faults, count = said(target)
    assert not faults and int(count) > 300
