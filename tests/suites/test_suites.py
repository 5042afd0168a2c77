"""Every row of every suite is exact, or refused rightly, or listed with its reason.

``GRADOOD_SUITES=sample`` runs a fixed share that takes minutes: all modules, Opacus's and
BackPACK's, every ``OPERATORS``-th operator and some models.
"""

import os
import warnings

import pytest

#: Every so manieth operator is in the sample.
OPERATORS = 8
#: Models in the sample.
MODELS = {
    *("torchvision/resnet", "torchvision/mobilenetv3", "timm/levit.levit", "timm/beit.beit"),
    *("transformers/text.bart", "transformers/text.deberta-v2", "transformers/text.gpt2"),
    *("transformers/text.mixtral", "transformers/text.t5", "transformers/image.swin"),
}


def pytest_generate_tests(metafunc):
    """By the packages' own lists, which take seconds to load: only where slow tests run."""
    if metafunc.config.getoption("markexpr") == "not slow":
        entries = []
    else:
        for package in ("expecttest", "opacus", "torchvision", "timm", "transformers"):
            pytest.importorskip(package)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            entries = chosen()
    metafunc.parametrize("entry", entries, ids=lambda entry: entry.id)


def chosen():
    """The entries of this run."""
    from tests.suites.command import SUITES

    entries = [entry for suite in SUITES.values() for entry in suite()]
    if os.environ.get("GRADOOD_SUITES", "whole") == "whole":
        return entries
    operators = [entry for entry in entries if entry.suite == "operators"][::OPERATORS]
    small = ("modules", "opacus", "backpack")
    return [e for e in entries if e.suite in small or e.id in MODELS] + operators


@pytest.mark.slow
@pytest.mark.timeout(0)  # every row has a limit of its own
def test_exact_or_refused_rightly(entry):
    from tests.suites.command import rows
    from tests.suites.listed import listed

    found = list(rows(entry))
    assert [f"{r.name}: {r.outcome}, {r.reason}" for r in found if not (r.right or listed(r))] == []
