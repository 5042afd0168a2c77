"""What is worked out once for tensors that lie alike, and launches that skip what is known."""

import pytest
import torch

from gradood.kernels import prepared
from gradood.products import products
from tests.processes import compiling


def test_a_second_launch_is_told_the_same_without_triton_looking_at_it():
    """Kernels with each order of tensors, numbers and constants; sums and noise look again."""
    said = compiling(
        "import torch\n"
        "from triton.runtime.jit import JITFunction\n"
        "from benchmarks.gpu.dry_driver import dry\n"
        "from gradood.benchmarking.gpu.launch_cases import launch_cases\n"
        "from gradood.ops import triton_backend\n"
        "names = ('rank one', 'outer, small', 'shift-gram', 'gram, several samples a tile',\n"
        "         'conv, small', 'depthwise 3x3', 'batch norm backward, few pixels', 'embedding',\n"
        "         'layer norm backward')\n"
        "for name in names:\n"
        "    case = launch_cases()[f'{name}, bfloat16']\n"
        "    told = []\n"
        "    for _ in range(2):\n"
        "        with dry('sm_90') as launches:\n"
        "            looked, run = [], JITFunction.run\n"
        "            JITFunction.run = lambda f, *a, **k: (looked.append(f.__name__),\n"
        "                                                  run(f, *a, **k))[1]\n"
        "            getattr(triton_backend, case.operator)(*case.make())\n"
        "            JITFunction.run = run\n"
        "        told.append([launch.told for launch in launches])\n"
        "    assert told[0] == told[1] and told[0], name\n"
        "    print(*(name for name in looked if name != '_sum_kernel'), len(told[0]))\n"
    ).splitlines()
    assert len(said) == 9 and all(line.strip() in ("1", "2", "3") for line in said)


def test_threads_that_would_spill_get_fewer_numbers():
    """The compiler of any version and GPU may spill: the driver says so when it loads a kernel."""
    said = compiling(
        "from benchmarks.gpu import dry_driver\n"
        "from gradood.benchmarking.gpu.launch_cases import launch_cases\n"
        "from gradood.ops import triton_backend\n"
        "spills = iter((16, 8, 12, 8, 12, 0, 0, 0, 0))\n"
        "load = dry_driver._Utilities.load_binary\n"
        "def loaded(self, *arguments):\n"
        "    module, function, registers, _, *more = load(self, *arguments)\n"
        "    return module, function, registers, next(spills), *more\n"
        "dry_driver._Utilities.load_binary = loaded\n"
        "case = launch_cases()['outer, small, bfloat16']\n"
        "for _ in range(2):\n"
        "    with dry_driver.dry('sm_90') as launches:\n"
        "        triton_backend.linear_sqnorm(*case.make())\n"
        "    made = launches[0].compiled.metadata\n"
        "    print(len(launches), launches[0].kernel, made.num_warps, made.num_stages)\n"
    ).splitlines()
    assert said == ["2 outer_kernel 8 2"] * 2


def tensors(*shape, copies=2):
    return [torch.zeros(shape) for _ in range(copies)]


def test_what_lies_alike_is_worked_out_once():
    made = []

    @prepared.prepared
    def prepare(x, d, number):
        assert x.is_meta and d.is_meta
        made.append(number)
        return x.shape, d.stride(), number

    x, d = tensors(2, 3, 4)
    first = prepare(x, d, 1)
    assert prepare(*tensors(2, 3, 4), 1) is first and made == [1]
    others = (x.transpose(1, 2), d, 1), (x, d.double(), 1), (x[:1], d, 1), (x, d, 2)
    for other in others:
        assert prepare(*other) is not first
    with products("ieee"):
        prepare(x, d, 1)
    assert len(made) == 6
    prepared.forget()
    prepare(x, d, 1)
    assert len(made) == 7


def test_no_more_than_so_many_are_kept(monkeypatch):
    monkeypatch.setattr(prepared, "KEPT", 3)
    made = []

    @prepared.prepared
    def prepare(x, d):
        made.append(len(x))
        return made

    for length in (1, 2, 3, 4, 4, 1):
        prepare(*tensors(length))
    assert made == [1, 2, 3, 4, 1]


@pytest.mark.parametrize("copies", [False, True])
def test_what_a_view_does_is_not_done_again(copies):
    def arrange(x, d):
        return x.transpose(0, 1), d[1:].contiguous() if copies else d.flatten()

    x, d = (torch.empty(3, 4, device="meta") for _ in range(2))
    *found, again = prepared.arranged(arrange, x, d)
    assert found[0].shape == (4, 3)
    assert again is (arrange if copies else None)


def test_a_view_that_begins_elsewhere_is_made_again():
    x, d = (torch.empty(3, 4, device="meta") for _ in range(2))
    assert prepared.arranged(lambda x, d: (x[1:], d), x, d)[2] is not None
