"""Options of the microbenchmarks; they take one process, whatever the tests are told."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--quick", action="store_true", help="microbenchmarks: the smallest size, few rounds"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config):
    config.option.numprocesses, config.option.dist = None, "no"
    if config.option.quick:
        config.option.benchmark_max_time = 0.02
        config.option.benchmark_min_rounds = 3
        config.option.benchmark_warmup = False


@pytest.fixture(autouse=True)
def same_numbers():
    torch.manual_seed(0)


def pytest_generate_tests(metafunc):
    """Three sizes of everything that asks for one; with ``--quick`` the smallest."""
    if "size" in metafunc.fixturenames:
        sizes = ["small", "medium", "large"]
        metafunc.parametrize("size", sizes[:1] if metafunc.config.option.quick else sizes)


def pytest_collection_modifyitems(config, items):
    if config.option.quick:  # whole models have a command of their own, `gradood bench --quick`
        items[:] = [item for item in items if "test_norms[" not in item.name]
