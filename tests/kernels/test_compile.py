"""Kernels compiled for GPUs that are not there: nothing spills, loads and products are wide.

The compiler runs in processes of its own, because the interpreter is switched on in this one.
``python -m benchmarks.gpu.resources --out tests/kernels/resources.json`` rewrites the
committed table.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from benchmarks.gpu.dry_driver import DESCRIBED, dry
from benchmarks.gpu.resources import SMALL, TENSOR_CORE
from gradood.benchmarking.gpu.launch_cases import launch_cases
from gradood.errors import BackendError, InputError
from gradood.kernels.launch import INTERPRETING
from tests.processes import python

CASES = launch_cases()
GOLDEN = json.loads(Path(__file__).with_name("resources.json").read_text())
#: Tiles of 32 rows are too few for the wider instructions of sm_90 and sm_100.
FALLBACK = "mma.sync"
QUICK = ["conv, medium, bfloat16", "noise, planes"]


def compiled(folder, module, *arguments):
    out = folder / "out.json"
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(folder / "cache")
    command = [sys.executable, "-m", f"benchmarks.gpu.{module}", "--out", str(out)]
    subprocess.run([*command, *arguments], check=True, env=environment, timeout=1500)
    return json.loads(out.read_text())


def faults(name, target, kernel, found):
    """What is wrong with one compiled kernel; spills and widths on NVIDIA's targets."""
    case, nvidia = CASES[name], target.startswith("sm_")
    if nvidia and found["spilled"]:
        yield f"spills {found['spilled']}"
    if kernel in SMALL:
        return
    instruction = found["tensor_core"]
    if case.products and not instruction.startswith((TENSOR_CORE[target], FALLBACK)):
        yield f"multiplies with {instruction or 'nothing'}"
    # Nine accumulators leave sm_80 and its kin registers for 32 channels a tile only.
    wide = {"128", "64"} if kernel == "conv3x3_kernel" and found["warps"] == 8 else {"128"}
    if nvidia and case.wide and not {"128"} <= set(found["loads"]) <= wide:
        yield f"loads {found['loads']}"
    if nvidia and name.startswith("noise") and found["fused"]:
        yield f"{found['fused']} fused or approximate instructions"


@pytest.mark.parametrize("name", CASES)
def test_committed_table_has_no_fault(name):
    """The table is checked here, and that it is true by the slow test below."""
    assert set(GOLDEN["cases"][name]) == set(DESCRIBED)
    found = [
        f"{target} {kernel}: {fault}"
        for target, kernels in GOLDEN["cases"][name].items()
        for kernel, row in kernels.items()
        for fault in faults(name, target, kernel, row)
    ]
    assert not found


def same_as_committed(table):
    if table["triton"] != GOLDEN["triton"]:
        pytest.skip(f"the committed table is of triton {GOLDEN['triton']}")
    for name, targets in table["cases"].items():
        for target, kernels in targets.items():
            assert kernels == GOLDEN["cases"][name][target], f"{name}, {target}"


def test_quick_cases_compile_to_what_is_committed(tmp_path):
    same_as_committed(compiled(tmp_path, "resources", "--target", "sm_90", "--processes", "1",
                               "--case", *QUICK))  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("target", DESCRIBED)
def test_everything_compiles_to_what_is_committed(tmp_path, target):
    table = compiled(tmp_path, "resources", "--target", target)
    assert set(table["cases"]) == set(CASES)
    same_as_committed(table)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_whole_models_launch_dry_on_every_target(tmp_path):
    table = compiled(tmp_path, "model_launches")
    assert set(table) == set(DESCRIBED)
    for target, models in table.items():
        for name, found in models.items():
            assert found["launches"] > (5 if name == "lstm" else 40), (target, name)
            assert target.startswith("gfx") or found["spilled"] == 0, (target, name, found)
            if name.startswith("resnet"):
                kernels = found["by kernel"]
                names = ("conv_kernel", "conv3x3_kernel", "shifted_gram_kernel")
                spatial = sum(kernels[name] for name in names)
                assert spatial == 17, (target, name, found)  # 3×3 convolutions and the stem


def test_resources_are_not_vacuous():
    """Tables of zeros would pass the gate."""
    row = GOLDEN["cases"]["conv, strided, bfloat16"]["sm_90"]["conv_kernel"]
    assert row["registers"] > 64 and row["shared"] > 32 << 10 and row["loads"]["128"] > 4
    assert row["tensor_core"] == "wgmma" and row["fused"] > 0


def test_unknown_target_is_an_error():
    with pytest.raises(InputError, match="sm_70.*sm_80"), dry("sm_70"):
        pass


@pytest.mark.skipif(not INTERPRETING, reason="kernels can be compiled here")
def test_nothing_is_compiled_in_the_interpreter():
    with pytest.raises(BackendError, match="unset TRITON_INTERPRET"), dry("sm_90"):
        pass


def test_limits_of_the_grid_are_checked(tmp_path):
    code = (
        "import torch\n"
        "from benchmarks.gpu.dry_driver import dry\n"
        "from gradood.kernels import reduction\n"
        "row = torch.zeros(1, 4)\n"
        "with dry('sm_90'):\n"
        "    reduction._sum_kernel[(1, 70000)](row, row.long(), row, 1, 1, BLOCK=32)\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = python("-c", code, environment=environment)
    assert done.returncode == 1 and "70000" in done.stderr and "65535" in done.stderr


def test_triton_version_of_the_table_is_named():
    assert GOLDEN["triton"].split(".")[0] == triton.__version__.split(".")[0]
