"""What tests of the command line share."""

import pytest

from tests.commands import run
from tests.pictures import write_pictures


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Folders of pictures, and a detector fitted on one of them by the command."""
    root = tmp_path_factory.mktemp("data")
    write_pictures(root / "train", "fashion-mnist-train", 150)
    write_pictures(root / "normal", "fashion-mnist", 40)
    write_pictures(root / "mnist", "mnist", 40)
    made = run("fit", root / "train", "--out", root / "detector", "--json")
    assert made.exit_code == 0, made.output
    return root
