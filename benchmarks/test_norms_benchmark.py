"""Every method on every standard workload under pytest-benchmark: to compare runs of one machine.

    pytest benchmarks --benchmark-only [--benchmark-autosave] [--benchmark-compare]

``benchmarks.measuring`` is the better comparison of methods: there they take turns.
"""

from functools import partial

import pytest

from benchmarks.measuring.check import compare, expected
from benchmarks.measuring.others import include
from gradood.benchmarking.machine import installed
from gradood.benchmarking.registry import METHODS
from gradood.benchmarking.workloads import STANDARD, workload

include("benchmarks.peers")


@pytest.mark.filterwarnings("ignore")  # of peers, about how they are used or written
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", STANDARD)
def test_norms(benchmark, model, method):
    way, load = METHODS[method], workload(model)
    if not installed(way.package):
        pytest.skip(f"needs {way.package}")
    network, x = load.build()
    call = way.prepare(load.build()[0], False)
    found = call(x)
    benchmark.group = f"{model}, {load.batch}"
    benchmark.extra_info["package"] = f"{way.package} {installed(way.package)}"
    if way.computes != "nothing":
        verdict = compare(found, expected(network, x, way.computes))
        benchmark.extra_info["norms"] = str(verdict)
        if way.package == "gradood":
            assert not verdict.missing and not verdict.wrong
    benchmark.pedantic(partial(call, x), rounds=3 if way.slow else 7)
