"""What README.md and docs/ say can be typed: every block runs, every link leads somewhere."""

import pytest

from tests.documentation import PAGES, ROOT, blocks, run

#: Blocks that do not run here: the page, and what it says of why, right before the block.
NOT_RUN = {
    ("gpu.md", "needs a CUDA device, which neither the authors nor the tests have had"),
    ("researcher.md", "minutes to hours; tests/benchmarks runs the small versions"),
}
#: Pages whose commands take more than two seconds.
SLOW = {"certificates.md", "choosing.md", "engineer.md", "gpu.md", "researcher.md"}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(p, id=p.name, marks=[pytest.mark.slow] * (p.name in SLOW))
        for p in PAGES
        if p.name not in ("README.md", "scale-out.md", "serving.md")
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_every_block_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # as in a checkout
    run(page, tmp_path)


def test_only_blocks_known_not_to_run_do_not():
    found = [(page.name, b.why_not) for page in PAGES for b in blocks(page) if b.why_not]
    assert sorted(found) == sorted(NOT_RUN)
