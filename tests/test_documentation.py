"""What README.md and docs/ say can be typed: every block runs, every link leads somewhere."""

import re
from importlib.util import find_spec

import pytest

from tests.documentation import OTHERS, PAGES, ROOT, anchors, blocks, links, run

#: Blocks that do not run here: the page, and what it says of why, right before the block.
NOT_RUN = {
    ("gpu.md", "needs a CUDA device, which neither the authors nor the tests have had"),
    ("gpu.md", "minutes"),
    ("researcher.md", "minutes to hours; tests/benchmarks runs the small versions"),
    ("scale-out.md", "needs Spark and a Java machine; the function is tested with data frames"),
}
#: Pages that take more than two seconds.
SLOW = {"certificates.md", "choosing.md", "engineer.md", "gpu.md", "researcher.md", "scale-out.md",
        "serving.md"}  # fmt: skip
#: Packages that pages cannot do without.
NEEDED = {
    "engineer.md": ("pandas", "pyarrow"),
    "researcher.md": ("pytorch_ood",),
    "scale-out.md": ("pandas", "pyarrow", "ray"),
    "serving.md": ("litserve",),
}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=page.name, marks=[pytest.mark.slow] * (page.name in SLOW))
        for page in PAGES
        # See test_readme.py, test_docstrings.py and test_recipes.py.
        if page.name not in ("README.md", "api.md", "recipes.md")
    ],
)
@pytest.mark.timeout(1200)
def test_every_block_runs(page, tmp_path, monkeypatch):
    for package in NEEDED.get(page.name, ()):
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "benchmarks").symlink_to(ROOT / "benchmarks")  # as in a checkout
    run(page, tmp_path)


def test_only_blocks_known_not_to_run_do_not():
    found = [(page.name, block.why_not) for page in PAGES for block in blocks(page)]
    assert sorted(pair for pair in found if pair[1]) == sorted(NOT_RUN)


@pytest.mark.parametrize(
    "page", [*PAGES, *OTHERS], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_every_link_leads_somewhere(page):
    for link in links(page):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_is_in_the_index():
    index = set(links(ROOT / "docs" / "index.md"))
    assert {page.name for page in PAGES} - {"README.md", "index.md"} <= index


def test_every_file_that_architecture_and_contributing_name_is_there():
    """Paths in backticks: from the root, or the end of a path in it."""
    folders = ("gradood", "csrc", "kernels", "benchmarks", "tests", "docs", ".github")
    files = [f"/{p.relative_to(ROOT).as_posix()}" for f in folders for p in (ROOT / f).rglob("*")]
    for page in (ROOT / "docs" / "architecture.md", *OTHERS):
        named = re.findall(r"`([\w./-]+\.(?:pyi?|h|cpp|json|md|toml|yml))`", page.read_text())
        for name in named:
            there = (ROOT / name).exists() or any(path.endswith(f"/{name}") for path in files)
            assert "NAME" in name or there, f"{page.name}: {name}"


def test_every_environment_variable_is_in_contributing():
    known = re.findall(r"^\| `(GRADOOD_\w+)`", (ROOT / "CONTRIBUTING.md").read_text(), re.M)
    sources = [
        *(ROOT / "gradood").rglob("*.py"),
        *(ROOT / "tests").rglob("*.py"),
        ROOT / "setup.py",
    ]
    read = {
        name
        for path in sources
        for name in re.findall(r"environ[\w.]*[\[(]\"(GRADOOD_\w+)\"", path.read_text())
    }
    assert read and read <= set(known)
