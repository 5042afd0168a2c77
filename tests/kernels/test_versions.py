"""What other versions of Triton lack, taken from the one that is there; the matrix has the rest."""

import json
from pathlib import Path

import pytest

from benchmarks.gpu import matrix
from gradood.benchmarking.gpu.launch_cases import launch_cases
from gradood.ops import triton_backend
from tests.processes import compiling

OLDEST, *_, NEWEST = matrix.VERSIONS
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"


def test_a_triton_without_knobs_and_without_bf16x3_serves_float32():
    said = compiling(
        "import torch, triton\n"
        "from triton.backends.nvidia.compiler import CUDAOptions\n"
        "CUDAOptions.allowed_dot_input_precisions = ('tf32', 'tf32x3', 'ieee')\n"
        "del triton.knobs\n"
        "from gradood.kernels import launch\n"
        "from gradood.errors import InputError\n"
        "from benchmarks.gpu.dry_driver import dry\n"
        "with dry('sm_90'):\n"
        "    print(launch.product_precision(torch.float32, 1 << 20, cancels=False))\n"
        "    with launch.precision('bf16x3'):\n"
        "        try: launch.product_precision(torch.float32, 1 << 20, cancels=False)\n"
        "        except InputError as error: print('tf32x3' in str(error))\n"
    ).split()
    assert said == ["tf32x3", "True"]


def test_precisions_are_those_that_the_compiler_of_the_gpu_knows():
    said = compiling(
        "import torch\n"
        "from gradood.kernels import launch\n"
        "from benchmarks.gpu.dry_driver import dry\n"
        "for name in ('sm_90', 'gfx942'):\n"
        "    with dry(name):\n"
        "        for cancels in (False, True):\n"
        "            print(launch.product_precision(torch.float32, 1 << 20, cancels))\n"
    ).split()
    assert said == ["bf16x3", "tf32x3", "bf16x3", "ieee"]


def test_the_committed_matrix_has_no_fault_and_is_not_all_refusals():
    """Whole cells only, of the cases there are now; `--missing` compiles what it lacks so far."""
    table = json.loads((RESULTS / "triton_matrix.json").read_text())
    assert set(table) <= set(matrix.VERSIONS) and {OLDEST, NEWEST} <= set(table)
    assert matrix.faults(table) == []
    for version, targets in table.items():
        assert set(targets) <= set(matrix.TARGETS)
        for target, rows in targets.items():
            assert set(rows) == set(launch_cases()), (version, target)
    for version, target in ((OLDEST, "sm_90"), (NEWEST, "sm_90"), (NEWEST, "sm_100")):
        assert {row["state"] for row in table[version][target].values()} == {"compiles"}
    assert (RESULTS / "triton_matrix.md").read_text() == matrix.as_markdown(table)


def test_the_matrix_begins_with_the_oldest_pytorch_that_is_promised():
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11
    promised = tomllib.loads((RESULTS.parents[1] / "pyproject.toml").read_text())["project"]
    (torch,) = [d for d in promised["dependencies"] if d.split(">=")[0] == "torch"]
    assert matrix.VERSIONS[OLDEST].split(", ")[0] == torch.split(">=")[1].split(",")[0]
    assert OLDEST == ".".join(map(str, triton_backend.OLDEST)) + ".0"


def test_faults_are_noticed():
    rows = {"a": {"state": "fails", "detail": "no"}, "b": {"state": "spills", "detail": {"k": 8}}}
    assert len(matrix.faults({"3.2.0": {"sm_90": rows, "gfx942": rows}})) == 3
