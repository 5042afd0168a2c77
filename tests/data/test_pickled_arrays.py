import os
import pickle
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.datasets.pickled_arrays import load_pickled_array
from gradood.errors import InputError


class Attack:
    """Unpickling this with the standard library runs a command."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.call


@pytest.mark.parametrize("protocol", [3, 4])
@pytest.mark.parametrize("dtype", ["u1", "<i8", ">f4"])
def test_arrays_are_read(protocol: int, dtype: str) -> None:
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    loaded = load_pickled_array(pickle.dumps(array, protocol))
    assert loaded.dtype.kind == array.dtype.kind
    np.testing.assert_array_equal(loaded, array)


def test_a_pickle_that_runs_a_command_is_refused_and_nothing_runs(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    content = pickle.dumps(Attack(os.system, f"touch {proof}"))
    with pytest.raises(InputError, match="Refused to unpickle posix.system"):
        load_pickled_array(content)
    assert not proof.exists()
    pickle.loads(content)
    assert proof.exists(), "the attack must work where nothing stops it"


@pytest.mark.parametrize(
    "attack",
    [
        Attack(eval, "1 + 1"),
        Attack(getattr, "text", "upper"),
        Attack(subprocess.check_output, ["true"]),
        Attack(np.load, "x.npy"),
    ],
    ids=["eval", "getattr", "subprocess", "numpy.load"],
)
def test_other_functions_are_refused(attack: Attack) -> None:
    with pytest.raises(InputError, match="Refused to unpickle"):
        load_pickled_array(pickle.dumps(attack))
    with pytest.raises(InputError, match="Refused to unpickle"):
        load_pickled_array(pickle.dumps([np.zeros(2), attack]))


def test_what_is_no_array_of_numbers_is_refused() -> None:
    for other in ([1, 2], {"a": 1}, np.array([{}, None], dtype=object)):
        with pytest.raises(InputError, match="Expected a pickled NumPy array"):
            load_pickled_array(pickle.dumps(other, 4))


def test_damaged_pickles_are_refused() -> None:
    content = pickle.dumps(np.arange(100), 4)
    for damaged in (b"", content[:50], b"no pickle at all"):
        with pytest.raises(InputError, match="damaged"):
            load_pickled_array(damaged)
